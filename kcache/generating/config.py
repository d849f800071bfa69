"""The options of `kcache generate`, and what it reports."""

from dataclasses import dataclass

from kcache.checkpoints import DECODER, PRIOR


@dataclass(frozen=True)
class GenerateConfig:
    """The options of ``kcache generate``; ``prior`` and ``decoder``: a trained OUT, a pipeline folder or a hub id."""

    prompts: tuple[str, ...] = ()
    prompts_file: str | None = None
    mix: tuple[str, ...] = ()
    negative_prompt: str = ""
    seed: int = 0
    num_images_per_prompt: int = 1
    init_image: str | None = None
    mask_image: str | None = None
    strength: float | None = None  # STRENGTH of an init image alone, 1 with a mask
    prior: str = PRIOR
    decoder: str = DECODER
    prior_lora_scale: float | None = None  # 1, where the prior is a LoRA
    decoder_lora_scale: float | None = None
    prior_num_inference_steps: int = 25
    prior_guidance_scale: float = 4.0
    num_inference_steps: int = 50
    guidance_scale: float = 4.0
    scheduler: str | None = None  # the decoder's own
    resolution: int | None = None  # what the decoder was trained at, or 512
    output: str = "grid.png"
    captions: bool = False
    metadata: bool = True
    batch_size: int = 1
    device: str | None = None
    offload: bool = False
    dtype: str | None = None


STRENGTH = 0.3
"""How much of an init image is painted anew where nobody says otherwise, as in the stock pipeline."""


@dataclass(frozen=True)
class GenerateReport:
    """What was made. ``width`` and ``height``: of the one picture or the grid, 0 where there is none."""

    output: str
    pictures: int
    width: int
    height: int
    folder: bool = False
