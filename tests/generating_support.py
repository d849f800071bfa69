"""What the tests of `kcache generate` share: tiny pipelines of every kind, a photo and a mask, and few steps."""

from pathlib import Path

from PIL import Image, ImageDraw
from pipelines import make_pipelines

from kcache.generating.config import GenerateConfig

SIDE = 32
QUICK = ("--prior-num-inference-steps=2", "--num-inference-steps=2", "--resolution=32", "--device=cpu")


def make_folder(folder: Path, prior: Path, decoder: Path) -> Path:
    """Pipelines of every kind, and what to begin from: ``photo.png``, and ``mask.png`` with a white right half."""
    make_pipelines(folder, prior, decoder)
    photo = Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * n).resize((SIDE, SIDE)) for n in range(3)])
    photo.save(folder / "photo.png")
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).rectangle((SIDE // 2, 0, SIDE, SIDE), fill=255)
    mask.save(folder / "mask.png")
    return folder


def quick_config(folder: Path) -> GenerateConfig:
    """Two steps of each of the tiny pipelines."""
    return GenerateConfig(
        prior=str(folder / "prior"),
        decoder=str(folder / "decoder"),
        prior_num_inference_steps=2,
        num_inference_steps=2,
        resolution=SIDE,
        device="cpu",
    )
