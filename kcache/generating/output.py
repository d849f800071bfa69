"""Where pictures go: into one file, as a picture or a grid, or each into a file of its own in a folder with a grid."""

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from kcache.grids import Group, grid, labelled_sheet
from kcache.shards.errors import KcacheError

from .wanted import Wanted

GRID = "grid.png"
"""The name of the grid in a folder of pictures."""

MOST = 400
"""Pictures on one grid at most; as many of 512 px take 0.3 GB."""

COLUMNS = 4
"""Pictures in a row of a grid in which each prompt has one."""


def is_folder(output: str) -> bool:
    """Whether a name means a folder: by a slash at its end, or because it is one."""
    return output.endswith(("/", os.sep)) or Path(output).is_dir()


def refuse_output(output: str, count: int) -> None:
    """KcacheError, before any picture is made, when ``count`` pictures cannot be written there."""
    path = Path(output)
    if any(parent.is_file() for parent in (path, *path.parents) if parent != path or output.endswith(("/", os.sep))):
        raise KcacheError(f"{path} cannot be written: it lies below a file, or is one; choose another with -o")
    if is_folder(output):
        if path.is_dir() and any(path.iterdir()):
            raise KcacheError(
                f"the folder {path} is not empty, and nothing is written over there; choose a new one with -o"
            )
        return
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise KcacheError(
            f"'{path.name}' does not end as a picture does; choose another with -o, such as grid.png, or a folder with"
            f" a slash at its end: {path}/"
        )
    if count > MOST:
        raise KcacheError(
            f"{count:,} pictures are more than a grid's {MOST}; name a folder: -o {path.with_suffix('')}/"
        )


def write_files(
    folder: Path, pictures: Iterator[Image.Image], wanted: Sequence[Wanted], text: Callable[[Wanted], Any]
) -> list[Image.Image]:
    """Write each picture as it is made; those that a grid will show are given back. ``text``: what its PNG holds."""
    folder.mkdir(parents=True, exist_ok=True)
    width = max(3, len(str(len(wanted))))
    kept = []
    for number, (picture, one) in enumerate(zip(pictures, wanted, strict=True), 1):
        picture.save(folder / f"{number:0{width}}-{_slug(str(one.subject))}-seed-{one.seed}.png", pnginfo=text(one))
        if len(wanted) <= MOST:
            kept.append(picture)
    return kept


def sheet(pictures: Sequence[Image.Image], wanted: Sequence[Wanted], images: int, *, captions: bool) -> Image.Image:
    """One picture as it is, or a row for each prompt with several; with captions those of a prompt over its text."""
    if captions:
        return labelled_sheet([("", _groups(pictures, wanted))])
    return grid(pictures, columns=images if images > 1 else COLUMNS)


def save(picture: Image.Image, path: Path, text: Any) -> None:
    """Write a picture or a grid; ``text`` into a PNG alone, since other formats have no such place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **({"pnginfo": text} if path.suffix.lower() == ".png" else {}))


def _groups(pictures: Sequence[Image.Image], wanted: Sequence[Wanted]) -> list[Group]:
    groups = []
    for subject, pairs in groupby(zip(pictures, wanted, strict=True), lambda pair: pair[1].subject):
        shown, ones = zip(*pairs, strict=True)
        labels = [f"seed {one.seed}" if len(ones) > 1 else "" for one in ones]
        groups.append(Group(str(subject), shown, labels))
    return groups


def _slug(text: str) -> str:
    """What of a prompt a file name can hold on any system: up to 40 letters and digits, dashes between words."""
    words = re.findall(r"\w+", unicodedata.normalize("NFC", text).lower())
    return "-".join(words)[:40].rstrip("-") or "picture"
