"""What the decoder reads: the latents of each sample, the image embedding of the same cut, and its draws."""

from collections.abc import Sequence

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
        """Read a micro-batch, whose samples are of one shape; ValueError where they are not."""
        shape = (len(batch.positions), *self._shapes.of(batch.positions))
        filled = first(buffers, len(batch.positions))
        filled |= {name: beginning(buffers[name], shape) for name in ("latents", "noise")}
        latents, images = rows_of(filled["latents"]), rows_of(filled["image_embeds"])
        for i, (slot, position) in enumerate(zip(batch.slots, batch.positions, strict=True)):
            of_picture, of_clip = drawn(self._views, self._draws, batch.step, slot)
            of_picture.read_into(position, "latents", latents[i])
            if self._reading.dropout and self._draws.chance(batch.step, slot, DROPOUT, self._reading.dropout):
                images[i][:] = self._null
            else:
                of_clip.read_into(position, "image_embeds", images[i])
        draw_noise(self._draws, filled, batch, self._reading.timesteps)
        if self._reading.loss_weights is not None:
            weigh(self._samples, self._reading.loss_weights, filled, batch.positions)
        return filled

    def close(self) -> None:
        """Close the files of all columns."""
        for readers in self._views:
            for reader in readers:
                reader.close()

    def _fields(self) -> tuple[Field, Field]:
        latents, image = self._views[0]
        return latents.field("latents"), image.field("image_embeds")
