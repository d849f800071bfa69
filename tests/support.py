"""Short ways to encode, read, damage and train tiny caches."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kcache.shards import Cache, ColumnReader, Snapshot

Array = npt.NDArray[np.generic]


def encode_tiny(root: Path, pictures: Path, prior: Path, decoder: Path, **options: Any) -> Cache:
    """``pictures`` at 32 px in shards of four, stored in fp32 unless ``options`` say otherwise."""
    from kcache.encoding.config import EncodeConfig
    from kcache.encoding.encode import encode

    chosen = {
        "resolution": (32,),
        "shard_size": 4,
        "batch_size": 3,
        "store_dtype": "fp32",
        "device": "cpu",
        "workers": 2,
    }
    config = EncodeConfig(
        dataset=str(pictures),
        cache=str(root),
        pretrained_prior_model_name_or_path=str(prior),
        pretrained_decoder_model_name_or_path=str(decoder),
        **{**chosen, **options},
    )
    report = encode(config)
    assert not report.set_aside, report.set_aside
    return Cache(root)


def ids(cache: Cache) -> list[str]:
    """All sample ids of a cache, in the order of its plan."""
    return [sample for shard in range(cache.shard_count) for sample in cache.ids(shard)]


def features(cache: Cache, column: str) -> dict[str, dict[str, Array]]:
    """Every field of every sample of a column, by id."""
    snapshot = Snapshot(cache, [column])
    reader = ColumnReader(snapshot, column)
    names = [cache.ids(int(shard))[row] for shard, row in snapshot.rows]
    read = {
        name: {field.name: reader.read(i, field.name) for field in reader.column.fields} for i, name in enumerate(names)
    }
    reader.close()
    return read


def flip(path: Path, offset: int, bits: int = 1) -> None:
    """Change one byte of a file; the file becomes a new one, so that hard links to it stay whole."""
    data = bytearray(path.read_bytes())
    data[offset] ^= bits
    path.unlink()
    path.write_bytes(data)


def metrics(output_dir: Path) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl`` that tell of updates."""
    lines = (json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]


def relative_distance(these: Iterable[Any], those: Iterable[Any]) -> float:
    """Distance between two lists of tensors over the norm of the second, all taken as one vector."""
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(these, those, strict=True)]
    distance = sum((a - b).square().sum().item() for a, b in pairs)
    return float((distance / sum(b.square().sum().item() for _, b in pairs)) ** 0.5)
