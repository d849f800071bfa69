"""The prior's text run once for several noise draws of a caption: exactly what as many passes would give.

The attention is causal and the text comes first, so no token of the text depends on the noise. The sequence is
``[text, pooled, (time, noisy, prd) of each draw]``, in which every draw sees the text and itself, and no other draw.
Shapes: B captions, L text positions, K draws of each, T = L + 1 + 3 K tokens, N tokens of a whole batch that are no
padding, W the width of the prior, D that of the CLIP embedding.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from kcache.shards import KcacheError

DRAW = 3
"""Tokens of one draw: the timestep, the noisy image embedding, and the one whose output is the prediction."""

_MASKED = -10000.0
"""What the prior itself adds where attention is not to look: exp(-10000) is 0 in every precision."""
_ALIGNMENT = 8
"""Values to which the rows of a mask are aligned: the attention kernels of GPUs copy those of any other mask."""


class PriorAttention:
    """Attention as diffusers' `AttnProcessor2_0` has it, to the bit, that takes three things more.

    A mask (B, 1, T, T) that all heads share is not repeated for each of them. With ``kept`` the keys and values of
    tokens that came before are looked at too, or are put aside: see `kcache.training.kept_text`. With ``places`` the
    tokens of a batch come packed, as one sequence of N without padding, which is but here laid out as B times T.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        kept: Any = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """The output (B, T, W) for hidden states (B, T, W); the names are those that diffusers calls it with."""
        mask, projections = attention_mask, (attn.to_q, attn.to_k, attn.to_v)
        if mask is not None and mask.dim() == 3:  # from PriorTransformer.forward: (B * heads, T, T)
            mask = mask.view(-1, attn.heads, *mask.shape[1:])
        projected = [project(hidden_states) for project in projections]
        if places is not None and mask is not None:
            projected = [unpacked(one, places, mask.shape[0], mask.shape[-1]) for one in projected]
        heads = (*projected[0].shape[:2], attn.heads, -1)
        query, key, value = (one.view(heads).transpose(1, 2) for one in projected)
        if kept is not None:
            key, value = kept.with_earlier(attn, key, value)
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        output = output.transpose(1, 2).flatten(2).to(query.dtype)
        output = attn.to_out[0](output if places is None else packed(output, places))
        dropped: Tensor = attn.to_out[1](output)
        return dropped


_ATTENTION = PriorAttention()


def what_keeps_apart(model: Any) -> str | None:
    """What a `PriorTransformer` has otherwise than that of Kandinsky 2.2, so that draws cannot share a text; or None.

    Tokens must meet in the attention of its blocks alone, and the last four be what this file takes them for.
    """
    from diffusers.models.attention_processor import AttnProcessor2_0

    for name, expected in (("added_emb_type", "prd"), ("additional_embeddings", DRAW + 1)):
        if (found := model.config[name]) != expected:
            return f"{name} {found} instead of {expected}"
    kinds = {type(processor).__name__ for processor in model.attn_processors.values()}
    if other := kinds - {AttnProcessor2_0.__name__, PriorAttention.__name__}:
        return f"attention by {', '.join(sorted(other))} instead of {AttnProcessor2_0.__name__}"
    if (found := len(model.attn_processors)) != (blocks := len(model.transformer_blocks)):
        return f"{found} attention layers in {blocks} blocks"
    return None


def require_shared_text(model: Any, name: str, option: str) -> None:
    """KcacheError where an option of this file is not for the prior ``name``; else the model is made ready for it."""
    if reason := what_keeps_apart(model):
        raise KcacheError(
            f"{option} is for priors built like that of Kandinsky 2.2, and {name} has {reason}; leave it out"
        )
    attend_for_all_heads(model)


def attend_for_all_heads(model: Any) -> None:
    """Give the blocks `PriorAttention`. What the model computes by itself stays the same to the bit."""
    for block in model.transformer_blocks:
        block.attn1.set_processor(_ATTENTION)


def run_draws(
    model: Any,
    noisy_BKD: Tensor,
    timesteps_BK: Tensor,
    text_embeds_BD: Tensor,
    hidden_BLD: Tensor,
    lengths_B: Tensor,
    places_N: Tensor | None = None,
) -> Tensor:
    """The predicted image embeddings (B, K, D): those of `run_prior` for each of the K draws by itself.

    Needs `require_shared_text`. With dropout in the model or a LoRA, the draws of a caption share the text's masks.
    With ``places_N``, which are those of `places_of`, the blocks run no padding: the same result, from fewer tokens.
    """
    text_BTW = text_tokens(model, text_embeds_BD, hidden_BLD)
    tokens_BTW = torch.cat([text_BTW, draw_tokens(model, noisy_BKD, timesteps_BK)], 1)
    mask = shared_mask(lengths_B, hidden_BLD.shape[1], noisy_BKD.shape[1], tokens_BTW.dtype)
    options = {} if places_N is None else {"cross_attention_kwargs": {"places": places_N}}
    tokens = tokens_BTW if places_N is None else packed(tokens_BTW, places_N)
    for block in model.transformer_blocks:
        tokens = block(tokens, attention_mask=mask, **options)
    if places_N is not None:
        tokens = unpacked(tokens, places_N, *tokens_BTW.shape[:2])
    return predictions(model, tokens[:, text_BTW.shape[1] :])


