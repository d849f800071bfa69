"""CLIP text: what a caption becomes, and how long captions are cut."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np

from kcache.checkpoints import Checkpoint
from kcache.shards import Column, Field
from kcache.text_features import EncodedCaption, begin_captions, load_tokenizer, token_counts, vocabulary_digest

from .batches import Batches
from .encoders import STORE_DTYPES, Awaited, Features, Models, Precision, notes_of
from .templates import CaptionTemplate

MULTIPLE = 8
"""Tokens to a multiple of which trimmed captions are padded: few lengths make large batches."""

Coming = Callable[[], EncodedCaption]
"""A caption that a device may be at still, to be waited for."""


class TextColumn:
    """CLIP text: ``text_embeds`` and the hidden states of the real tokens, caption after caption.

    Computed by `begin_captions`. A sample with C captions of T1 .. TC tokens has ``text_embeds`` (C, D),
    ``hidden_states`` (T1 + .. + TC, D) and ``lengths`` (C,).
    """

    def __init__(
        self,
        name: str,
        prior: Checkpoint,
        precision: Precision,
        models: Models,
        template: CaptionTemplate | None = None,
        *,
        trim: bool = False,
    ) -> None:
        """Read the configuration and hash the weights; load nothing. A template is put around every caption.

        ``trim`` runs the encoder at each caption's own length, rounded up to `MULTIPLE`, instead of the longest.
        """
        self._trim = trim
        self._component, self._precision, self._template = prior.component("text_encoder"), precision, template
        self._tokenizer_folder = prior.component("tokenizer").folder
        self._models, self._batches = models, Batches(name, "caption", precision.device)
        config, stored = self._component.config(), STORE_DTYPES[precision.store_dtype]
        self.column = Column(
            name=name,
            reads="captions",
            fields=(
                Field("text_embeds", stored, (None, config["projection_dim"])),
                Field("hidden_states", stored, (None, config["hidden_size"])),
                Field("lengths", "int32", (None,)),
            ),
            encoder={"class": "CLIPTextModelWithProjection", **self._component.identity()},
            preprocessing={
                "vocabulary": vocabulary_digest(self._tokenizer_folder),
                "max_length": self.tokenizer.model_max_length,
                **({"template": template.source} if template else {}),
                **({"padded_to_multiple_of": MULTIPLE} if trim else {}),
            },
            encode_dtype=precision.encode_dtype,
            notes=notes_of(prior),
        )

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return load_tokenizer(self._tokenizer_folder)

    def load(self) -> None:
        """Load the model."""
        _ = self._model

    @cached_property
    def _model(self) -> Any:
        from transformers import CLIPTextModelWithProjection

        return self._models.load(self._component, CLIPTextModelWithProjection, self._precision)

    def token_counts(self, captions: Sequence[str]) -> list[int]:
        """How many tokens of each caption are stored: begin, text and end, cut at ``model_max_length``."""
        return [min(count, self.tokenizer.model_max_length) for count in self.uncut_token_counts(captions)]

    def uncut_token_counts(self, captions: Sequence[str]) -> list[int]:
        """How many tokens each caption has before it is cut, those of the template with it."""
        return token_counts(self.tokenizer, self._templated(captions))

    def cut_captions(self, captions: Sequence[str]) -> list[tuple[str, int]]:
        """The captions that are longer than ``model_max_length`` tokens and so are cut, with their uncut counts."""
        counted = zip(captions, self.uncut_token_counts(captions), strict=True)
        return [(caption, count) for caption, count in counted if count > self.tokenizer.model_max_length]

    def features(self, inputs: Sequence[Sequence[str]], batch_size: int) -> Iterator[Awaited]:
        """The features of each sample from its captions, in order; captions that are equal are encoded once."""
        return self._features([self._templated(captions) for captions in inputs], batch_size)

    def null(self) -> Features:
        """The features of the empty caption, without a template: what guidance steers away from has no words at all."""
        return next(self._features([[""]], 1))()

    def _templated(self, captions: Sequence[str]) -> list[str]:
        return [self._template(caption) for caption in captions] if self._template else list(captions)

    def _features(self, inputs: Sequence[Sequence[str]], batch_size: int) -> Iterator[Awaited]:
        last_use = {caption: i for i, captions in enumerate(inputs) for caption in captions}
        distinct = list(last_use)  # in the order of their first use, so that each is encoded when it is asked for
        model = self._model  # loaded outside of the batches: no smaller batch helps where its weights do not fit
        encoded = (
            self._trimmed(model, distinct, batch_size) if self._trim else self._padded(model, distinct, batch_size)
        )
        kept: dict[str, Coming] = {}
        for i, captions in enumerate(inputs):
            for caption in captions:
                if caption not in kept:
                    kept[caption] = next(encoded)
            yield partial(_joined, [kept[caption] for caption in captions])
            kept = {caption: one for caption, one in kept.items() if last_use[caption] > i}

    def _padded(
        self, model: Any, captions: Sequence[str], batch_size: int, length: int | None = None
    ) -> Iterator[Coming]:
        tokenizer, device = self.tokenizer, self._precision.device
        return self._batches.map(
            lambda batch: begin_captions(model, tokenizer, batch, device, length), captions, batch_size
        )

    def _trimmed(self, model: Any, captions: Sequence[str], batch_size: int) -> Iterator[Coming]:
        """Captions of one length together, so that the length of each depends on nothing but itself."""
        by_length: dict[int, list[str]] = {}
        for caption, tokens in zip(captions, token_counts(self.tokenizer, captions), strict=True):
            length = min(-(-tokens // MULTIPLE) * MULTIPLE, self.tokenizer.model_max_length)
            by_length.setdefault(length, []).append(caption)
        encoded: dict[str, Coming] = {}
        for length, alike in sorted(by_length.items()):
            encoded |= zip(alike, self._padded(model, alike, batch_size, length), strict=True)
        return (encoded.pop(caption) for caption in captions)


def _joined(coming: Sequence[Coming]) -> Features:
    """The fields of one sample from its encoded captions."""
    captions = [wait() for wait in coming]
    return {
        "text_embeds": np.stack([embeds for embeds, _ in captions]),
        "hidden_states": np.concatenate([hidden_states for _, hidden_states in captions]),
        "lengths": np.asarray([len(hidden_states) for _, hidden_states in captions], np.int32),
    }
