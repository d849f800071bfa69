"""What the prior reads: a caption's features and an image embedding of each sample, and its draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from kcache.shards import read_null

from .draws import CAPTION, DROPOUT, Draws
from .samples import Positions, Samples
from .shared_text import DRAW, places_of
from .sources import TORCH_DTYPES, Buffers, MicroBatch, Reading, allocator, draw_noise, drawn, first, rows_of, weigh
from .trimming import trimmed_length


@dataclass(frozen=True)
class _Span:
    """One caption of a sample, by its number (None: the empty one), and where its tokens begin and end."""

    caption: int | None
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        return self.stop - self.start


class PriorSource:
    """image_embeds, text_embeds, hidden_states, lengths, noise and timesteps for the prior."""

    def __init__(
        self,
        samples: Samples,
        text: str,
        images: Sequence[str],
        reading: Reading,
        num_embeddings: int,
        *,
        trim: bool,
        all_captions: bool = False,
        pack: bool = False,
        group_by_length: bool = False,
    ) -> None:
        """Read column ``text``, and for each sample one of ``images``: the views of it, of which one is drawn.

        A sample with several captions is read with one that is drawn, or, with ``all_captions``, once with each.
        ``pack`` adds the places of the tokens that are no padding, ``group_by_length`` asks for batches of captions of
        about one length.
        """
        self._text, *self._images = samples.open([text, *images], check_crc=reading.check_crc)
        self._samples, self._reading, self._draws = samples, reading, Draws(reading.seed)
        self._full, self._trim = num_embeddings, trim
        self._embed, self._hidden = self._text.field("text_embeds"), self._text.field("hidden_states")
        self._captions = self._text.nbytes("lengths") // 4
        self._tokens = self._text.nbytes("hidden_states") // self._hidden.row_bytes
        self._ends = np.cumsum(self._captions, dtype=np.int64) if all_captions else None
        self._pack, self._group_by_length = pack, group_by_length
        if reading.dropout:
            cache = samples.snapshots[0].cache
            null = read_null(cache, cache.column(text))
            self._null_embed, self._null_hidden = (null[name].tobytes() for name in ("text_embeds", "hidden_states"))
            self._null_tokens = len(null["hidden_states"])

    @property
    def groups(self) -> Sequence[Positions]:
        """All captions are trimmed to the longest of a batch, so that any fit into one."""
        return [np.arange(len(self._samples) if self._ends is None else self._ends[-1])]

    @cached_property
    def lengths(self) -> Positions | None:
        """The tokens of each position's caption; of several that are drawn among, those of the longest.

        Where samples have several captions, this reads how long they are, in the order in which they lie on disk.
        """
        if not self._group_by_length:
            return None
        lengths = self._tokens.astype(np.int64)
        if self._ends is not None:
            lengths = np.repeat(lengths, self._captions)
        for sample in np.flatnonzero(self._captions > 1).tolist():
            tokens = self._text.read(sample, "lengths")
            if self._ends is None:
                lengths[sample] = tokens.max()
            else:
                lengths[self._ends[sample] - len(tokens) : self._ends[sample]] = tokens
        return lengths

    def of_samples(self, chosen: Positions) -> Positions:
        """With all captions: those of each sample, one after the other."""
        if self._ends is None:
            return chosen
        ranges = [np.arange(self._ends[sample] - self._captions[sample], self._ends[sample]) for sample in chosen]
        return np.concatenate([np.zeros(0, np.int64), *ranges])

    def sample_of(self, position: int) -> int:
        """The sample of a position; with all captions the one that has this caption."""
        return position if self._ends is None else int(np.searchsorted(self._ends, position, side="right"))

    def allocate(self, batch_size: int, pin: bool) -> Buffers:
        """Buffers for captions of full length."""
        image = self._images[0].field("image_embeds")
        (width,) = image.shape
        assert width is not None
        hidden_width, text_width = self._hidden.shape_of(0)[1], self._embed.shape_of(0)[1]
        empty = allocator(pin)
        buffers = {
            "image_embeds": empty((batch_size, width), TORCH_DTYPES[image.dtype]),
            "text_embeds": empty((batch_size, text_width), TORCH_DTYPES[self._embed.dtype]),
            "hidden_states": empty((batch_size, self._full, hidden_width), TORCH_DTYPES[self._hidden.dtype]),
            "lengths": empty((batch_size,), torch.int64),
            "noise": empty((*self._reading.rows(batch_size), width), torch.float32),
            "timesteps": empty(self._reading.rows(batch_size), torch.int64),
        }
        if self._reading.loss_weights is not None:
            buffers["weights"] = empty((batch_size,), torch.float32)
        if self._pack:
            buffers["places"] = empty((batch_size * (self._full + 1 + DRAW * self._reading.draws),), torch.int64)
        return buffers

    def fill(self, buffers: Buffers, batch: MicroBatch) -> Buffers:
        """Read a micro-batch; hidden states are (B, L, D), L the longest caption drawn, zero after each one's end."""
        positions = [self.sample_of(position) for position in batch.positions]
        spans = [self._span(batch.step, *item) for item in zip(batch.slots, batch.positions, positions, strict=True)]
        filled = self._first(buffers, len(positions), max(span.tokens for span in spans))
        hidden, embeds, images = (rows_of(filled[name]) for name in ("hidden_states", "text_embeds", "image_embeds"))
        hidden_array, lengths = filled["hidden_states"].numpy(), filled["lengths"].numpy()
        for i, (slot, position, span) in enumerate(zip(batch.slots, positions, spans, strict=True)):
            self._read_text(position, span, embeds[i], hidden[i])
            image = drawn(self._images, self._draws, batch.step, slot)
            image.read_into(position, "image_embeds", images[i])
            lengths[i] = span.tokens
            hidden_array[i, span.tokens :] = 0
        draw_noise(self._draws, filled, batch, self._reading.timesteps)
        if self._reading.loss_weights is not None:
            weigh(self._samples, self._reading.loss_weights, filled, positions)
        if self._pack:
            places = places_of(lengths, hidden_array.shape[1], self._reading.draws)
            filled["places"] = buffers["places"][: len(places)]
            filled["places"].numpy()[:] = places
        return filled

    def close(self) -> None:
        """Close the files of all columns."""
        for reader in (self._text, *self._images):
            reader.close()

    def _first(self, buffers: Buffers, count: int, longest: int) -> Buffers:
        """The buffers of ``count`` samples, at the length to which their captions are trimmed."""
        length = trimmed_length(longest, self._full) if self._trim else self._full
        width = self._hidden.shape_of(0)[1]
        hidden = buffers["hidden_states"].view(-1)[: count * length * width].view(count, length, width)
        return {**first(buffers, count), "hidden_states": hidden}

    def _span(self, step: int, slot: int, position: int, sample: int) -> _Span:
        """Which caption is read: none at all, the one of this position, or one that is drawn."""
        if self._reading.dropout and self._draws.chance(step, slot, DROPOUT, self._reading.dropout):
            return _Span(None, 0, self._null_tokens)
        count = int(self._captions[sample])
        if count == 1:
            return _Span(0, 0, int(self._tokens[sample]))
        if self._ends is None:
            caption = self._draws.integer(step, slot, CAPTION, count)
        else:
            caption = position - int(self._ends[sample]) + count
        lengths: npt.NDArray[np.generic] = self._text.read(sample, "lengths")
        ends = np.cumsum([0, *lengths.tolist()])
        return _Span(caption, int(ends[caption]), int(ends[caption + 1]))

    def _read_text(self, sample: int, span: _Span, embed: memoryview, hidden: memoryview) -> None:
        nbytes = span.tokens * self._hidden.row_bytes
        if span.caption is None:
            embed[:], hidden[:nbytes] = self._null_embed, self._null_hidden
        elif self._captions[sample] == 1:
            self._text.read_into(sample, "text_embeds", embed)
            self._text.read_into(sample, "hidden_states", hidden[:nbytes])
        else:
            embed[:] = self._text.read(sample, "text_embeds")[span.caption].tobytes()
            hidden[:nbytes] = self._text.read(sample, "hidden_states")[span.start : span.stop].tobytes()
