"""What each part of `--low-memory` costs in loss: short runs from the same weights on the same data, against fp32.

Run ``python benchmarks/low_memory_loss.py``; it encodes the pictures that come with kcache, trains kandinsky-tiny for
some updates with each part, and prints the loss on fixed draws (the same samples, noise and timesteps for all) before
and after: medians over the seeds, and their range. Minutes on a CPU. 8-bit AdamW needs bitsandbytes.
"""

import argparse
import importlib.util
import logging
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from machine import add_json_option, describe, keep

from kcache.encoding.config import EncodeConfig
from kcache.encoding.encode import encode
from kcache.training import one_by_one
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.low_memory import FULL, LORA
from kcache.training.train import train

NEAREST = "weights in bf16, rounded to the nearest"
"""No option of kcache: what stochastic rounding is for."""
IN_BACKWARD = {"update_in_backward": True, "max_grad_norm": 0.0}
BF16 = {"weights_dtype": "bf16"}
PARTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "--mixed-precision bf16": {"mixed_precision": "bf16"},
    "--gradient-checkpointing": {"gradient_checkpointing": True},
    "--offload-optimizer": {"offload_optimizer": True},
    "--max-grad-norm 0": {"max_grad_norm": 0.0},
    "--update-in-backward": IN_BACKWARD,
    "--weights-dtype bf16": BF16,
    NEAREST: BF16,
    "--optimizer adamw8bit": {"optimizer": "adamw8bit"},
    "--low-memory": FULL,
    "--lora": {"lora": True, "rank": 16},
    "--lora --base-dtype bf16": {"lora": True, "rank": 16, "base_dtype": "bf16"},
    "--lora --low-memory": {"lora": True, "rank": 16, **LORA},
}
AGAINST = {name: "--lora" if name.startswith("--lora") else "fp32" for name in PARTS}


def make_cache(folder: Path, pictures: Path, models: Path) -> Path:
    """The pictures that come with kcache, at 64 px."""
    config = EncodeConfig(
        dataset=str(pictures),
        cache=str(folder / "cache"),
        resolution=(64,),
        pretrained_prior_model_name_or_path=str(models / "prior"),
        pretrained_decoder_model_name_or_path=str(models / "decoder"),
    )
    encode(config)
    return folder / "cache"


def losses(
    stage: str, name: str, cache: Path, models: Path, folder: Path, seed: int, chosen: Any
) -> tuple[float, float]:
    """The loss on fixed draws before and after a run."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # the precision may be another
    rate = chosen.learning_rate * (10 if PARTS[name].get("lora") else 1)
    common: dict[str, Any] = {
        "cache": str(cache),
        "output_dir": str(folder / f"{stage}-{list(PARTS).index(name)}-{seed}"),
        "seed": seed,
        "train_batch_size": 16,
        "max_train_steps": chosen.steps,
        "learning_rate": rate,
        f"pretrained_{stage}_model_name_or_path": str(models / stage),
        "checkpoints_total_limit": 1,
        "logging_steps": 50,
        **PARTS[name],
    }
    config = PriorConfig(**common) if stage == "prior" else DecoderConfig(**common, resolution=64)
    with to_the_nearest() if name == NEAREST else nullcontext():
        report = train(config)
    assert report.first_probe is not None
    assert report.last_probe is not None
    return report.first_probe, report.last_probe


@contextmanager
def to_the_nearest() -> Iterator[None]:
    """Within it weights in bf16 are rounded as a plain copy does."""
    before = one_by_one.round_into

    def copy(weights: torch.Tensor, exact: torch.Tensor, _: Any) -> None:
        weights.copy_(exact)

    one_by_one.round_into = copy
    try:
        yield
    finally:
        one_by_one.round_into = before


def main() -> None:
    """Print a table for each stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--stage", choices=["prior", "decoder"], action="append")
    parser.add_argument("--only", nargs="+", default=[""], help="parts with one of these in their name")
    add_json_option(parser)
    chosen = parser.parse_args()
    machine, figures = describe("diffusers", "accelerate", "bitsandbytes"), dict[str, Any]()
    logging.disable(logging.WARNING)
    data = files("kcache") / "data"
    with (
        as_file(data / "pictures") as pictures,
        as_file(data / "kandinsky-tiny") as models,
        tempfile.TemporaryDirectory() as made,
    ):
        cache = make_cache(Path(made), pictures, models)
        for stage in chosen.stage or ("prior", "decoder"):
            print(f"\n{stage}, {chosen.steps} updates of 16, {chosen.seeds} seeds\n")
            print("| | before | after | of what fp32 learned |\n|---|---|---|---|")
            for part, seen in compare(stage, cache, models, Path(made), chosen):
                figures.setdefault(stage, {})[part] = seen
                keep(chosen, machine, figures)


def compare(stage: str, cache: Path, models: Path, folder: Path, chosen: Any) -> Iterator[tuple[str, Any]]:
    """A row for each part; the last cell is the fall of the loss over that of its reference, seed by seed.

    Each part comes with the losses before and after of every seed.
    """
    wanted = {name for name in PARTS if any(word in name for word in chosen.only)}
    wanted |= {AGAINST[name] for name in wanted}
    falls: dict[str, list[float]] = {}
    for name, options in ((name, options) for name, options in PARTS.items() if name in wanted):
        if options.get("optimizer") == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
            print(f"| {name} | bitsandbytes is not installed | | |")
            continue
        seen = [losses(stage, name, cache, models, folder, seed, chosen) for seed in range(chosen.seeds)]
        falls[name] = [before - after for before, after in seen]
        shares = [mine / its for mine, its in zip(falls[name], falls[AGAINST[name]], strict=True)]
        before, after = (statistics.median(values) for values in zip(*seen, strict=True))
        spread = f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"
        print(f"| {name} | {before:.5f} | {after:.5f} | {spread} |", flush=True)
        yield name, seen


if __name__ == "__main__":
    main()
