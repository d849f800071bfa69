"""Small datasets, and damage to the folders that a command reads."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from commands import done, kcache
from PIL import Image

Damage = Callable[[Path], object]


Train = Callable[..., Any]


def picture(size: tuple[int, int] = (40, 40), kind: str = "PNG") -> bytes:
    """The bytes of a picture that does not compress to nothing."""
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_rows(dataset: Path, captions: dict[str, Any]) -> None:
    """``metadata.jsonl`` with these captions."""
    lines = (json.dumps({"file_name": name, "text": text}) + "\n" for name, text in captions.items())
    (dataset / "metadata.jsonl").write_text("".join(lines), "utf-8")


def set_aside(cache: Path) -> dict[str, str]:
    """What `kcache info --set-aside` lists: the reason by sample."""
    lines = done(kcache("info", cache, "--set-aside")).stdout.splitlines()
    return dict(line.split("\t", 1) for line in lines)


def broken(source: Path, target: Path, damage: Damage) -> Path:
    """A copy of a checkpoint with something done to it."""
    shutil.copytree(source, target)
    damage(target)
    return target


def lacks(component: str) -> Damage:
    return lambda folder: shutil.rmtree(folder / component)
