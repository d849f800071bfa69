"""Whole tiny pipelines in the hub's layout, of every kind that Kandinsky 2.2 has, and runs of each."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    KandinskyV22ControlnetPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from PIL import Image
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

WIDTH, SIDE = 16, 32


def make_pipelines(folder: Path, prior: Path, decoder: Path) -> Path:
    """``prior``, ``decoder``, ``inpaint`` and ``controlnet`` in ``folder``, from tiny components."""
    pipeline = KandinskyV22PriorPipeline(
        PriorTransformer.from_pretrained(prior / "prior"),
        CLIPVisionModelWithProjection.from_pretrained(prior / "image_encoder"),
        CLIPTextModelWithProjection.from_pretrained(prior / "text_encoder"),
        CLIPTokenizer.from_pretrained(prior / "tokenizer"),
        UnCLIPScheduler.from_pretrained(prior / "scheduler"),
        CLIPImageProcessorPil.from_pretrained(prior / "image_processor"),
    )
    pipeline.save_pretrained(folder / "prior")
    unet = UNet2DConditionModel.from_pretrained(decoder / "unet")
    parts = {
        "scheduler": DDPMScheduler.from_pretrained(decoder / "scheduler"),
        "movq": VQModel.from_pretrained(decoder / "movq"),
    }
    KandinskyV22Pipeline(unet, **parts).save_pretrained(folder / "decoder")
    (folder / "decoder" / "README.md").write_text(f"---\nprior:\n- {folder / 'prior'}\n---\n")
    # As the hub's: beside the latents a masked picture's and the mask; or what a hint is made into.
    inpaint, controlnet = (
        _relative(unet, in_channels=9),
        _relative(unet, in_channels=8, addition_embed_type="image_hint"),
    )
    KandinskyV22InpaintPipeline(inpaint, **parts).save_pretrained(folder / "inpaint")
    KandinskyV22ControlnetPipeline(controlnet, **parts).save_pretrained(folder / "controlnet")
    return folder


def _relative(unet: Any, **changes: Any) -> Any:
    """A UNet of another kind whose weights are near those of ``unet`` and not the same, as a fine-tuned one's are."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        relative = UNet2DConditionModel.from_config({**unet.config, **changes})
        with torch.no_grad():
            for name, weight in relative.state_dict().items():
                own = unet.state_dict().get(name)
                if own is not None and own.shape == weight.shape:
                    weight.copy_(own + 0.01 * torch.randn_like(own))
    return relative


def embeds(seed: int = 0) -> dict[str, torch.Tensor]:
    """An image embedding, and a negative one."""
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, 1, WIDTH, generator=generator)
    return {"image_embeds": both[0], "negative_image_embeds": both[1]}


def picture() -> Image.Image:
    """A picture that is no plain colour."""
    return Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB")


def run_decoder(pipeline: Any) -> torch.Tensor:
    """The picture (1, 3, H, W) that any decoder pipeline makes of fixed inputs, in two steps."""
    more: dict[str, Any] = {"height": SIDE, "width": SIDE, "num_inference_steps": 2}
    name = type(pipeline).__name__
    if "Inpaint" in name:
        mask = torch.zeros(1, 1, SIDE, SIDE)
        mask[..., SIDE // 2 :] = 1
        more |= {"image": _pixels(), "mask_image": mask}
    if "Img2Img" in name:
        more |= {"image": _pixels() if "Controlnet" in name else picture(), "strength": 1.0}
    if "Controlnet" in name:
        # The hint is shrunk by 8, as the MoVQ of the hub shrinks a picture; the tiny one shrinks by 4.
        more["hint"] = torch.randn(1, 3, 2 * SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(1))
    pipeline.set_progress_bar_config(disable=True)
    made: torch.Tensor = pipeline(
        **embeds(), **more, generator=torch.Generator().manual_seed(0), output_type="pt"
    ).images
    return made


def run_prior(pipeline: Any, prompt: str = "a red fox") -> torch.Tensor:
    """The image embedding (1, D) that a prior makes of a prompt, in two steps."""
    pipeline.set_progress_bar_config(disable=True)
    made: torch.Tensor = pipeline(
        prompt, num_inference_steps=2, generator=torch.Generator().manual_seed(0)
    ).image_embeds
    return made


def _pixels() -> torch.Tensor:
    return torch.linspace(-1, 1, SIDE).expand(1, 3, SIDE, SIDE).contiguous()
