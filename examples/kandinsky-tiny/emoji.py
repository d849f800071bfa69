"""The Fluent emoji as tensors, and which hundred of them are held out of training."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
HELD_OUT = 100


@dataclass(frozen=True)
class Emoji:
    """One picture on white, 256 px, and its name."""

    file_name: str
    text: str
    picture: Image.Image


def on_white(path: Path) -> Image.Image:
    """The picture as RGB, with what is transparent white."""
    with Image.open(path) as opened:
        rgba = opened.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def read_rows(folder: Path) -> list[dict[str, str]]:
    """`file_name` and `text` of every picture, in the order of `metadata.jsonl`."""
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def read_emoji(folder: Path) -> list[Emoji]:
    """Every picture that `metadata.jsonl` names, in its order."""
    return [Emoji(row["file_name"], row["text"], on_white(folder / row["file_name"])) for row in read_rows(folder)]


def held_out_texts(texts: list[str]) -> set[str]:
    """One skin tone of every few bases, 100 captions in all: seen parts in a combination that was not seen."""
    bases = sorted({text.split(":")[0] for text in texts if text.endswith(": light skin tone")})
    chosen = bases[:: max(1, len(bases) // HELD_OUT)][:HELD_OUT]
    return {f"{base}: {TONES[place % len(TONES)]} skin tone" for place, base in enumerate(chosen)}


def clip_pixels(emoji: list[Emoji], processor: CLIPImageProcessorPil) -> torch.Tensor:
    """What CLIP vision sees: (N, 3, 64, 64), normalised."""
    batches = [
        processor([one.picture for one in emoji[start : start + 256]], return_tensors="pt").pixel_values
        for start in range(0, len(emoji), 256)
    ]
    return torch.cat(batches).float()


def movq_pixels(emoji: list[Emoji], side: int) -> torch.Tensor:
    """What MoVQ sees, resized as the reference training scripts do: (N, 3, side, side) in [-1, 1]."""
    return torch.stack([to_movq(one.picture, side) for one in emoji])


def to_movq(picture: Image.Image, side: int) -> torch.Tensor:
    resized = picture.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=1)
    values: NDArray[np.float32] = np.asarray(resized, dtype=np.float32) / np.float32(127.5) - np.float32(1.0)
    return torch.from_numpy(values).permute(2, 0, 1)
