"""Validation prompts encoded once, before training, by encoders that are then freed; kept in OUT."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kcache.checkpoints import Checkpoint, Component
from kcache.devices import free_memory, inference_dtype, is_out_of_memory
from kcache.fingerprints import config_digest
from kcache.progress import hush_libraries, logger
from kcache.shards import KcacheError, durable
from kcache.shards.records import Record, digest
from kcache.text_features import encode_captions, load_tokenizer, token_counts, vocabulary_digest

from .sampling import (
    STEPS,
    TextFeatures,
    first_noise,
    sample_image_embeds,
    sampling_scheduler,
    seeded,
)

Tensors = dict[str, Tensor]
_SEAL = "kcache"
"""Under which the metadata of a file has the sha256 of its content."""


def prompt_features(
    prior: Checkpoint, prompts: Sequence[str], folder: Path, device: torch.device
) -> tuple[TextFeatures, TextFeatures]:
    """The text features of each prompt and of the empty one, on the CPU."""

    def encode() -> Tensors:
        return asdict(_encode(prior, [*prompts, ""], device))

    record = {"prompts": list(prompts), **_text_identity(prior)}
    features = TextFeatures(**_kept(prior, record, encode, folder, device))
    return features.rows(0, -1), features.rows(-1, None)


def sampled_prompts(
    prior: Checkpoint, prompts: Sequence[str], images: int, guidance_scale: float, folder: Path, device: torch.device
) -> Tensor:
    """Image embeddings (P * N, D) of P prompts by the prior of a checkpoint, on the CPU, prompt after prompt.

    Picture n of a prompt is sampled with seed n.
    """
    scheduler = sampling_scheduler(prior)
    record = {
        "prompts": list(prompts),
        "images": images,
        "steps": STEPS,
        "guidance_scale": guidance_scale,
        "scheduler": config_digest(dict(scheduler.config)),
        "prior": prior.component("prior").identity(),
        **_text_identity(prior),
    }

    def sample() -> Tensors:
        return {"image_embeds": _sample(prior, scheduler, prompts, images, guidance_scale, device)}

    return _kept(prior, record, sample, folder, device)["image_embeds"]


def _text_identity(prior: Checkpoint) -> Record:
    tokenizer = prior.component("tokenizer").folder
    return {"text_encoder": prior.component("text_encoder").identity(), "vocabulary": vocabulary_digest(tokenizer)}


def _encode(prior: Checkpoint, captions: Sequence[str], device: torch.device) -> TextFeatures:
    from transformers import CLIPTextModelWithProjection

    tokenizer = load_tokenizer(prior.component("tokenizer").folder)
    limit = tokenizer.model_max_length
    for caption, count in zip(captions, token_counts(tokenizer, captions), strict=True):
        if count > limit:
            logger.warning("validation prompt '%s' is cut to %d tokens: it has %d", caption, limit, count)
    model = _load(prior.component("text_encoder"), CLIPTextModelWithProjection, device)
    return TextFeatures.of(encode_captions(model, tokenizer, captions, device))


def _sample(
    prior: Checkpoint,
    scheduler: Any,
    prompts: Sequence[str],
    images: int,
    guidance_scale: float,
    device: torch.device,
) -> Tensor:
    from diffusers import PriorTransformer

    features = _encode(prior, [*prompts, ""], device)
    model = _load(prior.component("prior"), PriorTransformer, device)
    generators = seeded(len(prompts), images)
    text, null = features.rows(0, -1).repeated(images), features.rows(-1, None)
    noise = first_noise(model, generators).to(device)
    return sample_image_embeds(
        model, scheduler, text, null, noise_BD=noise, generator=generators, guidance_scale=guidance_scale
    ).cpu()


def _load(component: Component, model_class: Any, device: torch.device) -> Any:
    hush_libraries()
    return component.load(model_class, inference_dtype(device)).to(device)


def _kept(
    prior: Checkpoint, record: Record, make: Callable[[], Tensors], folder: Path, device: torch.device
) -> Tensors:
    """What ``make`` gave for ``record`` when it was first asked, read back from its file; else made now and written.

    With several processes the main one makes it, and the others wait and read.
    """
    from accelerate import PartialState

    name = digest(record)
    path = folder / f"prompts-{name[:16]}.safetensors"
    with PartialState().main_process_first():
        kept = _read(path, name)
        if kept is None:
            logger.info("encoding %d validation prompts with %s", len(record["prompts"]), prior.name_or_path)
            kept = _make(prior, make, device)
            durable.replace(path, save(kept, {_SEAL: _content(name, kept)}))
        return kept


def _make(prior: Checkpoint, make: Callable[[], Tensors], device: torch.device) -> Tensors:
    try:
        made = make()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise KcacheError(
            f"the encoders of {prior.name_or_path} do not fit into the memory of {device} for the validation prompts;"
            " free some, or leave --validation-prompts out"
        ) from error
    free_memory(device)  # only here are the models gone with the frames that held them
    return {key: tensor.contiguous() for key, tensor in made.items()}


def _read(path: Path, wanted: str) -> Tensors | None:
    """The tensors of a file that holds what it was named after, whole; None for any other, which is said."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            seal, names = (file.metadata() or {}).get(_SEAL), file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError):
        seal, tensors = None, {}
    if seal is not None and seal == _content(wanted, tensors):
        return tensors
    logger.warning("%s is damaged, or not what kcache wrote: the validation prompts are encoded anew", path)
    return None


def _content(name: str, tensors: Tensors) -> str:
    """sha256 over what was encoded and what came of it, which safetensors itself does not check."""
    sha256 = hashlib.sha256(name.encode())
    for key, tensor in sorted(tensors.items()):
        sha256.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha256.update(tensor.numpy().tobytes())
    return sha256.hexdigest()
