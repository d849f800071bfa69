"""Measures updates of the decoder: with MoVQ and CLIP run at each of them, as the reference does, and from the cache.

Run ``python benchmarks/decoder_step.py`` for a small Kandinsky on a CPU (minutes), or with ``--size full`` for the
hub's architecture with random weights on a GPU. The sides take turns in every round, at 512 and at 768 px (a quarter of
them for the small size); printed are medians over rounds of each side's rate over that of the first, with the lowest
and the highest. FLOPs are counted; the peak that their share is of is that of a large matrix product, measured in the
same run.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from architecture import CLIP_VISION, MOVQ, UNET
from flops import gflop

from kcache.devices import default_device, free_memory
from kcache.planning.devices import measure
from kcache.training.config import DecoderConfig
from kcache.training.loop import Objective
from kcache.training.low_memory import FULL
from kcache.training.memory import apply_memory_options
from kcache.training.objectives import Batch, decoder_loss
from kcache.training.optimizers import make_optimizer
from kcache.training.precision import apply_dtypes

SMALL = {
    "vision": {"hidden_size": 208, "intermediate_size": 1024, "projection_dim": 160, "num_hidden_layers": 6}
    | {"num_attention_heads": 4},
    "movq": {"block_out_channels": (32, 32, 64, 64)},
    "unet": {"block_out_channels": (96, 192, 288, 384), "layers_per_block": 1, "attention_head_dim": 32}
    | {"cross_attention_dim": 96, "encoder_hid_dim": 160},
}
"""So that MoVQ and CLIP cost about what they do beside the UNet at full size: 37% and 39% of it at 128 px."""
SIDES: dict[str, dict[str, Any] | None] = {
    "reference": None,
    "cached": {},
    "channels last": {"channels_last": True},
    "checkpointed": {"gradient_checkpointing": True},
    "low memory": FULL,
}
"""By name the options of kcache, or None for the reference's own way."""


@dataclass
class Side:
    """One way to make an update, and what was measured of it."""

    name: str
    step: Callable[[Batch], None]
    held: int
    """Bytes that are this side's own, between updates."""
    seconds: list[float] = field(default_factory=list)
    gflop: float = 0.0
    peak: int = 0


class Setting:
    """The device, the models' shapes, and batches."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, default_device()
        self.dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[options.dtype]
        change: dict[str, Any] = SMALL if options.size == "small" else {"vision": {}, "movq": {}, "unet": {}}
        shapes: dict[str, Any] = {"vision": CLIP_VISION, "movq": MOVQ, "unet": UNET}
        self.shapes = {name: shape | change[name] for name, shape in shapes.items()}
        self.scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False)

    def unet(self) -> Any:
        """A UNet with random weights in fp32, in training mode."""
        with self.device:
            return diffusers.UNet2DConditionModel(**self.shapes["unet"]).train()

    def encoders(self) -> tuple[Any, Any]:
        """MoVQ and CLIP's vision encoder, frozen, in the precision that the reference casts them to."""
        with self.device:
            movq = diffusers.VQModel(**self.shapes["movq"])
            vision = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**self.shapes["vision"]))
        return tuple(one.to(self.dtype).eval().requires_grad_(False) for one in (movq, vision))  # type: ignore[return-value]

    def batch(self, pixels: int) -> Batch:
        """What the reference's loader gives, and what a cache does."""
        size, side, clip = self.options.batch_size, pixels // 8, self.shapes["vision"]["image_size"]
        with self.device:
            return {
                "pixels": torch.randn(size, 3, pixels, pixels, dtype=self.dtype),
                "clip_pixels": torch.randn(size, 3, clip, clip, dtype=self.dtype),
                "latents": torch.randn(size, 4, side, side),
                "image_embeds": torch.randn(size, self.shapes["vision"]["projection_dim"]),
                "noise": torch.randn(size, 4, side, side),
                "timesteps": torch.randint(0, 1000, (size,)),
            }

    def autocast(self, *, enabled: bool = True) -> Any:
        """Mixed precision, as accelerate puts it around the forward of both."""
        return torch.autocast(self.device.type, self.dtype, enabled=enabled and self.dtype != torch.float32)

    def wait(self) -> None:
        """Until the device has done all it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


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
    return Side("reference", step, held)


def cached_side(setting: Setting, name: str, options: dict[str, Any]) -> Side:
    """An update as ``kcache train decoder`` makes it with these options."""
    config = DecoderConfig(cache="", output_dir="", learning_rate=1e-6, **_here(options))
    model = setting.unet()
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

    return Side(name, step, _nbytes(model) * (3 if is_fp32 else 2))


def _here(options: dict[str, Any]) -> dict[str, Any]:
    """The same with AdamW of 32 bits where the package of the other is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return {name: value for name, value in options.items() if name != "optimizer"}
    return options


