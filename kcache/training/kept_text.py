"""Sampling from the prior with the text run once: its keys and values are kept for all denoising steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .shared_text import (
    DRAW,
    attend_for_all_heads,
    draw_tokens,
    predictions,
    shared_mask,
    text_tokens,
    what_keeps_apart,
)
from .trimming import run_prior, trimmed_length


class Predictor(Protocol):
    """Predicts the image embeddings (B, D) of B noisy ones (B, D) at timesteps (B,), always for the same captions."""

    def __call__(self, noisy_BD: Tensor, timesteps_B: Tensor) -> Tensor:
        """What the prior computes for them."""


def make_predictor(model: Any, text_embeds_BD: Tensor, hidden_BLD: Tensor, lengths_B: Tensor) -> Predictor:
    """The prior for B captions, without gradients, which runs the text once; at every step, where it is built otherwise
    than that of Kandinsky 2.2. Both compute the same.
    """
    if what_keeps_apart(model) is None:
        return KeptText(model, text_embeds_BD, hidden_BLD, lengths_B)
    return lambda noisy, timesteps: run_prior(model, noisy, timesteps, text_embeds_BD, hidden_BLD, lengths_B)


class KeptText:
    """The keys and values of B captions in every block, and the prior for the three tokens that are left.

    The attention is causal and the text comes first, so no step changes them. They take 4 W bytes for each token and
    block in half precision: 3.4 MB for a caption of 20 tokens at the full size.
    """

    def __init__(self, model: Any, text_embeds_BD: Tensor, hidden_BLD: Tensor, lengths_B: Tensor) -> None:
        """Run the text. Gradients do not go through what is kept: call it, and the instance, without them."""
        attend_for_all_heads(model)
        self._model = model
        self._kept: dict[Any, tuple[Tensor, Tensor]] = {}
        length, tokens = hidden_BLD.shape[1], text_tokens(model, text_embeds_BD, hidden_BLD)
        self._run(tokens, shared_mask(lengths_B, length, 0, tokens.dtype))
        self._mask = shared_mask(lengths_B, length, 1, tokens.dtype)[:, :, -DRAW:]

    def __call__(self, noisy_BD: Tensor, timesteps_B: Tensor) -> Tensor:
        """The predicted image embeddings (B, D) at timesteps (B,)."""
        tokens = self._run(draw_tokens(self._model, noisy_BD[:, None], timesteps_B[:, None]), self._mask)
        return predictions(self._model, tokens)[:, 0]

    def with_earlier(self, attn: Any, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """What a block's attention looks at: the text's keys and values alone the first time, then before new ones."""
        if attn not in self._kept:
            self._kept[attn] = (F.pad(key, (0, 0, 0, DRAW)), F.pad(value, (0, 0, 0, DRAW)))  # room for the new ones
            return key, value
        for room, new in zip(self._kept[attn], (key, value), strict=True):
            room[:, :, -DRAW:] = new
        return self._kept[attn]

    def _run(self, tokens: Tensor, mask: Tensor) -> Tensor:
        for block in self._model.transformer_blocks:
            tokens = block(tokens, attention_mask=mask, cross_attention_kwargs={"kept": self})
        return tokens


@contextmanager
def text_run_once(model: Any) -> Iterator[None]:
    """Within it a `PriorTransformer`, called by a stock pipeline, runs the text once for all steps of a prompt.

    The pipeline hands over the same tensors at every step, by which its steps are told from those of another prompt. A
    prior that is built otherwise than that of Kandinsky 2.2 is left as it is.
    """
    if what_keeps_apart(model) is not None:
        yield
        return
    from diffusers.models.transformers.prior_transformer import PriorTransformerOutput

    now: list[Any] = [None, None]

    def forward(
        hidden_states: Tensor,
        timestep: Tensor,
        proj_embedding: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
    ) -> Any:
        if now[0] is not encoder_hidden_states:
            now[:] = encoder_hidden_states, _trimmed(model, proj_embedding, encoder_hidden_states, attention_mask)
        predicted = now[1](hidden_states, timestep.to(hidden_states.device).expand(len(hidden_states)))
        return PriorTransformerOutput(predicted_image_embedding=predicted)

    model.forward = forward
    try:
        yield
    finally:
        del model.forward


def _trimmed(model: Any, text_embeds_BD: Tensor, hidden_BLD: Tensor, mask_BL: Tensor) -> KeptText:
    """The text at the length of the longest caption."""
    lengths_B = mask_BL.sum(1)
    longest = trimmed_length(int(lengths_B.max()), model.config.num_embeddings)
    with torch.no_grad():
        return KeptText(model, text_embeds_BD, hidden_BLD[:, :longest], lengths_B)
