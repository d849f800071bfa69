"""One step of diffusers' kandinsky2_2/text_to_image scripts, written from their equations, with live encoders.

Nothing here comes from kcache: the tests hold kcache against it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import VQModel
from PIL import Image, ImageOps
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

STEPS = 1000


def open_picture(path: Path) -> Image.Image:
    """A picture as the scripts get it: ``datasets`` turns it upright, and they drop its transparency."""
    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


def open_on_white(path: Path) -> Image.Image:
    """The same with ``alpha * colour + (1 - alpha) * white``."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    values = np.asarray(image).astype(np.float64)
    alpha = values[..., 3:] / 255
    return Image.fromarray(np.round(alpha * values[..., :3] + (1 - alpha) * 255).astype(np.uint8))


@dataclass
class Text:
    """What the text encoder gives for some captions, pad tokens and all."""

    embeds: Tensor
    hidden_states: Tensor
    mask: Tensor


class Encoders:
    """The frozen encoders of two checkpoints, run at every step."""

    def __init__(self, prior: Path, decoder: Path) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(prior / "tokenizer")
        self.processor = CLIPImageProcessorPil.from_pretrained(prior / "image_processor")
        self.text_model = CLIPTextModelWithProjection.from_pretrained(prior / "text_encoder").eval()
        self.image_model = CLIPVisionModelWithProjection.from_pretrained(prior / "image_encoder").eval()
        self.movq = VQModel.from_pretrained(decoder / "movq").eval()

    @torch.no_grad()
    def text(self, captions: Sequence[str]) -> Text:
        """Captions cut or padded to 77 tokens. The encoder is given no mask; the prior will be."""
        tokens = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        )
        output = self.text_model(tokens.input_ids)
        return Text(output.text_embeds, output.last_hidden_state, tokens.attention_mask.bool())

    @torch.no_grad()
    def image_pixels(self, pixels: Tensor) -> Tensor:
        """Embeddings of pixels that the image processor has prepared."""
        embeds: Tensor = self.image_model(pixels).image_embeds
        return embeds

    def image(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Embeddings of pictures (B, D)."""
        return self.image_pixels(self.processor(list(pictures), return_tensors="pt").pixel_values)

    @torch.no_grad()
    def latents(self, pictures: Sequence[Image.Image], resolution: int) -> Tensor:
        """Latents of pictures (B, C, H, W), before quantisation."""
        latents: Tensor = self.movq.encode(torch.stack([square(p, resolution) for p in pictures])).latents
        return latents


def square(picture: Image.Image, resolution: int) -> Tensor:
    """The largest square about the centre, made ``resolution`` wide, in [-1, 1] (3, H, W)."""
    width, height = picture.size
    half = min(width, height) / 2
    box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
    small = picture.crop(box).resize((resolution, resolution), Image.Resampling.BICUBIC, reducing_gap=1)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 127.5 - 1


def cosine_alphas() -> Tensor:
    """The products of alpha of Nichol and Dhariwal 2021, equation 17: the prior's schedule."""

    def signal(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - signal((t + 1) / STEPS) / signal(t / STEPS), 0.999) for t in range(STEPS)]
    return (1 - torch.tensor(betas)).cumprod(0)


def linear_alphas(first: float, last: float) -> Tensor:
    """The products of alpha of Ho et al. 2020: the decoder's schedule."""
    return (1 - torch.linspace(first, last, STEPS)).cumprod(0)


def diffuse(clean: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """x_t (Ho et al. 2020, equation 4)."""
    alphas = alphas.view(-1, *[1] * (clean.dim() - 1))
    return alphas.sqrt() * clean + (1 - alphas).sqrt() * noise


def velocity(clean: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """v (Salimans and Ho 2022, appendix D)."""
    alphas = alphas.view(-1, *[1] * (clean.dim() - 1))
    return alphas.sqrt() * noise - (1 - alphas).sqrt() * clean


def mean_error(predicted: Tensor, target: Tensor, alphas: Tensor, kind: str, gamma: float | None) -> Tensor:
    """Squared error, each sample's weighted as in Hang et al. 2023, section 3.4, where there is a gamma."""
    errors = (predicted - target).square().flatten(1).mean(1)
    if gamma is None:
        return errors.mean()
    snr = alphas / (1 - alphas)
    capped = torch.minimum(snr, torch.full_like(snr, gamma))
    return (errors * {"sample": capped, "epsilon": capped / snr, "v_prediction": capped / (snr + 1)}[kind]).mean()


def prior_loss(
    prior: Any, text: Text, image_embeds: Tensor, noise: Tensor, timesteps: Tensor, gamma: float | None
) -> Tensor:
    """What train_text_to_image_prior.py minimises."""
    alphas = cosine_alphas()[timesteps]
    clean = (image_embeds - prior.clip_mean.detach()) / prior.clip_std.detach()
    predicted = prior(
        diffuse(clean, noise, alphas),
        timestep=timesteps,
        proj_embedding=text.embeds,
        encoder_hidden_states=text.hidden_states,
        attention_mask=text.mask,
    ).predicted_image_embedding
    return mean_error(predicted, clean, alphas, "sample", gamma)


def decoder_loss(
    unet: Any,
    latents: Tensor,
    image_embeds: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    gamma: float | None,
    kind: str = "epsilon",
) -> Tensor:
    """What train_text_to_image_decoder.py minimises (``epsilon``), and the same for a model that predicts v."""
    alphas = linear_alphas(0.00085, 0.012)[timesteps]
    noisy = diffuse(latents, noise, alphas)
    output = unet(noisy, timesteps, None, added_cond_kwargs={"image_embeds": image_embeds}).sample
    target = noise if kind == "epsilon" else velocity(latents, noise, alphas)
    return mean_error(output[:, : latents.shape[1]], target, alphas, kind, gamma)
