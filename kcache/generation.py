"""Text to picture with what was trained, through the stock pipelines of diffusers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kcache.checkpoints import DECODER, PRIOR, training_record
from kcache.devices import find_device, inference_dtype, torch_dtype
from kcache.grids import grid
from kcache.progress import bar, hush_libraries
from kcache.results import KINDS, load_pipeline
from kcache.shards.errors import KcacheError


@dataclass(frozen=True)
class GenerateConfig:
    """The options of ``kcache generate``; ``prior`` and ``decoder``: a trained OUT, a pipeline folder or a hub id."""

    prompts: tuple[str, ...]
    prior: str = PRIOR
    decoder: str = DECODER
    prior_lora_scale: float | None = None  # 1, where the prior is a LoRA
    decoder_lora_scale: float | None = None
    output: str = "grid.png"
    num_images_per_prompt: int = 1
    negative_prompt: str = ""
    prior_num_inference_steps: int = 25
    prior_guidance_scale: float = 4.0
    num_inference_steps: int = 50
    guidance_scale: float = 4.0
    resolution: int | None = None
    seed: int = 0
    device: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class GenerateReport:
    """What was made."""

    output: str
    pictures: int
    width: int
    height: int


def generate(config: GenerateConfig) -> GenerateReport:
    """Make ``num_images_per_prompt`` pictures of each prompt and write them as one grid, a row for each prompt.

    Picture N of a prompt has the seed ``seed + N``, whatever else is in the grid and on whatever device.
    """
    if not config.prompts:
        raise KcacheError('no prompt was given; write it in quotes: kcache generate "a red fox"')
    _refuse_output(Path(config.output))
    from kcache.training.kept_text import text_run_once

    hush_libraries()
    device = find_device(config.device)
    dtype = torch_dtype(config.dtype) if config.dtype else inference_dtype(device)
    side = config.resolution or _trained_resolution(config.decoder) or 512
    prior = load_pipeline(config.prior, KINDS["prior"], dtype, config.prior_lora_scale)
    decoder = load_pipeline(config.decoder, KINDS["decoder"], dtype, config.decoder_lora_scale)
    for pipeline in (prior, decoder):
        pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
    pictures = []
    pictures_to_make = len(config.prompts) * config.num_images_per_prompt
    with bar(pictures_to_make, "img", "generate") as progress, text_run_once(prior.prior):
        for prompt in config.prompts:
            for number in range(config.num_images_per_prompt):
                pictures.append(_picture(config, prior, decoder, prompt, config.seed + number, side))
                progress.update(1)
    sheet = grid(pictures, columns=config.num_images_per_prompt if config.num_images_per_prompt > 1 else 4)
    Path(config.output).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(config.output)
    return GenerateReport(config.output, len(pictures), *sheet.size)


def _refuse_output(path: Path) -> None:
    """KcacheError, before any picture is made, when a picture cannot be written there."""
    from PIL import Image

    if path.is_dir() or any(parent.is_file() for parent in path.parents):
        raise KcacheError(f"{path} cannot be a picture: it is a folder, or lies below a file; choose another with -o")
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise KcacheError(f"'{path.name}' does not end as a picture does; choose another with -o, such as grid.png")


def _picture(config: GenerateConfig, prior: Any, decoder: Any, prompt: str, seed: int, side: int) -> Any:
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    embeds = prior(
        prompt,
        negative_prompt=config.negative_prompt or None,
        num_inference_steps=config.prior_num_inference_steps,
        guidance_scale=config.prior_guidance_scale,
        generator=generator,
    )
    return decoder(
        image_embeds=embeds.image_embeds,
        negative_image_embeds=embeds.negative_image_embeds,
        height=side,
        width=side,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        generator=generator,
    ).images[0]


def _trained_resolution(decoder: str) -> int | None:
    resolution = training_record(Path(decoder)).get("options", {}).get("resolution")
    return int(resolution) if resolution else None
