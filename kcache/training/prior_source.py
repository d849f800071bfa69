"""What the prior reads: a caption's features and an image embedding of each sample, and its draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from kcache.shards import CacheError, read_null

from .draws import CAPTION, DROPOUT, Draws
from .samples import Positions, Rows, Samples
from .shared_text import DRAW, places_of
from .sources import TORCH_DTYPES, Buffers, MicroBatch, Reading, allocator, draw_noise, drawn, first, rows_of, weigh
from .trimming import trimmed_length


@dataclass
class _Spans:
    """Which caption of each sample is read, and where its tokens begin and end in the arrays that are stored.

    ``captions`` are numbers, or one of `WHOLE` and `EMPTY`; ``starts`` and ``stops`` have shape ``(B,)``.
    """

    captions: list[int]
    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]

    @property
    def tokens(self) -> list[int]:
        """How many tokens each caption has."""
        found: list[int] = (self.stops - self.starts).tolist()
        return found


AT_ONCE = 2**18
"""Samples whose captions are looked at in one go, before any is read."""

WHOLE, EMPTY = -1, -2
"""The only caption of a sample, whose arrays are read as they are; and the empty caption in its place."""


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
        self._name, self._full, self._trim = text, num_embeddings, trim
        self._embed, self._hidden = self._text.field("text_embeds"), self._text.field("hidden_states")
        self._require_whole_captions()
        if all_captions:
            self._captions = self._text.nbytes("lengths") // 4
        self._ends = np.cumsum(self._captions, dtype=np.int64) if all_captions else None
        self._pack, self._group_by_length = pack, group_by_length
        if reading.dropout:
            cache = samples.snapshots[0].cache
            null = read_null(cache, cache.column(text))
            self._null_embed, self._null_hidden = (null[name].tobytes() for name in ("text_embeds", "hidden_states"))
            self._null_tokens = len(null["hidden_states"])

    def _require_whole_captions(self) -> None:
        """CacheError for a sample whose fields have other numbers of captions, or tokens that no captions have.

        kcache writes none such, but a cache may be a stranger's, and its captions would be taken for one another.
        """
        for start in range(0, len(self._samples), AT_ONCE):
            rows = self._text.rows(np.arange(start, min(start + AT_ONCE, len(self._samples))))
            captions, embeds = rows.nbytes("lengths") // 4, rows.nbytes("text_embeds") // self._embed.row_bytes
            tokens, most = rows.nbytes("hidden_states") // self._hidden.row_bytes, captions * np.int64(self._full)
            wrong = (captions == 0) | (embeds != captions) | (tokens < captions) | (tokens > most)
            if wrong.any():
                i = int(np.flatnonzero(wrong)[0])
                counts = f"{captions[i]:,} in 'lengths', {embeds[i]:,} in 'text_embeds'"
                raise self._unfit(start + i, f"{counts}, of {tokens[i]:,} tokens in 'hidden_states'")

    def _unfit(self, sample: int, captions: str) -> CacheError:
        cache = self._samples.snapshots[self._samples.place(sample)[0]].cache
        return CacheError(
            f"column '{self._name}' of {cache.name} does not say where the captions of '{self._samples.id(sample)}'"
            f" begin ({captions}; each has 1 to {self._full}), so kcache did not write it: encode it again with"
            f" 'kcache encode DATASET {cache.name} --replace-column {self._name}'"
        )

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
        captions = self._text.nbytes("lengths") // 4
        lengths: Positions = (self._text.nbytes("hidden_states") // self._hidden.row_bytes).astype(np.int64)
        if self._ends is not None:
            lengths = np.repeat(lengths, captions)
        for sample in np.flatnonzero(captions > 1).tolist():
            tokens = self._text.rows([sample]).read(0, "lengths").astype(np.int64)
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

    def samples_of(self, positions: Positions) -> Positions:
        """The sample of each position; with all captions the one that has this caption."""
        return positions if self._ends is None else np.searchsorted(self._ends, positions, side="right")

    def sample_of(self, position: int) -> int:
        """The sample of one position."""
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
        """Read a micro-batch and draw for it."""
        filled = self.read(buffers, batch)
        draw_noise(self._draws, filled, batch, self._reading.timesteps)
        if self._reading.loss_weights is not None:
            weigh(self._samples, self._reading.loss_weights, filled, self.samples_of(np.asarray(batch.positions)))
        if self._pack:
            places = places_of(filled["lengths"].numpy(), filled["hidden_states"].shape[1], self._reading.draws)
            filled["places"] = buffers["places"][: len(places)]
            filled["places"].numpy()[:] = places
        return filled

    def read(self, buffers: Buffers, batch: MicroBatch) -> Buffers:
        """Read a micro-batch; hidden states are (B, L, D), L the longest caption drawn, zero after each one's end."""
        samples = self.samples_of(np.asarray(batch.positions))
        text = self._text.rows(samples)
        spans = self._spans(batch, text)
        filled = self._first(buffers, len(samples), max(spans.tokens))
        self._read_text(text, spans, filled)
        images = rows_of(filled["image_embeds"])
        for reader, chosen in drawn(self._images, self._draws, batch):
            reader.rows(samples[chosen]).read_into("image_embeds", [images[i] for i in chosen])
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

    def _spans(self, batch: MicroBatch, text: Rows) -> _Spans:
        """Which captions are read: none at all, the one of this position, or one that is drawn."""
        counts, stops = text.nbytes("lengths") // 4, text.nbytes("hidden_states") // self._hidden.row_bytes
        spans = _Spans([WHOLE] * len(counts), np.zeros(len(counts), np.int64), stops.astype(np.int64))
        for i in np.flatnonzero(counts != 1).tolist():
            caption = self._caption(batch.step, batch.slots[i], batch.positions[i], int(counts[i]))
            ends = self._ends_of(text, i, self.sample_of(batch.positions[i]), int(stops[i]))
            spans.captions[i], spans.starts[i], spans.stops[i] = caption, ends[caption], ends[caption + 1]
        for i, slot in enumerate(batch.slots if self._reading.dropout else ()):
            if self._draws.chance(batch.step, slot, DROPOUT, self._reading.dropout):
                spans.captions[i], spans.starts[i], spans.stops[i] = EMPTY, 0, self._null_tokens
        return spans

    def _ends_of(self, text: Rows, i: int, sample: int, tokens: int) -> npt.NDArray[np.int64]:
        """Where the captions of the ``i``-th row begin among its tokens, and where the last one ends."""
        lengths: npt.NDArray[np.int64] = text.read(i, "lengths").astype(np.int64)
        if lengths.sum() != tokens or lengths.min() < 1 or lengths.max() > self._full:
            raise self._unfit(sample, f"lengths {lengths.tolist()} of {tokens:,} tokens")
        return np.cumsum([0, *lengths.tolist()])

    def _caption(self, step: int, slot: int, position: int, count: int) -> int:
        """Which of several captions is read: the one of this position, or one that is drawn."""
        if self._ends is None:
            return self._draws.integer(step, slot, CAPTION, count)
        return position - int(self._ends[self.sample_of(position)]) + count

    def _read_text(self, text: Rows, spans: _Spans, filled: Buffers) -> None:
        """Fill ``text_embeds``, ``hidden_states`` and ``lengths``: samples with one caption straight from the files."""
        tokens, row_bytes = spans.tokens, self._hidden.row_bytes
        embeds, hidden = rows_of(filled["text_embeds"]), rows_of(filled["hidden_states"])
        hidden = [row[: count * row_bytes] for row, count in zip(hidden, tokens, strict=True)]
        whole = [i for i, caption in enumerate(spans.captions) if caption == WHOLE]
        of_one = text if len(whole) == len(tokens) else text.only(whole)
        of_one.read_into("text_embeds", [embeds[i] for i in whole])
        of_one.read_into("hidden_states", [hidden[i] for i in whole])
        for i, caption in enumerate(spans.captions):
            if caption == EMPTY:
                embeds[i][:], hidden[i][:] = self._null_embed, self._null_hidden
            elif caption != WHOLE:
                embeds[i][:] = text.read(i, "text_embeds")[caption].tobytes()
                hidden[i][:] = text.read(i, "hidden_states")[spans.starts[i] : spans.stops[i]].tobytes()
        for row, count in zip(filled["hidden_states"].numpy(), tokens, strict=True):
            row[count:] = 0
        filled["lengths"].numpy()[:] = tokens
