"""Inpainting with a UNet that knows nothing of masks, in the manner of RePaint (Lugmayr et al. 2022)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

Callback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


def keeping_outside(
    pipeline: Any, picture_BCHW: Tensor, mask_BCHW: Tensor, generators: list[torch.Generator]
) -> Callback:
    """A callback of ``KandinskyV22Img2ImgPipeline`` by which it paints within a mask only.

    The UNet denoises all of the latents, and so sees around the mask what it has to fit in with. After each step the
    latents outside are replaced by those of the picture, noised to where the next step begins, and after the last step
    by those of the picture itself: equation 8 of the paper, without its going back and forth in time. The noise of the
    picture is drawn once, so that what lies outside takes a straight way.

    ``picture_BCHW`` in [-1, 1], ``mask_BCHW`` one channel with 1 where it is painted; both at the size in pixels.
    """
    with torch.no_grad():
        latents = pipeline.movq.encode(picture_BCHW)["latents"]
    noise = randn_tensor(latents.shape, generator=generators, device=latents.device, dtype=latents.dtype)
    # A latent that shares one pixel with the mask is painted: what is painted may be too large, and never has a rim.
    painted = F.adaptive_max_pool2d(mask_BCHW, latents.shape[-2:])

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        later = pipe.scheduler.timesteps[pipe.scheduler.timesteps < timestep]
        outside = pipe.scheduler.add_noise(latents, noise, later[:1].expand(len(latents))) if len(later) else latents
        return {"latents": painted * tensors["latents"] + (1 - painted) * outside}

    return callback
