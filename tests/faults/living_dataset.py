"""A folder of pictures that changes: every kind of picture, caption and name, on disk and as plain dictionaries."""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from made_pictures import saved
from PIL import Image
from tiny import LONG_CAPTION

Captions = str | list[str] | None
"""What ``text`` of a row says; an empty list and None are no caption."""

NAMES = (
    *("a.png", "b.png", "c d.PNG", "-x.png", "more/möhre.png", "more/deep/mo\u0308hre.png", "胡萝卜 🥕.png"),
    *("جزر.png", "a\u202eb.png", "50% #1?.png", 'it\'s "quoted".png', "tab\there.png", "more/a.png"),
)
"""Names of pictures; they say nothing of what is in the files."""

CAPTIONS = (
    *("", " ", "a", "red apple", "a red apple on a tree", LONG_CAPTION, "word " * 75, "e\u0301cole", "école"),
    *(
        "جزر أحمر",
        "שלום a b",
        "👩‍👩‍👧‍👦 🏳️‍🌈",
        "胡萝卜",
        "two\nlines",
        "next\x85line\u2028and\u2029more",
        'a "quoted" one',
        "nul\0",
    ),
    *("\x1b[31mred", "\ufeffmarked", "a\\b", "Ａ full width", "ß ẞ ﬁ"),
)

BROKEN = {"empty": b"", "text": b"buy milk"}
"""Files that no encoder can read."""


def _pictures() -> dict[str, bytes]:
    """One picture of every mode and of several sizes, by what it is."""
    rng = np.random.default_rng(0)

    def noise(width: int, height: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8))

    deep = Image.fromarray(rng.integers(0, 65535, (12, 20), np.uint16))
    return {
        "rgb": saved(noise(20, 24), "PNG"),
        "wide": saved(noise(61, 9), "PNG"),
        "one pixel": saved(noise(1, 1), "PNG"),
        "tall jpeg": saved(noise(13, 40), "JPEG"),
        "grey": saved(noise(17, 17).convert("L"), "PNG"),
        "see-through": saved(noise(24, 16).convert("RGBA"), "PNG"),
        "palette": saved(noise(21, 22).convert("P"), "GIF"),
        "bits": saved(noise(18, 30).convert("1"), "PNG"),
        "print": saved(noise(16, 16).convert("CMYK"), "JPEG"),
        "deep": saved(deep, "PNG"),
        "webp": saved(noise(33, 20), "WEBP"),
    }


PICTURES = _pictures()
BROKEN["cut"] = PICTURES["rgb"][:-200]
CONTENTS = PICTURES | BROKEN
WHOLE = {hashlib.sha256(data).hexdigest() for data in PICTURES.values()}
"""sha256 of all pictures that can be decoded."""


@dataclass(frozen=True)
class Found:
    """One sample as it is now. ``fault`` says why it cannot be encoded, whatever its picture is."""

    captions: tuple[str, ...]
    sha256: str | None = None
    fault: str | None = None


@dataclass
class LivingDataset:
    """The pictures and rows of a folder. All changes go to the disk at once."""

    folder: Path
    pictures: dict[str, bytes] = field(default_factory=dict)
    rows: dict[str, Captions] = field(default_factory=dict)
    changes: int = 0

    @property
    def samples(self) -> Mapping[str, Found]:
        """What an encode is to find, by id, in its order."""
        return {name: self._sample(name) for name in sorted(self.pictures.keys() | self.rows.keys())}

    def _sample(self, name: str) -> Found:
        if name not in self.rows:
            return Found((), fault="no row")
        text = self.rows[name]
        captions = (text,) if isinstance(text, str) else tuple(text or ())
        if name not in self.pictures:
            return Found(captions, fault="no file")
        if not captions:
            return Found((), fault="no caption")
        return Found(captions, hashlib.sha256(self.pictures[name]).hexdigest())

    @property
    def is_readable(self) -> bool:
        """Whether any sample may be encoded: a dataset without one is refused as a mistake."""
        return any(found.fault is None for found in self.samples.values())

    def add(self, name: str, picture: str, text: Captions) -> None:
        """Add a picture, or replace it and leave its row as it is."""
        self._put(name, CONTENTS[picture])
        self.rows.setdefault(name, text)
        self._write_rows()

    def caption_anew(self, name: str, text: Captions) -> None:
        """Give a picture another caption, or its lost row again."""
        if name in self.pictures:
            self.rows[name] = text
            self._write_rows()

    def lose_a_row(self, name: str) -> None:
        """Take the row of a picture away."""
        self.rows.pop(name, None)
        self._write_rows()

    def replace(self, name: str, picture: str) -> None:
        """Write another picture under a name, or what is none."""
        if name in self.pictures:
            self._put(name, CONTENTS[picture])

    def lose_a_picture(self, name: str, and_row: bool) -> None:
        """Remove a picture, its row with it or not."""
        if name in self.pictures:
            (self.folder / name).unlink()
            del self.pictures[name]
        if and_row:
            self.lose_a_row(name)

    def move(self, old: str, new: str) -> None:
        """Rename a picture, as ``mv`` does: over what is there. Its row goes with it."""
        if old not in self.pictures or old == new:
            return
        os.replace(self.folder / old, self._place(new))
        self.pictures[new] = self.pictures.pop(old)
        self.rows.pop(new, None)
        if old in self.rows:
            self.rows[new] = self.rows.pop(old)
        self._write_rows()

    def exchange(self, one: str, other: str) -> None:
        """Let two pictures have each other's name; their rows stay."""
        if one == other or not {one, other} <= self.pictures.keys():
            return
        aside = self.folder / "aside"
        (self.folder / one).rename(aside), (self.folder / other).rename(self.folder / one)
        aside.rename(self.folder / other)
        self.pictures[one], self.pictures[other] = self.pictures[other], self.pictures[one]

    def copy(self, one: str, other: str, text: Captions) -> None:
        """Put the same picture under a second name."""
        if one in self.pictures:
            self._put(other, self.pictures[one])
            self.rows[other] = text
            self._write_rows()

    def _put(self, name: str, data: bytes) -> None:
        """Write a picture. Its time of change is an hour ago, so that it is believed, and like no other's."""
        path = self._place(name)
        path.write_bytes(data)
        self.changes += 1
        then = time.time_ns() - 3600 * 10**9 + self.changes
        os.utime(path, ns=(then, then))
        self.pictures[name] = data

    def _write_rows(self) -> None:
        lines = (json.dumps({"file_name": name, "text": text}, ensure_ascii=False) for name, text in self.rows.items())
        (self.folder / "metadata.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")

    def _place(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
