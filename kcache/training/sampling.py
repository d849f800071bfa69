"""Image embeddings sampled from the prior, from text features alone, as KandinskyV22PriorPipeline samples them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kcache.checkpoints import Checkpoint
from kcache.progress import logger
from kcache.text_features import EncodedCaption

from .kept_text import make_predictor
from .trimming import trimmed_length

STEPS = 25
"""Steps of the prior where nobody says otherwise: the pipeline's default."""

GUIDANCE_SCALE = 4.0
"""Guidance of the prior and of the decoder, likewise."""

HUB_SCHEDULER = {
    "num_train_timesteps": 1000,
    "variance_type": "fixed_small_log",
    "clip_sample": True,
    "clip_sample_range": 10.0,
    "prediction_type": "sample",
}
"""The scheduler of kandinsky-community/kandinsky-2-2-prior.

Its ``scheduler_config.json`` as tests/pipelines/kandinsky2_2/test_kandinsky_prior.py of diffusers repeats it.
"""

Generators = torch.Generator | list[torch.Generator] | None
"""One for a whole batch, one for each of its rows, or torch's own. On the CPU: the same numbers on every device."""


@dataclass(frozen=True)
class TextFeatures:
    """CLIP text of B captions: text_embeds (B, D), hidden_states (B, L, D) zero after each one's end, lengths (B,)."""

    text_embeds: Tensor
    hidden_states: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, captions: Iterable[EncodedCaption]) -> "TextFeatures":
        """A batch of captions of several lengths, in fp32, L the longest."""
        embeds, hidden = zip(*captions, strict=True)
        states = [torch.from_numpy(np.array(one, np.float32)) for one in hidden]
        return cls(
            text_embeds=torch.from_numpy(np.stack(embeds).astype(np.float32)),
            hidden_states=torch.nn.utils.rnn.pad_sequence(states, batch_first=True),
            lengths=torch.tensor([len(one) for one in states]),
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> "TextFeatures":
        """The same on a device, as its models take it."""
        return TextFeatures(
            self.text_embeds.to(device, dtype), self.hidden_states.to(device, dtype), self.lengths.to(device)
        )

    def rows(self, start: int, stop: int | None) -> "TextFeatures":
        """Some of the captions, as a slice."""
        return TextFeatures(*(one[start:stop] for one in self._tensors))

    def repeated(self, times: int) -> "TextFeatures":
        """Every caption ``times`` times, one after the other."""
        return TextFeatures(*(one.repeat_interleave(times, 0) for one in self._tensors))

    def at_length(self, length: int) -> "TextFeatures":
        """The same with room for ``length`` tokens, which no caption exceeds."""
        states = self.hidden_states[:, :length]
        states = torch.nn.functional.pad(states, (0, 0, 0, length - states.shape[1]))
        return TextFeatures(self.text_embeds, states, self.lengths)

    def followed_by(self, other: "TextFeatures") -> "TextFeatures":
        """Both in one batch."""
        length = max(self.hidden_states.shape[1], other.hidden_states.shape[1])
        pairs = zip(self.at_length(length)._tensors, other.at_length(length)._tensors, strict=True)
        return TextFeatures(*(torch.cat(pair) for pair in pairs))

    @property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.text_embeds, self.hidden_states, self.lengths


def sampling_scheduler(prior: Checkpoint) -> Any:
    """The scheduler that a checkpoint samples with; that of the hub's, and a line that says so, where it has none."""
    from diffusers import UnCLIPScheduler

    if prior.has("scheduler"):
        return UnCLIPScheduler.from_config(prior.component("scheduler").config("scheduler_config.json"))
    logger.info("%s has no scheduler: sampling with that of kandinsky-2-2-prior", prior.name_or_path)
    return UnCLIPScheduler(**HUB_SCHEDULER)


def seeded(prompts: int, images: int) -> list[torch.Generator]:
    """A generator for each picture: seeds 0, 1, ... for each prompt, whatever the other prompts and at any update."""
    return [torch.Generator().manual_seed(number) for _ in range(prompts) for number in range(images)]


def after_sampling(seed: int, width: int) -> torch.Generator:
    """The generator of a seed after one embedding of ``width`` numbers was sampled, for the decoder to go on with."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):  # the noise that it begins from, and that of every step but the last
        torch.randn((1, width), generator=generator)
    return generator


def first_noise(model: Any, generators: Sequence[torch.Generator]) -> Tensor:
    """What sampling begins from (B, D): the first numbers of each generator, as in the pipeline."""
    width = model.clip_mean.shape[-1]
    return torch.cat([torch.randn((1, width), generator=generator) for generator in generators])


@torch.no_grad()
def sample_image_embeds(
    model: Any,
    scheduler: Any,
    text: TextFeatures,
    null: TextFeatures | None,
    *,
    noise_BD: Tensor,
    generator: Generators,
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
) -> Tensor:
    """The image embeddings (B, D) of B captions, raw and in fp32 on the device of ``noise_BD``.

    Equal to what KandinskyV22PriorPipeline gives for the same noise and generator; captions are trimmed to the longest,
    and run once for all steps.
    ``null`` (one row) is the empty caption, which a ``guidance_scale`` above 1 steers away from (Ho and Salimans 2022);
    without it nothing is.
    """
    guided, device = null is not None and guidance_scale > 1, noise_BD.device
    rows = null.repeated(len(noise_BD)).followed_by(text) if null is not None and guided else text
    longest = int(rows.lengths.max())
    rows = rows.at_length(trimmed_length(longest, model.config.num_embeddings)).to(device, model.dtype)
    predict = make_predictor(model, rows.text_embeds, rows.hidden_states, rows.lengths)
    scheduler.set_timesteps(steps)  # on the CPU, where the scheduler looks its coefficients up
    sample = noise_BD.float() * scheduler.init_noise_sigma
    timesteps = scheduler.timesteps
    for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        inputs = (sample.repeat(2, 1) if guided else sample).to(model.dtype)
        at = torch.full((len(inputs),), int(timestep), device=device)
        predicted = predict(inputs, at).float()
        if guided:
            without, conditioned = predicted.chunk(2)
            predicted = without + guidance_scale * (conditioned - without)
        step = scheduler.step(predicted, timestep, sample, prev_timestep=following, generator=generator)
        sample = step.prev_sample
    denormalised: Tensor = model.post_process_latents(sample)
    return denormalised.float()
