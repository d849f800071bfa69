"""Validation pictures: made of the model in training, written as a labelled sheet, changing nothing of the training."""

import io
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kcache.checkpoints import Checkpoint
from kcache.devices import free_memory, is_out_of_memory
from kcache.grids import Group, labelled_sheet
from kcache.progress import logger
from kcache.shards import KcacheError, durable

from .artists import PROMPT, DecoderArtist, HeldOutPictures, Picture, PriorArtist, Row
from .config import DecoderConfig, PriorConfig
from .painter import STEPS, Painter
from .prompts import prompt_features, sampled_prompts
from .sampling import STEPS as PRIOR_STEPS
from .sampling import sampling_scheduler
from .stages import start_of

FOLDER = "validation"
"""Where in OUT the pictures and the encoded prompts are."""


class Artist(Protocol):
    """What makes the pictures of one stage."""

    def rows(self, model: Any) -> dict[str, list[Row]]:
        """The pictures by the title of their section, with the model in training."""


class Validator:
    """Makes the same pictures whenever it is asked, with what the model has learned by then."""

    def __init__(self, folder: Path, device: torch.device, artist: Artist, guidance_scale: float) -> None:
        """Pictures are written into ``folder``; the guidance that they are made with is recorded beside them."""
        self._folder, self._device, self._artist = folder, device, artist
        self._guidance_scale = guidance_scale

    def draw(self, model: Any, step: int) -> list[Picture]:
        """Make the pictures after update ``step``, write ``step-000500.png`` and ``.json``, and return them.

        Call it with the component itself, unwrapped, within the autocast that training runs under. Modes, weights and
        torch's random numbers are afterwards what they were. Only the main process makes pictures: the others get none,
        and so does a validation for which the device has too little memory, which is said and ends no run.
        """
        from accelerate import PartialState

        if not PartialState().is_main_process:
            return []
        started = time.monotonic()
        try:
            with undisturbed(model, self._device):
                sections = self._artist.rows(model)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            sections = {}
        if not sections:  # only here is the traceback gone that kept the tensors alive
            free_memory(self._device)
            logger.warning("%s has too little memory for the pictures after update %s", self._device, f"{step:,}")
            return []
        pictures = [picture for rows in sections.values() for row in rows for picture in row]
        path = self._write(step, sections, pictures)
        seconds = time.monotonic() - started
        logger.info("%d validation pictures after update %s in %s (%.1f s)", len(pictures), f"{step:,}", path, seconds)
        return pictures

    def _write(self, step: int, sections: dict[str, list[Row]], pictures: Sequence[Picture]) -> Path:
        titled = [(f"{title} after update {step:,}", [_group(row) for row in rows]) for title, rows in sections.items()]
        sheet = io.BytesIO()
        labelled_sheet(titled).save(sheet, "PNG")
        path = self._folder / f"step-{step:06d}.png"
        record = {
            "step": step,
            "picture": path.name,
            "num_inference_steps": STEPS,
            "prior_num_inference_steps": PRIOR_STEPS,
            "guidance_scale": self._guidance_scale,
            "cells": [{"caption": one.caption, "kind": one.kind, "seed": one.seed} for one in pictures],
        }
        durable.replace(path, sheet.getvalue())
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        durable.replace(path.with_suffix(".json"), text.encode())  # last: it names a picture that is there
        return path


def _group(row: Row) -> Group:
    """A lone picture of a prompt needs no label."""
    labels = [(f"seed {one.seed}" if len(row) > 1 else "") if one.kind == PROMPT else one.kind for one in row]
    return Group(row[0].caption, [one.image for one in row], labels)


def make_validator(
    config: PriorConfig | DecoderConfig,
    stage_name: str,
    output_dir: Path,
    device: torch.device,
    null_image: Tensor,
    held_out: HeldOutPictures | None = None,
) -> Validator | None:
    """The validator of a run, its prompts encoded; None where the options ask for no picture.

    ``null_image`` (D,) is the cached embedding of no picture. All processes call it: the main one encodes. KcacheError,
    and not only at the first validation, where a checkpoint lacks what pictures need or belongs to another cache.
    """
    if not config.validation_prompts and (stage_name == "prior" or held_out is None):
        return None
    durable.clear_dead_temporaries(output_dir / FOLDER)
    with _own_random_numbers(device):
        make = _prior_artist if stage_name == "prior" else _decoder_artist
        artist = make(config, output_dir / FOLDER, device, null_image, held_out)
        return Validator(output_dir / FOLDER, device, artist, config.validation_guidance_scale)


def _prior_artist(
    config: PriorConfig | DecoderConfig,
    folder: Path,
    device: torch.device,
    null_image: Tensor,
    held_out: HeldOutPictures | None,
) -> Artist:
    prompts, prior = config.validation_prompts, start_of(config)
    features, scheduler = prompt_features(prior, prompts, folder, device), sampling_scheduler(prior)
    decoder = _beside(config, config.pretrained_decoder_model_name_or_path)
    guidance = config.validation_guidance_scale
    painter = Painter(decoder, device, len(null_image), frozen_unet=True, guidance_scale=guidance)
    return PriorArtist(prompts, _images(config), features, scheduler, painter, null_image, config.resolution, guidance)


def _decoder_artist(
    config: PriorConfig | DecoderConfig,
    folder: Path,
    device: torch.device,
    null_image: Tensor,
    held_out: HeldOutPictures | None,
) -> Artist:
    prompts, prior = config.validation_prompts, _beside(config, config.pretrained_prior_model_name_or_path)
    decoder = start_of(config)
    guidance = config.validation_guidance_scale
    painter = Painter(decoder, device, len(null_image), frozen_unet=False, guidance_scale=guidance)
    sampled = sampled_prompts(prior, prompts, _images(config), guidance, folder, device) if prompts else None
    if sampled is not None and sampled.shape[1] != len(null_image):
        raise KcacheError(
            f"the prior {prior.name_or_path} gives image embeddings of {sampled.shape[1]} and the cache has"
            f" {len(null_image)}; name the prior of that cache with --pretrained-prior-model-name-or-path"
        )
    return DecoderArtist(prompts, _images(config), sampled, held_out, painter, null_image, config.resolution)


def _images(config: PriorConfig | DecoderConfig) -> int:
    """Pictures of each prompt: as many as the reference makes where nobody said."""
    return config.num_validation_images or (4 if config.lora else 1)


def _beside(config: PriorConfig | DecoderConfig, name: str) -> Checkpoint:
    """The checkpoint of the other stage; ``--revision`` and ``--variant`` are of the one that training begins from."""
    return Checkpoint(name, cache_dir=config.cache_dir)


@contextmanager
def undisturbed(model: Any, device: torch.device) -> Iterator[None]:
    """Within it the model evaluates without gradients; after it, modes and torch's random numbers are as before."""
    modes = {module: module.training for module in model.modules()}
    with _own_random_numbers(device), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training


def _own_random_numbers(device: torch.device) -> AbstractContextManager[None]:
    """A block after which torch's random numbers go on as before it: loading a model may draw some."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
