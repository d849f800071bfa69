"""The prior judged by what it samples: embeddings of held-out captions against those of their pictures."""

from typing import Any

import torch

from .draws import HELD_OUT
from .feeder import Feeder
from .held_out import BANDS, HeldOut, share
from .sampling import TextFeatures, sample_image_embeds
from .scores import retrieval

_STEP = HELD_OUT + BANDS
"""The update to which the noise of sampling belongs: after those of the bands."""


class PriorScores:
    """Cosine similarity and retrieval within the held-out samples, from noise that belongs to each sample's id.

    Sampled without guidance, which a prior trained without dropped captions could not follow.
    """

    def __init__(self, held_out: HeldOut, scheduler: Any) -> None:
        """``scheduler`` is the one that the checkpoint samples with."""
        self._held_out, self._scheduler = held_out, scheduler

    def measure(self, accelerator: Any, model: Any, batch_size: int) -> dict[str, float]:
        """By the names in ``metrics.jsonl``; the work is shared by all processes."""
        held_out = self._held_out
        work = [(batch, indices, 1) for indices, batch in held_out.batches(batch_size, _STEP)]
        mine = share(work, accelerator.process_index, accelerator.num_processes)
        width = model.clip_mean.shape[-1]
        sampled, true = (torch.zeros(len(held_out.positions), width, device=accelerator.device) for _ in range(2))
        batches = iter([batch for batch, _, _ in mine])
        with Feeder(held_out.source, batches, batch_size, accelerator.device) as feeder:
            for (which, indices, counts), batch in zip(mine, feeder, strict=True):
                text = TextFeatures(batch["text_embeds"].float(), batch["hidden_states"].float(), batch["lengths"])
                generators = [torch.Generator().manual_seed(slot % 2**63) for slot in which.slots]
                noise = batch["noise"]
                with accelerator.autocast():
                    embeds = sample_image_embeds(
                        model, self._scheduler, text, None, noise_BD=noise, generator=generators, guidance_scale=1.0
                    )
                if counts:
                    sampled[indices], true[indices] = embeds, batch["image_embeds"].float()
        scores = retrieval(accelerator.reduce(sampled, "sum"), accelerator.reduce(true, "sum"))
        return {
            "validation_cosine": scores.cosine,
            "validation_r1": scores.recall_at_1,
            "validation_r5": scores.recall_at_5,
        }
