"""A table that holds its images. A row's id is the sha256 of its image, or what ``--id-column`` says."""

import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

from kcache.fingerprints import file_sha256
from kcache.progress import bar

from .dataset import DatasetOptions, Sample, Stat, stat_of
from .memory import Scans
from .rows import RowReader

Cell = bytes | Path | None
"""An image in a table: its bytes, the file that has them, or nothing."""


@dataclass(frozen=True)
class Part:
    """Some consecutive rows, and the file that holds them (``key`` names it and the column; ``stat`` None: no file)."""

    key: Sequence[object]
    stat: Stat | None
    start: int
    stop: int
    holds_all: bool
    """Whether the bytes of all its images are known to lie in this file, and none in files that it names."""


class ImageRows(Protocol):
    """The image column of a table, best read in order of its rows. May be read by several threads."""

    @property
    def parts(self) -> Sequence[Part]:
        """The files that hold the rows, in order."""

    def cell(self, row: int) -> Cell:
        """The image of one row; OSError where its part of the table is damaged."""

    def place(self, row: int) -> str:
        """How errors name a row."""


class Table:
    """The rows of a table, in its order. Ids are ``sha256``, or ``sha256-N`` for the Nth row with that image.

    Occurrences are counted in all rows, so that an id does not depend on ``--where``.
    """

    def __init__(
        self,
        images: ImageRows,
        rows: Iterable[Mapping[str, Any]],
        reader: RowReader,
        options: DatasetOptions,
        scans: Scans,
    ) -> None:
        """Hash each image to know its id, unless ``scans`` know it or there is a column of ids; none is decoded."""
        self._images, self._reader, self._by_hash = images, reader, options.id_column is None
        self._starts = [part.start for part in images.parts]
        self._rows: dict[str, int] = {}
        self._without_image: set[str] = set()
        self.samples: list[Sample] = []
        hashes: Iterable[tuple[str | None, str | None]]
        hashes = image_hashes(images, scans) if self._by_hash else repeat((None, None))
        occurrences: Counter[str] = Counter()
        # The hashes come first, so that their end is reached and their bar closed.
        for number, ((digest, fault), row) in enumerate(zip(hashes, rows, strict=False)):
            place = images.place(number)
            if digest is not None:
                occurrences[digest] += 1
            sample_id = _occurrence(digest, occurrences) if digest else None
            self.samples += reader.placed(place, partial(self._sample, number, sample_id, row, fault))
        reader.finish()

    def read(self, sample_id: str) -> bytes:
        """The bytes of one image as they are stored in the table."""
        cell = self._images.cell(self._rows[sample_id])
        if cell is None:
            raise OSError("it is empty")
        return cell.read_bytes() if isinstance(cell, Path) else cell

    def sha256(self, sample_id: str) -> str:
        """sha256 of one image, which an id that is not from a column begins with; OSError where its row has none."""
        if sample_id in self._without_image:
            raise OSError("it is empty")
        return sample_id[:64] if self._by_hash else hashlib.sha256(self.read(sample_id)).hexdigest()

    def stat(self, sample_id: str) -> Stat | None:
        """Size and time of the file that holds the image; None where the id says all there is to know."""
        if self._by_hash:
            return None
        row = self._rows[sample_id]
        part = self._images.parts[bisect_right(self._starts, row) - 1]
        if part.holds_all:
            return part.stat
        try:
            cell = self._images.cell(row)
        except OSError:
            return None
        return stat_of(cell) if isinstance(cell, Path) else part.stat

    def _sample(self, number: int, by_hash: str | None, row: Mapping[str, Any], fault: str | None) -> Sample | None:
        place = self._images.place(number)
        if not self._reader.keeps(row, place):
            return None
        sample_id = by_hash or self._reader.id(row)
        self._rows[sample_id] = number
        if fault:
            self._without_image.add(sample_id)
        no_image = f"{place} has no image: {fault}" if fault else None
        return named_by_place(self._reader.sample(sample_id, row, no_image), place)


def named_by_place(sample: Sample, place: str) -> Sample:
    """The sample with its row in its fault, for an id does not tell where a table has it."""
    return replace(sample, fault=f"{place}: {sample.fault}") if sample.captionless else sample


def image_hashes(images: ImageRows, scans: Scans) -> Iterator[tuple[str, str | None]]:
    """For each row the sha256 of its image and None; or that of the row's name, and why there is no image."""
    keys = [json.dumps(["sha256", *part.key, part.start, part.stop]) for part in images.parts]
    known = [scans.get(key, part.stat) for key, part in zip(keys, images.parts, strict=True)]
    unknown = sum(part.stop - part.start for part, hashes in zip(images.parts, known, strict=True) if hashes is None)
    with bar(unknown, "img", "hash") as progress:
        for key, part, hashes in zip(keys, images.parts, known, strict=True):
            rows = range(part.start, part.stop)
            found = []
            for row in rows:
                found.append(_hash(images, row, hashes[row - part.start] if hashes is not None else None))
                progress.update(hashes is None)
            remembered = [entry for entry, _ in found]
            if remembered != hashes:
                scans.put(key, part.stat, remembered)
            for row, (entry, fault) in zip(rows, found, strict=True):
                digest = entry[0] if isinstance(entry, list) else entry
                yield digest or hashlib.sha256(images.place(row).encode()).hexdigest(), fault


def _hash(images: ImageRows, row: int, known: Any) -> tuple[Any, str | None]:
    """``(what is remembered of a row's image, why there is none)``.

    Of bytes in the table the hash is remembered; of a file that it names also size and time, ``[hash, size, time]``.
    """
    if isinstance(known, str):
        return known, None
    try:
        cell = images.cell(row)
        if cell is None:
            return None, "it is empty"
        if isinstance(cell, bytes):
            return hashlib.sha256(cell).hexdigest(), None
        stat = stat_of(cell)
        if stat and known and known[1:] == list(stat):
            return known, None
        return [file_sha256(cell), *(stat or (0, 0))], None
    except OSError as error:
        return None, str(error.strerror or error)


def _occurrence(digest: str, occurrences: Counter[str]) -> str:
    """The id of the image that was counted last."""
    return digest if occurrences[digest] == 1 else f"{digest}-{occurrences[digest]}"
