"""A ``datasets.IterableDataset``: rows as they come over the network, a window of them in memory at a time."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from kcache.shards.errors import KcacheError

from .dataset import Dataset, DatasetOptions, Sample, Stat
from .rows import RowReader
from .tables import named_by_place


class Window:
    """Some consecutive samples of a stream, with the bytes of their images."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.images: dict[str, bytes] = {}

    def add(self, sample: Sample, image: bytes | None) -> None:
        """Append a sample, with its image if it has one."""
        self.samples.append(sample)
        if image is not None:
            self.images[sample.id] = image

    def read(self, sample_id: str) -> bytes:
        """The bytes of one image."""
        if sample_id not in self.images:
            raise OSError("it is empty")
        return self.images[sample_id]

    def sha256(self, sample_id: str) -> str:
        """sha256 of one image."""
        return hashlib.sha256(self.read(sample_id)).hexdigest()

    def stat(self, sample_id: str) -> Stat | None:
        """None: what comes over the network has no time of change."""
        return None


class Stream:
    """The rows of one split in the order of the stream. Ids as in `Table`, occurrences counted from the beginning."""

    def __init__(self, stream: Any, name: str, options: DatasetOptions) -> None:
        """``stream`` is a ``datasets.IterableDataset``; nothing is read yet."""
        self._name, self._options = name, options
        self._image_column = options.image_column or "image"
        self._stream = self._undecoded(stream)

    def windows(self, size: int) -> Iterator[Dataset]:
        """``size`` samples at a time. Call it once: each call reads the stream from its beginning.

        KcacheError when the stream breaks, or when it lacks a column.
        """
        reader, window = RowReader(f"dataset {self._name}", self._options, fields=None), Window()
        occurrences: Counter[bytes] = Counter()
        for number, row in enumerate(self._rows()):
            if number == 0:
                fields = [field for field in row if field != self._image_column]
                reader.require("--image-column", self._image_column, list(row))
                reader.check(fields)
                reader.note_fields(fields)
            data, fault = self._image(row, number)
            digest = hashlib.sha256(data if data is not None else f"row {number}".encode())
            # 16 bytes of each hash: what counts the occurrences is all that is kept of the samples before.
            occurrences[digest.digest()[:16]] += 1
            count, place = occurrences[digest.digest()[:16]], f"row {number}"
            by_hash = digest.hexdigest() if count == 1 else f"{digest.hexdigest()}-{count}"
            for sample in reader.placed(place, partial(_sample, reader, row, place, by_hash, fault)):
                window.add(sample, data)
            if len(window.samples) == size:
                reader.require_usable()
                yield window
                window = Window()
        reader.require_usable()
        if window.samples:
            yield window
        reader.finish()

    def _undecoded(self, stream: Any) -> Any:
        """The stream with images as bytes, where it would decode them."""
        from datasets import Image

        feature = (stream.features or {}).get(self._image_column)
        return stream.cast_column(self._image_column, Image(decode=False)) if isinstance(feature, Image) else stream

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        number, rows = 0, iter(self._stream)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # datasets, fsspec and the HTTP libraries below raise what they like.
                cause = (str(error).split("\n")[0] or type(error).__name__).rstrip(". ")
                raise KcacheError(
                    f"the stream of dataset {self._name} broke after {number:,} samples ({cause});"
                    " what was committed is safe: run the same command again"
                ) from error
            yield row
            number += 1

    def _image(self, row: Mapping[str, Any], number: int) -> tuple[bytes | None, str | None]:
        """The bytes of a row's image and None; or None and why there are none."""
        value = row.get(self._image_column)
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        try:
            if data is None and path is not None:
                data = _fetch(path)
        except OSError as error:
            return None, f"row {number} has no image: {error.strerror or error}"
        if data is None:
            return None, f"row {number} has no image: it is empty"
        if not isinstance(data, bytes):
            raise KcacheError(
                f"column '{self._image_column}' of dataset {self._name} holds no images but {type(data).__name__};"
                " choose another with --image-column"
            )
        return data, None


def _sample(reader: RowReader, row: Mapping[str, Any], place: str, by_hash: str, fault: str | None) -> Sample | None:
    if not reader.keeps(row, place):
        return None
    return named_by_place(reader.sample(reader.id(row) if reader.id_column else by_hash, row, fault), place)


def _fetch(path: str) -> bytes:
    """A file that a stream names: local, on the hub, or inside an archive (``zip://a.png::https://...``)."""
    import fsspec

    with fsspec.open(path, "rb") as file:
        return bytes(file.read())
