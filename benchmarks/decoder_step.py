"""Measures updates of the decoder: with MoVQ and CLIP run at each of them, as the reference does, and from the cache.

Run ``python benchmarks/decoder_step.py`` for a small Kandinsky on a CPU (minutes), or with ``--size full`` for the
hub's architecture with random weights on a GPU. The sides take turns in every round, at 512 and at 768 px (a quarter of
them for the small size); printed are medians over rounds of each side's rate over that of the first, with the lowest
and the highest. FLOPs are counted; the peak that their share is of is that of a large matrix product, measured in the
same run. ``--within 24`` measures every side at the largest batch (a power of two) that it can train in so many GB;
without a GPU it says what the model of `kcache plan` reckons. Sides that are not measured unless named: other
attention than torch's, an optimizer that is not fused, and the UNet compiled, which is no option of kcache.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from decoder_setting import Setting
from diffusers.models.attention_processor import AttnAddedKVProcessor
from flops import gflop
from largest_batch import show_reckoned, tried
from machine import add_json_option, describe, keep, spread

from kcache.devices import default_device, free_memory
from kcache.planning.devices import measure
from kcache.progress import hush_libraries
from kcache.training.config import DecoderConfig
from kcache.training.loop import Objective
from kcache.training.low_memory import FULL
from kcache.training.memory import apply_memory_options
from kcache.training.objectives import Batch, decoder_loss
from kcache.training.optimizers import make_optimizer
from kcache.training.precision import apply_dtypes

SIDES: dict[str, dict[str, Any] | None] = {
    "reference": None,
    "cached": {},
    "channels last": {"channels_last": True},
    "checkpointed": {"gradient_checkpointing": True},
    "low memory": FULL,
    "xformers": {"enable_xformers_memory_efficient_attention": True},
    "not fused": {"optimizer_args": ("fused=false",)},
    "plain attention": {},
    "compiled": {},
}
"""By name the options of kcache, or None for the reference's own way."""
CHANGES: dict[str, Callable[[Any], None]] = {
    "plain attention": lambda model: model.set_attn_processor(AttnAddedKVProcessor()),
    "compiled": lambda model: model.compile(),
}
"""What is done to a side's UNet besides: products of whole matrices for attention; all of it compiled."""
USUAL = list(SIDES)[:5]
"""As many as an 80 GB GPU holds at once."""


@dataclass
class Side:
    """One way to make an update, and what was measured of it."""

    name: str
    model: Any
    step: Callable[[Batch], None]
    held: int
    """Bytes that are this side's own, between updates."""
    batch: Batch = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    gflop: float = 0.0
    peak: int = 0

    @property
    def size(self) -> int:
        """Samples of its batch."""
        return len(self.batch["noise"])

    @property
    def figures(self) -> dict[str, Any]:
        """What was measured of it at one resolution."""
        told = {"batch": self.size, "seconds of an update": list(self.seconds)}
        return told | {"GFLOP of an update": self.gflop, "peak bytes": self.peak or None}


def reference_side(setting: Setting) -> Side:
    """An update as train_text_to_image_decoder.py makes it: both encoders, plain AdamW, the loss read each time."""
    model, (movq, vision) = setting.unet(), setting.encoders()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step(batch: Batch) -> None:
        with torch.no_grad():
            latents = movq.encode(batch["pixels"]).latents
            embeds = vision(batch["clip_pixels"]).image_embeds
        with setting.autocast():
            loss = decoder_loss(model, {**batch, "latents": latents, "image_embeds": embeds}, setting.scheduler, None)
        loss.detach().item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    held = 3 * _nbytes(model) + _nbytes(movq) + _nbytes(vision)
    return Side("reference", model, step, held)


def cached_side(setting: Setting, name: str, options: dict[str, Any]) -> Side:
    """An update as ``kcache train decoder`` makes it with these options."""
    config = DecoderConfig(cache="", output_dir="", learning_rate=1e-6, **_here(options))
    model = setting.unet()
    CHANGES.get(name, lambda _: None)(model)
    apply_memory_options(model, config)
    apply_dtypes(model, config)
    stage: Any = SimpleNamespace(model=model, loss=decoder_loss, scheduler=setting.scheduler)
    objective = Objective(stage, None).train()
    optimizer = make_optimizer(config, model.parameters(), setting.device)
    is_fp32 = config.weights_dtype == "fp32"

    def step(batch: Batch) -> None:
        with setting.autocast(enabled=is_fp32):
            loss = objective(batch)
        loss.backward()
        if config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    states = 2 if config.optimizer == "adamw8bit" else 8
    held = _nbytes(model) + states * sum(parameter.numel() for parameter in model.parameters())
    return Side(name, model, step, held)


