"""The largest batch that trains in so much memory: tried on a GPU, or reckoned by the model that `kcache plan` has.

    python benchmarks/largest_batch.py                 both stages at full size: a minute, and no memory
    python benchmarks/largest_batch.py --within 16

Of the GPU's memory CUDA and gaps take their part, as in `kcache plan`; the defaults are 24 GB and what a card that is
sold as 24 GB says that it has. The reference runs its frozen encoders in the
same process: what their weights hold is counted, what they hold while they run is not, so that its batches are, if
anything, too large. `memory_model.py` says how good the model is.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from architecture import PRIOR, UNET, models
from machine import add_json_option, describe, keep

from kcache.devices import is_out_of_memory
from kcache.planning.memory import Config, memory
from kcache.planning.passes import Pass, Subject, count_pass
from kcache.planning.plan import CONTEXT, SHARE
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.low_memory import FULL
from kcache.training.trimming import trimmed_length

TOKENS, LONGEST = 77, 25
"""Of text in the reference's batches, and of the longest caption in those that are trimmed here."""
ENCODERS = {"prior": ("text", "vision"), "decoder": ("movq", "vision")}
CHECKPOINTED = {"gradient_checkpointing": True}


class Way(NamedTuple):
    """One way to train: its options, its pass, and the bytes of what lies beside it."""

    name: str
    config: Config
    counted: Pass
    autocast: bool = True
    beside: int = 0


def usable(gigabytes: float) -> int:
    """Bytes of a GPU of so many GB that tensors may have."""
    return round((gigabytes * 1e9 - CONTEXT) * SHARE)


def tried(step: Callable[[int], None], gigabytes: float, others: int) -> int:
    """The largest power of two of samples with which ``step`` can be done; ``others`` bytes on the GPU do not count."""
    best, size = 0, 1
    while True:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            step(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return best
        if torch.cuda.max_memory_allocated() - others > usable(gigabytes):
            return best
        best, size = size, 2 * size


def reckoned(way: Way, gigabytes: float) -> int:
    """The largest number of samples that fits, of any size; 0 where one does not."""
    batch = 0
    while memory(way.config, way.counted, batch + 1, autocast=way.autocast).peak + way.beside <= usable(gigabytes):
        batch += 1
    return batch


def encoders_bytes(stage: str) -> int:
    """What the weights of the reference's frozen encoders hold, in the bf16 that it casts them to."""
    with torch.device("meta"):
        made = models()
    return sum(2 * parameter.numel() for name in ENCODERS[stage] for parameter in made[name].parameters())


def ways(stage: str) -> Iterator[Way]:
    """Of each kind of sample the reference's way, where it has one, then kcache's."""
    if stage == "prior":
        text = count_pass(prior(), Subject(PRIOR, TOKENS), True)
        yield Way(f"reference, {TOKENS} tokens", prior(), text, beside=encoders_bytes(stage))
        yield Way(f"cached, {TOKENS} tokens", prior(), text)
        yield from ours(prior, Subject(PRIOR, trimmed_length(LONGEST, TOKENS)), f"captions to {LONGEST} tokens")
        return
    for pixels in (512, 768):
        subject = Subject(UNET, latents=(pixels // 8, pixels // 8))
        cached = list(ours(decoder, subject, f"{pixels} px"))
        yield Way(f"reference, {pixels} px", decoder(), cached[0].counted, beside=encoders_bytes(stage))
        yield from cached


def ours(config_of: Callable[..., Config], subject: Subject, samples: str) -> Iterator[Way]:
    """kcache's defaults, and what saves memory."""
    counted = count_pass(config_of(), subject, True)
    yield Way(f"cached, {samples}", config_of(), counted)
    yield Way(f"cached, {samples}, --gradient-checkpointing", config_of(**CHECKPOINTED), counted)
    low = config_of(**FULL)
    yield Way(f"cached, {samples}, --low-memory", low, count_pass(low, subject, False), autocast=False)


def prior(**options: Any) -> PriorConfig:
    """``kcache train prior`` with so many options."""
    return PriorConfig(cache="", output_dir="", **options)


def decoder(**options: Any) -> DecoderConfig:
    """``kcache train decoder`` with so many options."""
    return DecoderConfig(cache="", output_dir="", **options)


def show_reckoned(stage: str, gigabytes: Sequence[float]) -> dict[str, list[int]]:
    """Print the batches of each way of a stage with their ratios to the reference's, if it has one, and return them."""
    print(f"\n{stage} at full size, bf16: samples in a batch, reckoned, not tried, on a GPU of")
    print(" " * 52 + "".join(f"{size:12g} GB" for size in gigabytes))
    found: dict[str, list[int]] = {}
    for way in ways(stage):
        batches = found[way.name] = [reckoned(way, size) for size in gigabytes]
        if way.beside:
            reference = batches
        ratios = [f"({one / its:.1f}x)" if its else "" for one, its in zip(batches, reference, strict=True)]
        cells = "".join(f"{one:6} {ratio:8}" for one, ratio in zip(batches, ratios, strict=True))
        print(f"{way.name:52}{cells}", flush=True)
    return found


def main() -> None:
    """Print a table for each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--within", type=float, nargs="+", default=[24.0, 25.4], metavar="GB")
    add_json_option(parser)
    options = parser.parse_args()
    machine = describe("diffusers")
    keep(options, machine, {stage: show_reckoned(stage, options.within) for stage in options.stages})


if __name__ == "__main__":
    main()
