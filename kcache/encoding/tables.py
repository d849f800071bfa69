"""A ``datasets`` table: saved in a folder, or on the hub. A row's id is the sha256 of its image."""

import hashlib
import logging
from pathlib import Path
from typing import Any

from kcache.shards.errors import KcacheError

from .dataset import DatasetOptions, Sample, Stat, captions_of


class Table:
    """The rows of one split. Ids are ``sha256`` of the image, or ``sha256-N`` for its Nth further occurrence."""

    def __init__(self, table: Any, name: str, options: DatasetOptions) -> None:
        """Hash every image once to know its id; none is decoded."""
        from datasets import Image

        for option, column in (
            ("--image-column", (options.image_column or "image")),
            ("--caption-column", (options.caption_column or "text")),
        ):
            if column not in table.column_names:
                have = ", ".join(repr(c) for c in table.column_names)
                raise KcacheError(f"dataset {name} has no column '{column}' (it has: {have}); choose one with {option}")
        self._image_column, self._name = (options.image_column or "image"), name
        try:
            self._table = table.cast_column((options.image_column or "image"), Image(decode=False))
        except Exception as error:  # Arrow raises a different class for each type that is no image.
            kind = table.features[(options.image_column or "image")]
            raise KcacheError(
                f"column '{(options.image_column or 'image')}' of dataset {name} holds no images but {kind};"
                " choose another with --image-column"
            ) from error
        self._rows: dict[str, int] = {}
        self._without_image: set[str] = set()
        captions = table.select_columns([(options.caption_column or "text")])[(options.caption_column or "text")]
        self.samples = sorted((self._sample(row, captions[row]) for row in range(len(table))), key=lambda s: s.id)

    def read(self, sample_id: str) -> bytes:
        """The bytes of one image as they are stored in the table."""
        return self._bytes(self._rows[sample_id])

    def sha256(self, sample_id: str) -> str:
        """sha256 of one image, which its id begins with; OSError where its row has none."""
        if sample_id in self._without_image:
            raise OSError("it is empty")
        return sample_id[:64]

    def stat(self, sample_id: str) -> Stat | None:
        """None: a row has no time of change, and needs none."""
        return None

    def _sample(self, row: int, caption: object) -> Sample:
        try:
            digest, fault = hashlib.sha256(self._bytes(row)).hexdigest(), None
        except OSError as error:
            digest, fault = (
                hashlib.sha256(f"row {row}".encode()).hexdigest(),
                f"row {row} has no image: {error.strerror or error}",
            )
        occurrence, sample_id = 1, digest
        while sample_id in self._rows:
            occurrence += 1
            sample_id = f"{digest}-{occurrence}"
        self._rows[sample_id] = row
        if fault:
            self._without_image.add(sample_id)
        captions = captions_of(caption, f"dataset {self._name}, row {row}")
        return Sample(sample_id, captions, fault or (None if captions else f"row {row} has no caption"))

    def _bytes(self, row: int) -> bytes:
        """The bytes of one row's image; OSError where it has none."""
        value = self._table[row][self._image_column]
        if value is None or (value["bytes"] is None and value["path"] is None):
            raise OSError("it is empty")
        return bytes(value["bytes"]) if value["bytes"] is not None else Path(value["path"]).read_bytes()


def open_saved(path: Path, options: DatasetOptions) -> Table:
    """A folder that ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote."""
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # datasets and Arrow raise a different class for each way of not being whole.
        cause = str(error).split("\n")[0].rstrip(". ") or type(error).__name__
        raise KcacheError(
            f"dataset {path} does not load as a folder that save_to_disk wrote ({cause}); save it again"
        ) from error
    if isinstance(loaded, DatasetDict):
        if options.split not in loaded:
            raise KcacheError(f"dataset {path} has no split '{options.split}' (it has: {', '.join(loaded)})")
        loaded = loaded[options.split]
    return Table(loaded, str(path), options)


def open_hub(name: str, options: DatasetOptions) -> Table:
    """A dataset on the hub, by name."""
    from datasets import load_dataset

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        loaded = load_dataset(name, options.config_name, split=options.split, cache_dir=options.cache_dir)
    except Exception as error:  # datasets raises a different class for each way of not finding one.
        cause = str(error).split("\n")[0] or type(error).__name__
        raise KcacheError(
            f"dataset {name} is not a folder, and could not be had from the hub ({cause.rstrip('. ')});"
            " check the name and the connection, or name a folder of pictures"
        ) from None
    return Table(loaded, name, options)