def _here(options: dict[str, Any]) -> dict[str, Any]:
    """The same with AdamW of 32 bits where the package of the other is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return {name: value for name, value in options.items() if name != "optimizer"}
    return options


def _nbytes(model: Any) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def choose_batches(setting: Setting, sides: list[Side], pixels: int) -> None:
    """Give every side its batch: that of ``--batch-size``, or the largest that it trains ``--within`` a memory."""
    options = setting.options
    for side in sides if options.within else ():
        side.step(setting.batch(pixels, 1))  # the optimizers' states are there from here on
    for side in sides:
        size = options.batch_size
        if options.within:
            others = sum(other.held for other in sides if other is not side)
            size = tried(lambda size, side=side: side.step(setting.batch(pixels, size)), options.within, others)
            side.model.zero_grad()
        if not size:
            raise SystemExit(f"{side.name} does not fit {options.within:g} GB; leave it out of --sides")
        side.batch = setting.batch(pixels, size)


def prepare(setting: Setting, sides: list[Side]) -> None:
    """Warm every side up, count its FLOPs and, on a GPU, what it holds at most beside what the others do."""
    for side in sides:
        side.step(side.batch)
    for side in sides:
        side.seconds.clear()
        side.gflop = gflop(lambda side=side: side.step(side.batch))
        if setting.device.type == "cuda":
            free_memory(setting.device)
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            side.step(side.batch)
            side.peak = torch.cuda.max_memory_allocated() - before + side.held


def run(setting: Setting, sides: list[Side]) -> None:
    """Fill in the seconds of an update in each round."""
    for number in range(setting.options.rounds):
        turn = number % len(sides)
        for side in sides[turn:] + sides[:turn]:
            setting.wait()
            began = time.perf_counter()
            for _ in range(setting.options.steps):
                side.step(side.batch)
            setting.wait()
            side.seconds.append((time.perf_counter() - began) / setting.options.steps)


def show(setting: Setting, pixels: int, sides: list[Side], operations: float) -> None:
    """Print a line for each side."""
    print(f"\n{pixels} px, {setting.options.rounds} rounds of {setting.options.steps} updates")
    print(f"{'':16} batch samples/s  GFLOP/sample  of the peak  GB peak   samples/s over {sides[0].name}")
    for side in sides:
        rates = [side.size / seconds for seconds in side.seconds]
        over = [mine * one / sides[0].size for mine, one in zip(rates, sides[0].seconds, strict=True)]
        of_peak = side.gflop * 1e9 / median(side.seconds) / operations
        peak = f"{side.peak / 1e9:7.2f}" if side.peak else f"{'-':>7}"
        print(
            f"{side.name:16} {side.size:5} {median(rates):9.2f} {side.gflop / side.size:13.1f} {of_peak:12.0%}  {peak}"
            f"   {spread(over)}",
            flush=True,
        )


def make_sides(setting: Setting) -> list[Side]:
    """Those that were asked for, the first of which the others are compared with."""
    chosen = [(name, SIDES[name]) for name in setting.options.sides]
    return [reference_side(setting) if way is None else cached_side(setting, name, way) for name, way in chosen]


def parse() -> argparse.Namespace:
    """The command line, with defaults that fit the device."""
    on_gpu = default_device().type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="small")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16" if on_gpu else "fp32")
    parser.add_argument("--batch-size", type=int, default=4 if on_gpu else 2)
    parser.add_argument("--within", type=float, metavar="GB", help="each side at its largest batch in so much memory")
    parser.add_argument("--pixels", type=int, nargs="+", help="512 768; a quarter for the small size")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=USUAL, metavar="SIDE", help=", ".join(SIDES))
    parser.add_argument("--rounds", type=int, default=7 if on_gpu else 5)
    parser.add_argument("--steps", type=int, default=5 if on_gpu else 1)
    add_json_option(parser)
    return parser.parse_args()


def main() -> None:
    """Measure what the options ask for."""
    options, machine = parse(), describe("diffusers", "transformers", "xformers")
    if options.within and default_device().type != "cuda":
        keep(options, machine, show_reckoned("decoder", [options.within]))
        return
    hush_libraries()
    setting, speed = Setting(options), measure()
    figures: dict[str, Any] = {"matrix product, TFLOP/s": speed.operations / 1e12}
    print(
        f"{options.size} size, {options.dtype}, on {speed.name}; a matrix product reaches"
        f" {speed.operations / 1e12:.2f} TFLOP/s"
    )
    sides = make_sides(setting)
    for pixels in options.pixels or ((512, 768) if options.size == "full" else (128, 192)):
        choose_batches(setting, sides, pixels)
        prepare(setting, sides)
        run(setting, sides)
        show(setting, pixels, sides, speed.operations)
        figures[f"{pixels} px"] = {side.name: side.figures for side in sides}
        keep(options, machine, figures)


if __name__ == "__main__":
    main()
