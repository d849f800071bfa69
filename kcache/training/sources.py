"""From positions in a snapshot to batches: what each stage reads, straight into reused buffers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from kcache.shards import ColumnReader, Field, Snapshot

from .draws import CAPTION, NOISE, TIMESTEP, VIEW, Draws
from .shapes import Positions, Shapes
from .trimming import trimmed_length

TORCH_DTYPES = {"float16": torch.float16, "float32": torch.float32, "int32": torch.int32}
Buffers = dict[str, Tensor]
Drawn = TypeVar("Drawn")

MAX_OPEN_FILES = 128
"""Shard files that one source keeps open, shared among its columns: 1,024 is all that a process commonly may have."""


@dataclass(frozen=True)
class MicroBatch:
    """What one process reads for one forward: stream positions, and the keys of their draws."""

    step: int
    slots: Sequence[int]
    positions: Sequence[int]


class Source(Protocol):
    """Fills buffers with the samples and draws of a micro-batch. Not for two threads at once."""

    @property
    def groups(self) -> Sequence[Positions]:
        """The positions of samples that fit into one batch, every position once: see `kcache.shards.BatchOrder`."""

    def allocate(self, batch_size: int, pin: bool) -> Buffers:
        """Buffers for the largest batch there can be; ``pin`` locks their pages for copies to a GPU."""

    def fill(self, buffers: Buffers, batch: MicroBatch) -> Buffers:
        """Read a micro-batch, of as many samples as ``buffers`` have or fewer, and return it as views of them."""

    def close(self) -> None:
        """Close the files that were read; the source may be used again."""


class PriorSource:
    """image_embeds, text_embeds, hidden_states, lengths, noise and timesteps for the prior."""

    def __init__(
        self,
        snapshot: Snapshot,
        text: str,
        images: Sequence[str],
        seed: int,
        timesteps: int,
        num_embeddings: int,
        *,
        trim: bool,
        check_crc: bool,
    ) -> None:
        """Read column ``text``, and for each sample one of ``images``: the views of it, of which one is drawn.

        ``timesteps`` is the number that noise is drawn from.
        """
        self._text, *self._images = _open(snapshot, [text, *images], check_crc)
        self._draws, self._timesteps = Draws(seed), timesteps
        self._full, self._trim = num_embeddings, trim
        self._embed, self._hidden = self._text.field("text_embeds"), self._text.field("hidden_states")
        self._captions = self._text.nbytes("lengths") // 4
        self._tokens = self._text.nbytes("hidden_states") // self._hidden.row_bytes
        self.groups = [np.arange(len(snapshot))]

    def allocate(self, batch_size: int, pin: bool) -> Buffers:
        """Buffers for captions of full length."""
        image = self._images[0].field("image_embeds")
        (width,) = image.shape
        assert width is not None
        hidden_width, text_width = self._hidden.shape_of(0)[1], self._embed.shape_of(0)[1]
        empty = _allocator(pin)
        return {
            "image_embeds": empty((batch_size, width), TORCH_DTYPES[image.dtype]),
            "text_embeds": empty((batch_size, text_width), TORCH_DTYPES[self._embed.dtype]),
            "hidden_states": empty((batch_size, self._full, hidden_width), TORCH_DTYPES[self._hidden.dtype]),
            "lengths": empty((batch_size,), torch.int64),
            "noise": empty((batch_size, width), torch.float32),
            "timesteps": empty((batch_size,), torch.int64),
        }

    def fill(self, buffers: Buffers, batch: MicroBatch) -> Buffers:
        """Read a micro-batch; hidden states are (B, L, D), L the longest caption drawn, zero after each one's end."""
        rows = list(zip(batch.slots, batch.positions, strict=True))
        spans = [self._caption(batch.step, slot, position) for slot, position in rows]
        longest = max(stop - start for _, start, stop in spans)
        length = trimmed_length(longest, self._full) if self._trim else self._full
        flat = buffers["hidden_states"].view(-1)
        hidden = flat[: len(rows) * length * self._hidden.shape_of(0)[1]].view(len(rows), length, -1)
        hidden_rows, embeds, images = map(_rows, (hidden, buffers["text_embeds"], buffers["image_embeds"]))
        hidden_array, lengths = hidden.numpy(), buffers["lengths"].numpy()
        for i, ((slot, position), (caption, start, stop)) in enumerate(zip(rows, spans, strict=True)):
            self._read_text(position, caption, start, stop, embeds[i], hidden_rows[i])
            image = _drawn(self._images, self._draws, batch.step, slot)
            image.read_into(position, "image_embeds", images[i])
            lengths[i] = stop - start
            hidden_array[i, stop - start :] = 0
        _draw(self._draws, buffers, batch, self._timesteps)
        return {**_first(buffers, len(rows)), "hidden_states": hidden}

    def close(self) -> None:
        """Close the files of all columns."""
        for reader in (self._text, *self._images):
            reader.close()

    def _caption(self, step: int, slot: int, position: int) -> tuple[int, int, int]:
        """Which caption of a sample is drawn, and where its tokens begin and end."""
        count = int(self._captions[position])
        if count == 1:
            return 0, 0, int(self._tokens[position])
        ends = np.cumsum([0, *self._text.read(position, "lengths").tolist()])
        caption = self._draws.integer(step, slot, CAPTION, count)
        return caption, int(ends[caption]), int(ends[caption + 1])

    def _read_text(
        self, position: int, caption: int, start: int, stop: int, embed: memoryview, hidden: memoryview
    ) -> None:
        nbytes = (stop - start) * self._hidden.row_bytes
        if self._captions[position] == 1:
            self._text.read_into(position, "text_embeds", embed)
            self._text.read_into(position, "hidden_states", hidden[:nbytes])
        else:
            embed[:] = self._text.read(position, "text_embeds")[caption].tobytes()
            hidden[:nbytes] = self._text.read(position, "hidden_states")[start:stop].tobytes()


