"""What a cache says of each of its samples, for `kcache preview`: captions, what stands out, and where features are."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kcache.shards import Cache, ColumnReader, Snapshot, cut_captions, layout

_SEED = 0
"""Of the choice of samples: the same ones each time."""


@dataclass
class Sample:
    """One sample, whatever views of its picture there are."""

    id: str
    captions: list[str]
    place: tuple[int, int]
    """Shard and row."""
    sha256: str | None = None
    size: tuple[int, int] | None = None
    """Width and height of the picture file in pixels."""
    aside: str | None = None
    """Why it was set aside and has no features."""
    cut: list[int] = field(default_factory=list)
    """Which captions fill the text encoder to its end."""


def read_samples(cache: Cache, most: int | None = None) -> list[Sample]:
    """The samples of a cache in the order of its plan, or ``most`` of them drawn at random; pruned ones are none."""
    cache.bring_samples()
    found = [
        _sample(row, (shard, number))
        for shard, generation in sorted(cache.commits(layout.SAMPLES).items())
        for number, row in enumerate(cache.samples(shard, generation))
        if "removed" not in row
    ]
    if most is not None and most < len(found):
        chosen = sorted(random.Random(_SEED).sample(range(len(found)), most))
        found = [found[i] for i in chosen]
    _note_cut(cache, found)
    return found


def _sample(row: dict[str, object], place: tuple[int, int]) -> Sample:
    width, height = row.get("width"), row.get("height")
    captions, aside, sha256 = row.get("captions"), row.get("set_aside"), row.get("sha256")
    return Sample(
        id=str(row["id"]),
        captions=[str(caption) for caption in captions] if isinstance(captions, list) else [],
        place=place,
        sha256=str(sha256) if sha256 else None,
        size=(width, height) if isinstance(width, int) and isinstance(height, int) else None,
        aside=str(aside) if aside is not None else None,
    )


def _note_cut(cache: Cache, samples: Sequence[Sample]) -> None:
    by_id = {sample.id: sample for sample in samples}
    for _, name, caption in cut_captions(cache):
        if (sample := by_id.get(name)) and caption in sample.captions:
            sample.cut = sorted({*sample.cut, sample.captions.index(caption)})


def plainest(cache: Cache, kind: str) -> str | None:
    """Of the views of one kind that have features the plainest: ``image`` before ``image-flip``; None without any."""
    names = [name for name in cache.column_names() if name.partition("-")[0] == kind and cache.commits(name)]
    return min(names, key=lambda name: (name.count("-"), len(name), name), default=None)


class Features:
    """One column, read by sample."""

    def __init__(self, cache: Cache, column: str, samples: Sequence[Sample]) -> None:
        """``numbers`` are the samples that have a row in the column, in their order."""
        snapshot = Snapshot(cache, [column], partial=True)
        self.reader = ColumnReader(snapshot, column)
        at = {(int(shard), int(row)): position for position, (shard, row) in enumerate(snapshot.rows)}
        self._positions = {i: at[sample.place] for i, sample in enumerate(samples) if sample.place in at}
        self.numbers = list(self._positions)

    def read(self, number: int, field: str) -> Tensor:
        """One field of one sample."""
        return torch.from_numpy(self.reader.read(self._positions[number], field))

    def stacked(self, field: str) -> Tensor:
        """One field of all `numbers`, in the dtype in which it is stored."""
        spec = self.reader.field(field)
        if not self.numbers:
            return torch.zeros((0, *(n or 0 for n in spec.shape)))
        first = self.read(self.numbers[0], field)
        out = torch.empty((len(self.numbers), *first.shape), dtype=first.dtype)
        for i, number in enumerate(self.numbers):
            out[i] = self.read(number, field)
        self.reader.close()
        return out

    def latents(self, number: int) -> Tensor:
        """The latents (C, H, W) of one sample, also of a column with buckets."""
        latents = self.read(number, "latents")
        return latents.reshape(self.read(number, "shape").tolist()) if "shape" in self.reader.numbers else latents


def same_content(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Pairs of samples whose picture files are equal byte by byte."""
    first: dict[str, int] = {}
    made = ((first.setdefault(s.sha256, i), i) for i, s in enumerate(samples) if s.sha256)
    return list(itertools.filterfalse(lambda pair: pair[0] == pair[1], made))