def _nbytes(model: Any) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def prepare(setting: Setting, sides: list[Side], batch: Batch) -> None:
    """Warm every side up, count its FLOPs and, on a GPU, what it holds at most beside what the others do."""
    for side in sides:
        side.step(batch)
    for side in sides:
        side.seconds.clear()
        side.gflop = gflop(lambda side=side: side.step(batch))
        if setting.device.type == "cuda":
            free_memory(setting.device)
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            side.step(batch)
            side.peak = torch.cuda.max_memory_allocated() - before + side.held


def run(setting: Setting, sides: list[Side], batch: Batch) -> None:
    """Fill in the seconds of an update in each round."""
    for number in range(setting.options.rounds):
        turn = number % len(sides)
        for side in sides[turn:] + sides[:turn]:
            setting.wait()
            began = time.perf_counter()
            for _ in range(setting.options.steps):
                side.step(batch)
            setting.wait()
            side.seconds.append((time.perf_counter() - began) / setting.options.steps)


def show(setting: Setting, pixels: int, sides: list[Side], operations: float) -> None:
    """Print a line for each side."""
    size = setting.options.batch_size
    print(f"\n{pixels} px, batch {size}, {setting.options.rounds} rounds of {setting.options.steps} updates")
    print(f"{'':14} samples/s  GFLOP/sample  of the peak  GB peak   samples/s over {sides[0].name}")
    for side in sides:
        over = [first / mine for first, mine in zip(sides[0].seconds, side.seconds, strict=True)]
        of_peak = side.gflop * 1e9 / median(side.seconds) / operations
        peak = f"{side.peak / 1e9:7.2f}" if side.peak else f"{'-':>7}"
        print(
            f"{side.name:14} {size / median(side.seconds):9.2f} {side.gflop / size:13.1f} {of_peak:12.0%}  {peak}"
            f"   {median(over):.2f}x [{min(over):.2f}, {max(over):.2f}]",
            flush=True,
        )


def main() -> None:
    """Measure what the options ask for."""
    on_gpu = default_device().type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="small")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16" if on_gpu else "fp32")
    parser.add_argument("--batch-size", type=int, default=4 if on_gpu else 2)
    parser.add_argument("--pixels", type=int, nargs="+", help="512 768; a quarter for the small size")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=7 if on_gpu else 5)
    parser.add_argument("--steps", type=int, default=5 if on_gpu else 1)
    options = parser.parse_args()
    setting, speed = Setting(options), measure()
    print(
        f"{options.size} size, {options.dtype}, on {speed.name}; a matrix product reaches"
        f" {speed.operations / 1e12:.2f} TFLOP/s"
    )
    chosen = [(name, SIDES[name]) for name in options.sides]
    sides = [reference_side(setting) if way is None else cached_side(setting, name, way) for name, way in chosen]
    for pixels in options.pixels or ((512, 768) if options.size == "full" else (128, 192)):
        batch = setting.batch(pixels)
        prepare(setting, sides, batch)
        run(setting, sides, batch)
        show(setting, pixels, sides, speed.operations)
        for side in sides:
            side.seconds.clear()


if __name__ == "__main__":
    main()
