"""Measures updates of the prior: as the reference makes them, from the cache, at the captions' length, with many draws.

Run ``python benchmarks/prior_step.py`` for a small Kandinsky on a CPU (two minutes), or with ``--size full`` for the
hub's architecture with random weights on a GPU. The sides take turns in every round; printed are medians over rounds
of each side's rate over that of the first, with the lowest and highest in brackets. ``--within 24`` measures every side
at the largest batch (a power of two) that it can train in so many GB. FLOPs are counted; the peak that their share is
of is that of a large matrix product in the same precision, measured in the same run.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from flops import gflop
from largest_batch import show_reckoned, tried
from machine import add_json_option, describe, keep, spread
from prior_setting import Setting, Trained

from kcache.devices import default_device
from kcache.training.compiling import compile_blocks
from kcache.training.config import PriorConfig
from kcache.training.loop import Objective
from kcache.training.objectives import Batch, prior_loss
from kcache.training.optimizers import make_optimizer
from kcache.training.shared_text import attend_for_all_heads

CONFIG = PriorConfig(cache="", output_dir="")


@dataclass
class Side:
    """One way to make an update, and what was measured of it."""

    name: str
    draws: int
    step: Callable[[Any], None]
    batch: Callable[[int], Any]
    """A batch of so many samples."""
    uses: Trained
    encoders: tuple[Any, ...] = ()
    size: int = 0
    batches: list[Any] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    gflop: float = 0.0
    peak: int = 0

    @property
    def figures(self) -> dict[str, Any]:
        """What was measured of it: an update is of ``batch`` samples with ``draws`` draws each."""
        told = {"batch": self.size, "draws": self.draws, "seconds of an update": self.seconds}
        return told | {"GFLOP of an update": self.gflop, "peak bytes": self.peak or None}


def make_sides(setting: Setting) -> list[Side]:
    """Those that were asked for, the first of which the others are compared with."""
    wanted = setting.options.sides
    sides: list[Side] = []
    if {"reference", "padded"} & set(wanted):
        theirs = setting.trained()
        theirs.optimizer = torch.optim.AdamW(theirs.model.parameters(), lr=1e-6)
        if "reference" in wanted:
            text, vision = setting.encoders()
            step = reference_step(setting, theirs, text, vision)
            sides.append(Side("reference", 1, step, setting.live, theirs, (text, vision)))
        if "padded" in wanted:
            step = reference_step(setting, theirs, None, None)
            sides.append(Side("padded", 1, step, lambda size: setting.cached(size, 1, trim=False), theirs))
    if {"trimmed", "packed", "draws", "packed-draws"} & set(wanted):
        ours = setting.trained()
        parameters = [p for p in ours.model.parameters() if p.requires_grad]
        ours.optimizer = make_optimizer(CONFIG, parameters, setting.device)
        attend_for_all_heads(ours.model)
        if setting.options.compile:
            compile_blocks(ours.model)
        step = cached_step(setting, ours)
        for name in wanted:
            if name in ("trimmed", "packed", "draws", "packed-draws"):
                draws, pack = setting.options.draws if "draws" in name else 1, "packed" in name
                shown = f"{'packed' if pack else 'trimmed'}{f', {draws} draws' if draws > 1 else ''}"
                sides.append(Side(shown, draws, step, batches_of(setting, draws, pack), ours))
    return sides


def batches_of(setting: Setting, draws: int, pack: bool) -> Callable[[int], Batch]:
    """Makes trimmed batches with so many draws, packed or not."""
    return lambda size: setting.cached(size, draws, trim=True, pack=pack)


def reference_step(setting: Setting, trained: Trained, text: Any, vision: Any) -> Callable[[Batch], None]:
    """An update as train_text_to_image_prior.py makes it: 77 tokens, encoders if any, the loss read each time."""

    def step(batch: Batch) -> None:
        batch = dict(batch)
        if text is not None:
            with torch.no_grad():
                encoded = text(batch["tokens"])
                batch["text_embeds"], batch["hidden_states"] = encoded.text_embeds, encoded.last_hidden_state
                batch["image_embeds"] = vision(batch["pixels"]).image_embeds
        with setting.autocast():
            loss = prior_loss(trained.model, batch, setting.scheduler, None)
        loss.detach().item()
        trained.update(loss)

    return step


def cached_step(setting: Setting, trained: Trained) -> Callable[[Batch], None]:
    """An update as ``kcache train prior`` makes it."""
    stage: Any = SimpleNamespace(model=trained.model, loss=prior_loss, scheduler=setting.scheduler)
    objective = Objective(stage, None).train()

    def step(batch: Batch) -> None:
        with setting.autocast():
            loss = objective(batch)
        trained.update(loss)

    return step


def prepare(setting: Setting, sides: list[Side]) -> None:
    """Warm every side up, count its FLOPs, and choose its batch."""
    for side in sides:
        side.step(side.batch(2))  # the optimizer's states are there from here on
    holds = {id(side.uses): side.uses.nbytes for side in sides}
    encoders = sum(p.nbytes for side in sides for one in side.encoders for p in one.parameters())
    for side in sides:
        others = sum(nbytes for one, nbytes in holds.items() if one != id(side.uses))
        others += 0 if side.encoders else encoders
        side.size = setting.options.batch_size
        if setting.options.within:
            side.size = tried(lambda size, side=side: side.step(side.batch(size)), setting.options.within, others)
            side.uses.optimizer.zero_grad()
        if not side.size:
            raise SystemExit(f"{side.name} does not fit {setting.options.within:g} GB; leave it out of --sides")
        side.batches = [side.batch(side.size) for _ in range(4)]
        side.gflop = sum(gflop(lambda side=side, one=one: side.step(one)) for one in side.batches) / 4
        if setting.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            for one in side.batches:
                side.step(one)
            side.peak = torch.cuda.max_memory_allocated() - others


def measure(setting: Setting, sides: list[Side]) -> float:
    """Fill in the seconds of an update in each round; returns the TFLOP/s of a large matrix product."""
    products = []
    for number in range(setting.options.rounds):
        for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
            setting.wait()
            began = time.perf_counter()
            for step in range(setting.options.steps):
                side.step(side.batches[step % len(side.batches)])
            setting.wait()
            side.seconds.append((time.perf_counter() - began) / setting.options.steps)
        products.append(matrix_product(setting))
    return median(products)


def matrix_product(setting: Setting) -> float:
    """TFLOP/s of one product of two square matrices."""
    n, times = (8192, 10) if setting.device.type == "cuda" else (1024, 3)
    one = torch.randn(n, n, device=setting.device, dtype=setting.dtype)
    one @ one
    setting.wait()
    began = time.perf_counter()
    for _ in range(times):
        one @ one
    setting.wait()
    return 2 * n**3 * times / (time.perf_counter() - began) / 1e12


def show(setting: Setting, sides: list[Side], tflops: float) -> None:
    """Print a line for each side."""
    options, name = setting.options, setting.device.type
    if name == "cuda":
        name = torch.cuda.get_device_name()
    compiled = ", blocks compiled" if options.compile else ""
    print(
        f"{options.size} size on {name}, {options.dtype}, captions of {options.tokens[0]} to {options.tokens[1]} tokens"
    )
    print(
        f"{options.rounds} rounds of {options.steps} updates; a matrix product reaches {tflops:.2f} TFLOP/s{compiled}\n"
    )
    print(f"{'':22} batch  samples/s  draws/s   GFLOP/sample  of the peak  GB peak", end="")
    print(f"  samples/s over {sides[0].name:9}  draws/s")
    for side in sides:
        rates = [side.size / seconds for seconds in side.seconds]
        over = [rate / (sides[0].size / seconds) for rate, seconds in zip(rates, sides[0].seconds, strict=True)]
        of_peak = side.gflop / median(side.seconds) / 1e3 / tflops
        peak = f"{side.peak / 1e9:7.2f}" if side.peak else f"{'-':>7}"
        print(
            f"{side.name:22} {side.size:5} {median(rates):10.1f} {median(rates) * side.draws:8.1f}"
            f" {side.gflop / side.size:14.2f} {of_peak:12.0%} {peak}  {spread(over):>30}"
            f"  {spread([one * side.draws for one in over])}"
        )


def main() -> None:
    """Measure what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="small")
    parser.add_argument("--device", help="the first GPU, else the CPU")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], help="bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--batch-size", type=int, help="64 on a GPU, 16 on a CPU")
    parser.add_argument("--within", type=float, metavar="GB", help="each side at its largest batch in so much memory")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--tokens", type=int, nargs=2, default=(8, 25), metavar=("LOW", "HIGH"))
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument(
        "--compile", action="store_true", help="compile the blocks of the cached sides that are trimmed"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="updates of a side in a round; 10 on a GPU, 1 on a CPU")
    add_json_option(parser)
    options = parser.parse_args()
    on_gpu = torch.device(options.device or default_device()).type == "cuda"
    options.dtype = options.dtype or ("bf16" if on_gpu else "fp32")
    options.batch_size = options.batch_size or (64 if on_gpu else 16)
    options.steps = options.steps or (10 if on_gpu else 1)
    machine = describe("diffusers", "transformers")
    if options.within and not on_gpu:
        keep(options, machine, show_reckoned("prior", [options.within]))
        return
    torch.manual_seed(0)
    setting = Setting(options)
    sides = make_sides(setting)
    prepare(setting, sides)
    tflops = measure(setting, sides)
    show(setting, sides, tflops)
    keep(options, machine, {"matrix product, TFLOP/s": tflops, **{side.name: side.figures for side in sides}})


SIDES = ["reference", "padded", "trimmed", "packed", "draws", "packed-draws"]
"""The reference's step with live encoders; the same from the cache; captions trimmed, then without any padding; both
with many draws.
"""


if __name__ == "__main__":
    main()