class DecoderSource:
    """latents, image_embeds, noise and timesteps for the decoder."""

    def __init__(
        self,
        snapshot: Snapshot,
        views: Sequence[tuple[str, str]],
        shapes: Shapes,
        seed: int,
        timesteps: int,
        *,
        check_crc: bool,
    ) -> None:
        """Read for each sample one of ``views``, which is drawn: a column of latents, and the image embeddings of it.

        ``shapes`` are those of the latents of each sample, the same in all views.
        """
        readers = _open(snapshot, [name for view in views for name in view], check_crc)
        self._views = list(zip(readers[::2], readers[1::2], strict=True))
        self._draws, self._timesteps = Draws(seed), timesteps
        self._shapes, self.groups = shapes, shapes.groups

    def allocate(self, batch_size: int, pin: bool) -> Buffers:
        """Buffers for one batch of the largest shape."""
        (latents, image), empty = self._fields(), _allocator(pin)
        shape = (batch_size, *self._shapes.largest)
        return {
            "latents": empty(shape, TORCH_DTYPES[latents.dtype]),
            "image_embeds": empty((batch_size, *image.shape_of(image.row_bytes)), TORCH_DTYPES[image.dtype]),
            "noise": empty(shape, torch.float32),
            "timesteps": empty((batch_size,), torch.int64),
        }

    def fill(self, buffers: Buffers, batch: MicroBatch) -> Buffers:
        """Read a micro-batch, whose samples are of one shape; ValueError where they are not."""
        shape = (len(batch.positions), *self._shapes.of(batch.positions))
        filled = _first(buffers, len(batch.positions))
        filled |= {name: _beginning(buffers[name], shape) for name in ("latents", "noise")}
        latents, images = _rows(filled["latents"]), _rows(filled["image_embeds"])
        for i, (slot, position) in enumerate(zip(batch.slots, batch.positions, strict=True)):
            of_picture, of_clip = _drawn(self._views, self._draws, batch.step, slot)
            of_picture.read_into(position, "latents", latents[i])
            of_clip.read_into(position, "image_embeds", images[i])
        _draw(self._draws, filled, batch, self._timesteps)
        return filled

    def close(self) -> None:
        """Close the files of all columns."""
        for readers in self._views:
            for reader in readers:
                reader.close()

    def _fields(self) -> tuple[Field, Field]:
        latents, image = self._views[0]
        return latents.field("latents"), image.field("image_embeds")


def _open(snapshot: Snapshot, names: Sequence[str], check_crc: bool) -> list[ColumnReader]:
    """Readers of some columns that together keep no more than `MAX_OPEN_FILES` files open."""
    share = max(1, MAX_OPEN_FILES // len(names))
    return [ColumnReader(snapshot, name, check_crc=check_crc, max_open_files=share) for name in names]


def _drawn(views: Sequence[Drawn], draws: Draws, step: int, slot: int) -> Drawn:
    """The view of one sample, all equally likely; of one view nothing is drawn."""
    return views[0] if len(views) == 1 else views[draws.integer(step, slot, VIEW, len(views))]


class _Allocator(Protocol):
    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor: ...


def _allocator(pin: bool) -> _Allocator:
    return lambda shape, dtype: torch.zeros(shape, dtype=dtype, pin_memory=pin)


def _draw(draws: Draws, buffers: Buffers, batch: MicroBatch, high: int) -> None:
    noise, timesteps = buffers["noise"].numpy(), buffers["timesteps"].numpy()
    for i, slot in enumerate(batch.slots):
        draws.normal(batch.step, slot, NOISE, noise[i])
        timesteps[i] = draws.integer(batch.step, slot, TIMESTEP, high)


def _rows(tensor: Tensor) -> list[memoryview]:
    """The bytes of each row of a contiguous tensor, to be written to."""
    view = tensor.view(-1).numpy().view(np.uint8).data
    size = len(view) // len(tensor)
    return [view[start : start + size] for start in range(0, len(view), size)]


def _first(buffers: Buffers, count: int) -> Buffers:
    return {name: tensor[:count] for name, tensor in buffers.items()}


def _beginning(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first values of a contiguous tensor, as one of ``shape``."""
    return tensor.view(-1)[: math.prod(shape)].view(shape)