def places_of(lengths_B: npt.NDArray[np.integer], length: int, draws: int) -> npt.NDArray[np.intp]:
    """Where among B times T the tokens are that are no padding (shape (N,)), of B captions in L positions."""
    place = np.arange(length + 1 + DRAW * draws)
    return np.flatnonzero((place < lengths_B[:, None]) | (place >= length))


def packed(tokens_BTW: Tensor, places_N: Tensor) -> Tensor:
    """The tokens at some places, as one sequence (1, N, W)."""
    return tokens_BTW.flatten(0, 1).index_select(0, places_N)[None]


def unpacked(tokens_1NW: Tensor, places_N: Tensor, count: int, size: int) -> Tensor:
    """The tokens back at their places, and zeros at all others (B, T, W)."""
    empty = tokens_1NW.new_zeros(count * size, tokens_1NW.shape[-1])
    return empty.index_copy(0, places_N, tokens_1NW[0]).view(count, size, -1)


def text_tokens(model: Any, text_embeds_BD: Tensor, hidden_BLD: Tensor) -> Tensor:
    """What enters the blocks for the text and the pooled embedding (B, L + 1, W), as `PriorTransformer` makes it."""
    if model.embedding_proj_norm is not None:
        text_embeds_BD = model.embedding_proj_norm(text_embeds_BD)
    if model.encoder_hidden_states_proj is not None:
        hidden_BLD = model.encoder_hidden_states_proj(hidden_BLD)
    tokens = torch.cat([hidden_BLD, model.embedding_proj(text_embeds_BD)[:, None]], 1)
    places, after_text = model.positional_embedding, model.config.num_embeddings
    places = torch.cat([places[:, : hidden_BLD.shape[1]], places[:, after_text : after_text + 1]], 1)
    return _normed(model, tokens + places.to(tokens.dtype))


def draw_tokens(model: Any, noisy_BKD: Tensor, timesteps_BK: Tensor) -> Tensor:
    """What enters the blocks for the draws (B, 3 K, W): every draw at the same three places."""
    projected = model.time_proj(timesteps_BK.flatten()).to(model.dtype)
    noisy_BKW = model.proj_in(noisy_BKD)
    time_BKW = model.time_embedding(projected).view_as(noisy_BKW)
    prd_BKW = model.prd_embedding.to(noisy_BKW.dtype).expand_as(noisy_BKW)
    tokens = torch.stack([time_BKW, noisy_BKW, prd_BKW], 2)
    places = model.positional_embedding[:, -DRAW:].to(tokens.dtype)
    return _normed(model, (tokens + places).flatten(1, 2))


def shared_mask(lengths_B: Tensor, length: int, draws: int, dtype: torch.dtype) -> Tensor:
    """What is added to the attention (B, 1, T, T): causal, no padding, and no draw but one's own."""
    size = length + 1 + DRAW * draws
    aligned = -(-size // _ALIGNMENT) * _ALIGNMENT
    place = torch.arange(aligned, device=lengths_B.device)
    draw = (place - length - 1).div(DRAW, rounding_mode="floor").clamp(min=-1)  # -1: text and pooled embedding
    of_text, of_query = draw < 0, draw[:size, None] == draw
    seen_TT = (of_text | of_query) & (place <= place[:size, None])
    real_BT = (place < lengths_B[:, None]) | (place >= length)
    mask = torch.zeros((), dtype=dtype, device=lengths_B.device)
    return torch.where(seen_TT & real_BT[:, None, None], mask, _MASKED)[..., :size]


def predictions(model: Any, draws_BTW: Tensor) -> Tensor:
    """The image embeddings (B, K, D) that the last token of every draw became (of B, 3 K, W after the blocks)."""
    predicted: Tensor = model.proj_to_clip_embeddings(model.norm_out(draws_BTW[:, DRAW - 1 :: DRAW]))
    return predicted


def _normed(model: Any, tokens: Tensor) -> Tensor:
    return tokens if model.norm_in is None else model.norm_in(tokens)
