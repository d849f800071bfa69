"""The decoder's models with random weights, small or at full size, and the batches that all sides get."""

import argparse
from typing import Any

import diffusers
import torch
import transformers
from architecture import CLIP_VISION, MOVQ, UNET

from kcache.devices import default_device
from kcache.training.objectives import Batch

SMALL = {
    "vision": {"hidden_size": 208, "intermediate_size": 1024, "projection_dim": 160, "num_hidden_layers": 6}
    | {"num_attention_heads": 4},
    "movq": {"block_out_channels": (32, 32, 64, 64)},
    "unet": {"block_out_channels": (96, 192, 288, 384), "layers_per_block": 1, "attention_head_dim": 32}
    | {"cross_attention_dim": 96, "encoder_hid_dim": 160},
}
"""So that MoVQ and CLIP cost about what they do beside the UNet at full size: 37% and 39% of it at 128 px."""


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

    def batch(self, pixels: int, size: int) -> Batch:
        """What the reference's loader gives, and what a cache does, of ``size`` samples."""
        side, clip = pixels // 8, self.shapes["vision"]["image_size"]
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
