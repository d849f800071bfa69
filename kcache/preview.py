"""What is in a cache, as a page to look at: one file, or beyond some thousands of samples one and a folder."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from kcache import __version__, pages
from kcache.cache_card import public_name
from kcache.checkpoints import DECODER
from kcache.devices import default_batch_size, find_device
from kcache.encoded_with import encoded_with
from kcache.preview_near import almost_equal, groups, neighbours, outliers
from kcache.preview_pictures import ACROSS, Decoder, sheets
from kcache.preview_samples import Features, Sample, plainest, read_samples, same_content
from kcache.shards import Cache, KcacheError, durable

INSIDE = 4000
"""Samples up to which a page holds all that it shows."""

_PART = 2000
"""Samples in one file beside a page."""

_MARK = b'<meta name="generator" content="kcache preview'
_OWN = re.compile(r"(rows|sheet)-\d+-[0-9a-f]{12}\.(js|webp)|\.tmp-.*")


@dataclass(frozen=True)
class PreviewConfig:
    """The options of ``kcache preview``."""

    cache: str
    output: str = "page.html"
    rows: int | None = None
    pictures: bool = True
    picture_size: int = 128
    pretrained_decoder_model_name_or_path: str | None = None
    batch_size: int | None = None
    device: str | None = None


@dataclass(frozen=True)
class WrittenPreview:
    """What was written."""

    output: str
    samples: int
    pictures: int
    bytes: int
    files: int
    """Files in the folder beside the page, which it needs; 0 where it holds everything."""
    folder: str


def preview(config: PreviewConfig, inside: int = INSIDE) -> WrittenPreview:
    """Write the page. KcacheError for a file that is no such page, and a decoder that did not encode the cache."""
    output = Path(config.output)
    folder = output.with_name(f"{output.stem}-files")
    _require_ours(output, folder)
    cache, device = Cache(config.cache), find_device(config.device)
    samples = read_samples(cache, config.rows)
    image = plainest(cache, "image")
    rows = list(_rows(samples, Features(cache, image, samples) if image else None, device))
    writer = _Writer(folder, beside=len(samples) > inside)
    latents = plainest(cache, "latents") if config.pictures else None
    shown = _add_pictures(rows, cache, latents, samples, config, device, writer) if latents else 0
    parts = [rows[i : i + _PART] for i in range(0, len(rows), _PART)] if writer.beside else []
    names = [writer.keep("rows", i, "js", _script(part)) for i, part in enumerate(parts)]
    data = {
        "rows": [] if parts else rows,
        "parts": names,
        "count": len(rows),
        "sheets": writer.sheets,
        "across": ACROSS,
        "tile": config.picture_size,
        "hasPictures": bool(shown),
        "hasNeighbours": image is not None,
    }
    page = _page(cache, data, _said(config, latents, image, shown)).encode(errors="replace")
    durable.replace(output, page)
    writer.clear_others()
    return WrittenPreview(str(output), len(rows), shown, len(page) + writer.bytes, len(writer.kept), str(folder))


def _require_ours(output: Path, folder: Path) -> None:
    """Nothing that `kcache preview` did not write is written over."""
    if output.is_dir() or any(parent.is_file() for parent in output.parents):
        raise KcacheError(f"{output} cannot be a page: it is a folder, or lies below a file; choose another with -o")
    foreign = "kcache preview did not write; move it away, or choose another page with -o"
    if output.exists():
        with output.open("rb") as file:
            if _MARK not in file.read(4096):
                raise KcacheError(f"{output} is a file that {foreign}")
    if folder.is_file() or (folder.is_dir() and not all(_OWN.fullmatch(path.name) for path in folder.iterdir())):
        raise KcacheError(f"{folder} holds what {foreign}")


def _rows(samples: list[Sample], features: Features | None, device: torch.device) -> Iterator[dict[str, Any]]:
    """Each sample as the page's script takes it; what it has not is left out."""
    rows = [_row(sample) for sample in samples]
    for number, group in enumerate(groups(same_content(samples))):
        for i in group:
            rows[i]["same"] = number
    if features is not None and features.numbers:
        _add_neighbours(rows, features, device)
    yield from rows


def _row(sample: Sample) -> dict[str, Any]:
    row = {"id": sample.id, "captions": sample.captions, "aside": sample.aside, "cut": sample.cut, "size": sample.size}
    return {name: value for name, value in row.items() if value not in (None, [])} | {"captions": sample.captions}


