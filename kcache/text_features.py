"""CLIP text of a prior's checkpoint: its tokenizer, and what a caption becomes."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kcache.fingerprints import file_sha256
from kcache.landing import Landing, send
from kcache.shards.errors import KcacheError
from kcache.shards.records import digest

if TYPE_CHECKING:
    import torch

EncodedCaption = tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]
"""``text_embeds`` (D,) and the ``hidden_states`` (T, D) of the real tokens."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a checkpoint's ``tokenizer`` folder."""
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(str(folder))
    except Exception as error:  # A damaged vocabulary raises bare Exceptions from the Rust below.
        cause = str(error).split("\n")[0].rstrip(". ")
        raise KcacheError(
            f"{folder} does not load as CLIPTokenizer ({cause}); download the checkpoint again"
        ) from error


def vocabulary_digest(folder: Path) -> str:
    """sha256 over the files that fix how captions become tokens.

    The pad token is not among them: padding comes last, attention is causal, and its hidden states are dropped.
    """
    names = [name for name in ("vocab.json", "merges.txt") if (folder / name).is_file()] or ["tokenizer.json"]
    if not all((folder / name).is_file() for name in names):
        raise KcacheError(f"{folder} has neither vocab.json and merges.txt nor tokenizer.json; download it again")
    return digest({name: file_sha256(folder / name) for name in names})


def token_counts(tokenizer: Any, captions: Sequence[str]) -> list[int]:
    """How many tokens each caption has before it is cut: begin, text and end."""
    return [len(row) for row in tokenizer(list(captions), verbose=False).input_ids] if captions else []


def encode_captions(
    model: Any, tokenizer: Any, captions: Sequence[str], device: "torch.device", length: int | None = None
) -> list[EncodedCaption]:
    """What `begin_captions` gives, waited for."""
    return [wait() for wait in begin_captions(model, tokenizer, captions, device, length)]


def begin_captions(
    model: Any, tokenizer: Any, captions: Sequence[str], device: "torch.device", length: int | None = None
) -> list[Callable[[], EncodedCaption]]:
    """Captions given to the device; to call one of what this returns is to wait for that caption.

    As the reference computes them, in fp32: padded to ``model_max_length``, cut there, without a mask.
    Pad tokens are then dropped, which loses nothing: the prior masks them and reads only its last token. ``length``
    pads to fewer tokens, of which none of the captions has more: the same but for rounding, as attention is causal and
    what follows a token does not reach it.
    """
    import torch

    length = length or tokenizer.model_max_length
    tokens = tokenizer(list(captions), max_length=length, padding="max_length", truncation=True, return_tensors="pt")
    with torch.inference_mode():
        output = model(send(tokens.input_ids, device))
        embeds, hidden_states = Landing(output.text_embeds), Landing(output.last_hidden_state)
    counts = tokens.attention_mask.sum(1).tolist()
    return [partial(_landed, embeds, hidden_states, i, count) for i, count in enumerate(counts)]


def _landed(embeds: Landing, hidden_states: Landing, i: int, count: int) -> EncodedCaption:
    return embeds.row(i), hidden_states.row(i)[:count]
