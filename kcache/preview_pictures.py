"""Pictures of a cache, for `kcache preview`: decoded from latents by MoVQ in batches, as tiles of WebP sheets."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kcache.checkpoints import Checkpoint
from kcache.devices import inference_dtype
from kcache.fitting import is_by_encoder_of
from kcache.preview_samples import Features
from kcache.progress import bar, hush_libraries
from kcache.shards import Cache, KcacheError

ACROSS = 12
"""Tiles in a row of a sheet, which has as many rows: 144 pictures."""


class Decoder:
    """MoVQ of a decoder's checkpoint."""

    def __init__(self, cache: Cache, column: str, name: str, device: torch.device) -> None:
        """Load it. KcacheError where it is not the one that encoded the column, or is not to be had."""
        checkpoint = Checkpoint(name)
        made = cache.column(column)
        if is_by_encoder_of(checkpoint, made, "movq") is False:
            raise KcacheError(
                f"column '{column}' of {cache.name} was encoded with another movq (from {made.notes.get('from')}) than"
                f" that of {name}, which would show other pictures; name that decoder with"
                " --pretrained-decoder-model-name-or-path, or leave pictures out with --no-pictures"
            )
        from diffusers import VQModel

        hush_libraries()
        self.device, self._dtype = device, inference_dtype(device)
        self._movq: Any = checkpoint.component("movq").load(VQModel, self._dtype).requires_grad_(False).to(device)

    def decode(self, latents: Sequence[Tensor]) -> list[Image.Image]:
        """Pictures of latents (C, H, W) of any shapes; those of one shape in one batch."""
        shapes = list(dict.fromkeys(tuple(one.shape) for one in latents))
        pictures: dict[int, Image.Image] = {}
        for shape in shapes:
            which = [i for i, one in enumerate(latents) if tuple(one.shape) == shape]
            batch = torch.stack([latents[i] for i in which]).to(self.device, self._dtype)
            with torch.no_grad():
                pixels = self._movq.decode(batch, force_not_quantize=True).sample
            pixels = (pixels.float() * 127.5 + 127.5).nan_to_num().clamp(0, 255).round().byte().cpu()
            for i, one in zip(which, pixels.permute(0, 2, 3, 1).numpy(), strict=True):
                pictures[i] = Image.fromarray(one)
        return [pictures[i] for i in range(len(latents))]


def sheets(features: Features, decoder: Decoder, tile: int, batch_size: int) -> Iterator[tuple[list[int], bytes]]:
    """The pictures of all samples of a column: which samples are on a sheet, row by row, and the sheet as WebP."""
    with bar(len(features.numbers), "pictures", "decoding") as progress:
        for start in range(0, len(features.numbers), ACROSS**2):
            numbers = features.numbers[start : start + ACROSS**2]
            sheet = Image.new("RGBA", (ACROSS * tile, -(-len(numbers) // ACROSS) * tile))
            for first in range(0, len(numbers), batch_size):
                some = numbers[first : first + batch_size]
                for i, picture in enumerate(decoder.decode([features.latents(number) for number in some]), first):
                    small = fitted(picture, tile)
                    left, top = (tile - small.width) // 2, (tile - small.height) // 2
                    sheet.paste(small, (i % ACROSS * tile + left, i // ACROSS * tile + top))
                progress.update(len(some))
            yield numbers, _webp(sheet)
    features.reader.close()


def fitted(picture: Image.Image, tile: int) -> Image.Image:
    """A picture as large as a tile holds whole."""
    scale = tile / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _webp(sheet: Image.Image) -> bytes:
    written = io.BytesIO()
    sheet.save(written, "WEBP", quality=82)
    return written.getvalue()
