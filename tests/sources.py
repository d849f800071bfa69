"""Datasets of every kind, made of a few rows; their files changed last an hour ago, as a dataset's files have."""

import csv
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from commands import make_old
from folders import picture, write

from kcache.encoding.dataset import Dataset, DatasetOptions, Sample, StreamedDataset
from kcache.encoding.memory import Scans
from kcache.encoding.open_dataset import open_dataset

IMAGES = {name: picture((20 + i, 24)) for i, name in enumerate("abcd")}
"""Four different pictures."""


def opened(path: object, scans: Scans | None = None, **options: Any) -> Dataset:
    """The dataset at ``path``, read with these options."""
    dataset = open_dataset(str(path), replace(DatasetOptions(), **options), scans or Scans(None))
    assert not isinstance(dataset, StreamedDataset)
    return dataset


def captions(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """The captions of samples that have no fault, by id and in order."""
    return {sample.id: list(sample.captions) for sample in samples if not sample.fault}


def faults(samples: Sequence[Sample]) -> dict[str, str]:
    """Why samples cannot be encoded, by id."""
    return {sample.id: sample.fault for sample in samples if sample.fault}


def make_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar of regular files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    make_old(path)
    return path


def img2dataset(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> Path:
    """A tar as img2dataset writes it: each row's picture, its ``text`` and all of it as JSON."""
    members: dict[str, bytes] = {}
    for key, row in rows.items():
        members[f"{key}.jpg"] = IMAGES[key[-1]]
        members[f"{key}.txt"] = str(row["text"]).encode()
        members[f"{key}.json"] = json.dumps({"key": key, "status": "success", **row}).encode()
    return make_tar(path, members)


def make_parquet(path: Path, row_group_size: int = 2, **columns: Sequence[Any]) -> Path:
    """A parquet file with these columns."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
    make_old(path)
    return path


def make_pictures(folder: Path, *names: str) -> Path:
    """Picture files: ``folder/a.png`` holds ``IMAGES["a"]``."""
    for name in names:
        make_old(write(folder / f"{name}.png", IMAGES[name]))
    return folder


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The rows as ``.jsonl``, ``.csv`` or ``.tsv``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    make_old(path)
    return path
