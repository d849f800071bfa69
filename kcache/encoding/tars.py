"""WebDataset tars as img2dataset writes them: ``000000000.jpg`` with ``.txt`` and ``.json``, read where they lie."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from kcache.progress import bar

from .dataset import DatasetOptions, Sample, Stat, stat_of
from .memory import Scans
from .rows import BadRowError, RowReader, captions_of
from .tar_scan import Member, TarScan, scan_tar
from .walk import as_id


class TarDataset:
    """The images in some tars. A sample's id is the tar's path and the member's name, or its ``--id-column``.

    A caption is the ``.txt`` member, or with ``--caption-column`` that field of the ``.json``. A damaged tar is a
    sample of its own, which has the tar's path as id and the damage as fault.
    """

    def __init__(self, name: str, root: Path, tars: Sequence[Path], options: DatasetOptions, scans: Scans) -> None:
        """Learn from each tar what it holds, or from ``scans`` where it was read before and is the same."""
        source = f"dataset {name}"
        options.refuse(f"{source}, which is tars", "image_column", "config_name", "split")
        self._reader = RowReader(source, options, fields=None)
        self._from_json = options.caption_column is not None
        self._tars, self._stats = tars, [stat_of(tar) for tar in tars]
        self._found: dict[str, tuple[int, int, int]] = {}  # by id: number of the tar, offset and bytes of the image
        self.samples: list[Sample] = []
        with bar(len(tars), "tars", "scan", shown=len(tars) > 1) as progress:
            for number, tar in enumerate(tars):
                scan = self._scan(number, scans)
                self.samples += self._samples(number, as_id(tar.relative_to(root).as_posix())[0], scan)
                progress.update(1)
        self._reader.finish(caption_column=options.caption_column)

    def read(self, sample_id: str) -> bytes:
        """The bytes of one image, from their place in the tar."""
        if sample_id not in self._found:
            raise OSError("it cannot be read from its tar")
        number, offset, size = self._found[sample_id]
        # A file of its own for each read: threads share no position, and no tar stays open.
        with open(self._tars[number], "rb", buffering=0) as file:
            file.seek(offset)
            data = _read_exactly(file, size)
        if len(data) < size:
            raise OSError(f"{self._tars[number]} ends {size - len(data):,} bytes too early")
        return data

    def sha256(self, sample_id: str) -> str:
        """sha256 of one image."""
        return hashlib.sha256(self.read(sample_id)).hexdigest()

    def stat(self, sample_id: str) -> Stat | None:
        """Size and time of change of the image's tar when it was opened: tars are changed as a whole."""
        found = self._found.get(sample_id)
        return self._stats[found[0]] if found else None

    def _scan(self, number: int, scans: Scans) -> TarScan:
        tar, stat = self._tars[number], self._stats[number]
        wanted = self._reader.columns if self._needs_json else []
        key = json.dumps(["tar", str(tar.resolve()), wanted])
        known = scans.get(key, stat)
        if known is not None:
            return TarScan([Member(*values) for values in known["members"]], known["field_names"], known["fault"])
        scan = scan_tar(tar, wanted)
        members = [list(asdict(member).values()) for member in scan.members]
        scans.put(key, stat, {"members": members, "field_names": scan.field_names, "fault": scan.fault})
        return scan

    @property
    def _needs_json(self) -> bool:
        return self._from_json or bool(self._reader.id_column) or len(self._reader.columns) > 1

    def _samples(self, number: int, tar: str, scan: TarScan) -> Iterator[Sample]:
        self._reader.note_fields([*scan.field_names, *(("file_name", "text") if scan.members else ())])
        for member in scan.members:
            name = f"{tar}/{member.name}"
            yield from self._reader.placed(name, partial(self._sample, number, member, name))
        if scan.fault:
            yield Sample(tar, (), scan.fault)

    def _sample(self, number: int, member: Member, name: str) -> Sample | None:
        row: dict[str, Any] = {**(member.fields or {}), "file_name": name}
        if member.text is not None:
            row["text"] = member.text
        if not self._reader.keeps(row, f"'{name}'"):
            return None
        sample_id = self._reader.id(row) if self._reader.id_column else self._reader.claim(name)
        if not member.fault:
            self._found[sample_id] = (number, member.offset, member.size)
        captions, no_caption = self._captions(member)
        fault = member.fault or no_caption
        return Sample(sample_id, captions, fault, captionless=not member.fault and no_caption is not None)

    def _captions(self, member: Member) -> tuple[tuple[str, ...], str | None]:
        """The captions of an image, and None; or no captions, and why there are none."""
        if not self._from_json:
            return ((member.text,), None) if member.text is not None else ((), "it has no .txt beside it in its tar")
        column = self._reader.caption_column
        if member.fields is None:
            return (), "it has no .json beside it in its tar"
        try:
            captions = captions_of(member.fields, column) if column in member.fields else ()
        except BadRowError as error:
            return (), str(error)
        return captions, None if captions else f"its .json has no '{column}'"


def _read_exactly(file: Any, size: int) -> bytes:
    """``size`` bytes, or fewer at the end of the file: one unbuffered read may return less (2 GiB at most on Linux)."""
    parts = []
    while size and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts) if len(parts) != 1 else parts[0]