def _add_neighbours(rows: list[dict[str, Any]], features: Features, device: torch.device) -> None:
    embeds, numbers = features.stacked("image_embeds"), features.numbers
    index, similarity = neighbours(embeds, device)
    norms = torch.linalg.vector_norm(embeds, dim=1, dtype=torch.float32).numpy()
    for i, number in enumerate(numbers):
        rows[number]["near"] = [[numbers[j], round(float(s), 3)] for j, s in zip(index[i], similarity[i], strict=True)]
        rows[number]["norm"] = float(f"{norms[i]:.5g}") if norms[i] < float("inf") else None
    for i in outliers(norms):
        rows[numbers[i]]["outlier"] = 1
    for group, members in enumerate(almost_equal(index, similarity)):
        for i in members:
            rows[numbers[i]]["almost"] = group


class _Writer:
    """Where sheets go: into the page, or as files into a folder, under names that tell what is in them."""

    def __init__(self, folder: Path, *, beside: bool) -> None:
        self.folder, self.beside = folder, beside
        self.kept, self.sheets, self.bytes = set[str](), list[str](), 0

    def add_sheet(self, webp: bytes) -> None:
        """Take one more sheet, and note the address that the page has it under."""
        if self.beside:
            self.sheets.append(self.keep("sheet", len(self.sheets), "webp", webp))
        else:
            self.sheets.append(f"data:image/webp;base64,{base64.b64encode(webp).decode()}")

    def keep(self, kind: str, number: int, ending: str, data: bytes) -> str:
        """Write a file, and return its address as seen from the page."""
        name = f"{kind}-{number}-{hashlib.sha256(data).hexdigest()[:12]}.{ending}"
        durable.replace(self.folder / name, data)
        self.kept.add(name)
        self.bytes += len(data)
        return f"{quote(self.folder.name)}/{name}"

    def clear_others(self) -> None:
        """Remove what an earlier page needed, once the new one is in its place."""
        if not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            if path.name not in self.kept:
                path.unlink()
        if not self.kept:
            self.folder.rmdir()


def _add_pictures(
    rows: list[dict[str, Any]],
    cache: Cache,
    column: str,
    samples: list[Sample],
    config: PreviewConfig,
    device: torch.device,
    writer: _Writer,
) -> int:
    """Decode the pictures and note for each row its sheet and its place there; how many there are."""
    notes = ((name, cache.column(name).notes) for name in cache.column_names())
    name = config.pretrained_decoder_model_name_or_path or encoded_with(notes).get("decoder", DECODER)
    features = Features(cache, column, samples)
    decoder = Decoder(cache, column, name, device)
    batch = config.batch_size or default_batch_size(device)
    for sheet, (numbers, webp) in enumerate(sheets(features, decoder, config.picture_size, batch)):
        writer.add_sheet(webp)
        for place, number in enumerate(numbers):
            rows[number]["at"] = [sheet, place]
    return len(features.numbers)


def _said(config: PreviewConfig, latents: str | None, image: str | None, shown: int) -> list[str]:
    """What the page tells of what is not on it."""
    notes = []
    if not config.pictures:
        notes.append("Without pictures, as --no-pictures asked.")
    elif latents is None:
        notes.append("This cache holds no latents, so there are no pictures to show; captions are below.")
    elif shown:
        notes.append(f"Pictures are what MoVQ makes of the latents in '{latents}': what the decoder learns from.")
    if image is None:
        notes.append("It holds no image embeddings, so there are no neighbours.")
    return notes


def _script(rows: list[dict[str, Any]]) -> bytes:
    """Rows as a script: a page that lies in a folder may load scripts, and nothing else that it could read."""
    text = json.dumps(rows, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f"addRows({text});\n".encode()


def _page(cache: Cache, data: dict[str, Any], notes: list[str]) -> str:
    script, style = pages.asset("preview", "page.js"), pages.asset("preview", "page.css")
    return pages.render(
        pages.asset("preview", "page.html"),
        name=public_name(cache.name),
        made=datetime.now(UTC),
        version=__version__,
        notes=notes,
        data=data,
        script=script,
        style=style,
        policy=pages.policy(script, style, " 'self' file:" if data["parts"] else ""),
    )
