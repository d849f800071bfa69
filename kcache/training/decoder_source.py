"""What the decoder reads: the latents of each sample, the image embedding of the same cut, and its draws."""

from collections.abc import Sequence

import numpy as np
import torch

from kcache.shards import Field, read_null

from .draws import DROPOUT, Draws
from .samples import Positions, Samples
from .shapes import Shapes
from .sources import (
    TORCH_DTYPES,
    Buffers,
    MicroBatch,
    Reading,
    allocator,
    beginning,
    draw_noise,
    drawn,
    first,
    rows_of,
    weigh,
)


class DecoderSource:
    """latents, image_embeds, noise and timesteps for the decoder."""

    def __init__(self, samples: Samples, views: Sequence[tuple[str, str]], shapes: Shapes, reading: Reading) -> None:
        """Read for each sample one of ``views``, which is drawn: a column of latents, and the image embeddings of it.

        ``shapes`` are those of the latents of each sample, the same in all views.
        """
        readers = samples.open([name for view in views for name in view], check_crc=reading.check_crc)
        self._views = list(zip(readers[::2], readers[1::2], strict=True))
        self._samples, self._reading, self._draws = samples, reading, Draws(reading.seed)
        self._shapes, self.groups, self.lengths = shapes, shapes.groups, None
        if reading.dropout:
            cache = samples.snapshots[0].cache
            self._null = read_null(cache, cache.column(views[0][1]))["image_embeds"].tobytes()

    def of_samples(self, chosen: Positions) -> Positions:
        """Each sample is read at its own position."""
        return chosen

    def samples_of(self, positions: Positions) -> Positions:
        """Each sample is read at its own position."""
        return positions

    def sample_of(self, position: int) -> int:
        """Each sample is read at its own position."""
        return position

    def allocate(self, batch_size: int, pin: bool) -> Buffers:
        """Buffers for one batch of the largest shape."""
        (latents, image), empty = self._fields(), allocator(pin)
        shape = (batch_size, *self._shapes.largest)
        buffers = {
            "latents": empty(shape, TORCH_DTYPES[latents.dtype]),
            "image_embeds": empty((batch_size, *image.shape_of(image.row_bytes)), TORCH_DTYPES[image.dtype]),
            "noise": empty(shape, torch.float32),
            "timesteps": empty((batch_size,), torch.int64),
        }
        if self._reading.loss_weights is not None:
            buffers["weights"] = empty((batch_size,), torch.float32)
        return buffers

    def fill(self, buffers: Buffers, batch: MicroBatch) -> Buffers:
        """Read a micro-batch, whose samples are of one shape, and draw for it; ValueError where they are not."""
        filled = self.read(buffers, batch)
        draw_noise(self._draws, filled, batch, self._reading.timesteps)
        if self._reading.loss_weights is not None:
            weigh(self._samples, self._reading.loss_weights, filled, np.asarray(batch.positions))
        return filled

    def read(self, buffers: Buffers, batch: MicroBatch) -> Buffers:
        """Read a micro-batch, whose samples are of one shape; ValueError where they are not."""
        shape = (len(batch.positions), *self._shapes.of(batch.positions))
        filled = first(buffers, len(batch.positions))
        filled |= {name: beginning(buffers[name], shape) for name in ("latents", "noise")}
        latents, images = rows_of(filled["latents"]), rows_of(filled["image_embeds"])
        dropped = {i for i, slot in enumerate(batch.slots) if self._is_dropped(batch.step, slot)}
        for (of_picture, of_clip), chosen in drawn(self._views, self._draws, batch):
            of_picture.rows([batch.positions[i] for i in chosen]).read_into("latents", [latents[i] for i in chosen])
            kept = [i for i in chosen if i not in dropped]
            of_clip.rows([batch.positions[i] for i in kept]).read_into("image_embeds", [images[i] for i in kept])
        for i in dropped:
            images[i][:] = self._null
        return filled

    def _is_dropped(self, step: int, slot: int) -> bool:
        """Whether a sample's condition is replaced by the null one."""
        dropout = self._reading.dropout
        return bool(dropout) and self._draws.chance(step, slot, DROPOUT, dropout)

    def close(self) -> None:
        """Close the files of all columns."""
        for readers in self._views:
            for reader in readers:
                reader.close()

    def _fields(self) -> tuple[Field, Field]:
        latents, image = self._views[0]
        return latents.field("latents"), image.field("image_embeds")
