"""The prior at the batch's own caption length instead of 77 tokens: the same outputs, a fraction of the work."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.func import functional_call

MULTIPLE = 8
"""Lengths are rounded up to this: matrix units like it, and few different shapes are compiled."""


def trimmed_length(longest: int, num_embeddings: int) -> int:
    """The number of text positions to run the prior at."""
    return min(-(-longest // MULTIPLE) * MULTIPLE, num_embeddings)


def run_prior(
    model: Any, noisy_BD: Tensor, timesteps_B: Tensor, text_embeds_BD: Tensor, hidden_BLD: Tensor, lengths_B: Tensor
) -> Tensor:
    """The predicted image embedding (B, D) of a `PriorTransformer` at L text positions, L <= ``num_embeddings``.

    At L < num_embeddings the model is run with the positional embeddings and the causal mask of the positions that are
    left: the first L of the text and those of the embedding, the timestep, the noisy image and the final token. The
    positions dropped are padding, which attention gives a weight of exp(-10000) = 0, and nothing reads their outputs.
    Both may be wrapped by DistributedDataParallel: the parameters stay the model's own, so gradients reach them.
    """
    length, full = hidden_BLD.shape[1], model.config.num_embeddings
    mask_BL = torch.arange(length, device=lengths_B.device) < lengths_B[:, None]
    inputs = {"proj_embedding": text_embeds_BD, "encoder_hidden_states": hidden_BLD, "attention_mask": mask_BL}
    if length == full:
        output = model(noisy_BD, timestep=timesteps_B, **inputs)
        return cast(Tensor, output.predicted_image_embedding)
    positions = torch.arange(full + model.additional_embeddings, device=noisy_BD.device)
    keep = torch.cat([positions[:length], positions[full:]])
    shorter = {
        "positional_embedding": model.positional_embedding[:, keep],
        "causal_attention_mask": model.causal_attention_mask[:, keep][:, :, keep],
    }
    output = functional_call(model, shorter, (noisy_BD,), {"timestep": timesteps_B, **inputs})
    return cast(Tensor, output.predicted_image_embedding)
