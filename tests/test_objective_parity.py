"""Loss and gradients of both objectives equal the reference's equations for the same noise and timesteps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from diffusers import DDPMScheduler
from reference import Encoders, Text, open_picture
from support import ids, relative_distance
from tiny import PIXELS
from torch import Tensor

from kcache.shards import Cache, Snapshot
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.draws import CAPTION, Draws
from kcache.training.objectives import Batch, min_snr_weights, prior_loss
from kcache.training.samples import Samples
from kcache.training.sources import MicroBatch
from kcache.training.stages import Stage, make_stage

Encoded = Callable[..., Cache]
SEED, STEP = 5, 3
SHORT = ["apple.webp", "empty-caption.webp", "two-captions.webp", "more/möhre.png", "flat.png"]
WITH_LONG = ["apple.webp", "long-caption.webp", "see-through.png"]
CASES = {"short captions": SHORT, "one caption of 77 tokens": WITH_LONG}


@dataclass
class Setting:
    """A cache, the samples of one micro-batch of it, and the live encoders that know nothing of it."""

    cache: Cache
    pictures: Path
    live: Encoders

    def micro_batch(self, samples: list[str]) -> MicroBatch:
        order = ids(self.cache)
        return MicroBatch(STEP, range(len(samples)), [order.index(name) for name in samples])

    def batch(self, stage: Stage, samples: list[str]) -> Batch:
        source = stage.make_source(Samples([Snapshot(self.cache, stage.columns)]), SEED)
        return source.fill(source.allocate(len(samples), pin=False), self.micro_batch(samples))

    def text(self, samples: list[str]) -> Text:
        return self.live.text([self._caption(slot, name) for slot, name in enumerate(samples)])

    def images(self, samples: list[str]) -> list[Any]:
        return [open_picture(self.pictures / name) for name in samples]

    def _caption(self, slot: int, name: str) -> str:
        """The caption that training rolls for a sample with several."""
        rows = {row["id"]: row for shard in range(self.cache.shard_count) for row in self.cache.samples(shard)}
        captions: list[str] = rows[name]["captions"]
        return captions[Draws(SEED).integer(STEP, slot, CAPTION, len(captions))]


@pytest.fixture(scope="module")
def setting(encoded: Encoded, pictures: Path, tiny_prior: Path, tiny_decoder: Path) -> Setting:
    return Setting(encoded(alpha="drop"), pictures, Encoders(tiny_prior, tiny_decoder))


@pytest.fixture
def prior(setting: Setting, tiny_prior: Path) -> Callable[[bool], Stage]:
    def stage(trim: bool) -> Stage:
        paths = {"cache": str(setting.cache.root), "output_dir": "-"}
        return make_stage(
            PriorConfig(**paths, pretrained_prior_model_name_or_path=str(tiny_prior), trim_captions=trim), setting.cache
        )

    return stage


@pytest.fixture
def decoder(setting: Setting, tiny_decoder: Path) -> Stage:
    paths = {"cache": str(setting.cache.root), "output_dir": "-"}
    return make_stage(
        DecoderConfig(**paths, pretrained_decoder_model_name_or_path=str(tiny_decoder), resolution=PIXELS),
        setting.cache,
    )


def gradients(model: Any, loss: Tensor) -> list[Tensor]:
    """Gradients of the trained parameters, in order; none is missing."""
    model.zero_grad()
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    return [p.grad.clone() for p in trained]


def assert_same(model: Any, loss: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal loss, and gradients equal relative to their global norm (``to_k.bias`` has none but rounding errors)."""
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    ours, theirs = gradients(model, loss), gradients(model, expected)
    assert relative_distance(ours, theirs) < tolerance


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("trim", [True, False], ids=["trimmed", "77 tokens"])
@pytest.mark.parametrize("samples", CASES.values(), ids=CASES)
def test_the_prior_learns_what_the_reference_learns(
    setting: Setting, prior: Callable[[bool], Stage], samples: list[str], trim: bool, gamma: float | None
) -> None:
    stage = prior(trim)
    batch = setting.batch(stage, samples)
    assert batch["hidden_states"].shape[1] == (24 if trim and samples is SHORT else 77)
    loss = stage.loss(stage.model, batch, stage.scheduler, gamma)
    expected = reference.prior_loss(
        stage.model,
        setting.text(samples),
        setting.live.image(setting.images(samples)),
        batch["noise"],
        batch["timesteps"],
        gamma,
    )
    assert_same(stage.model, loss, expected)


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_decoder_learns_what_the_reference_learns(
    setting: Setting, decoder: Stage, kind: str, gamma: float | None
) -> None:
    scheduler = DDPMScheduler.from_config(decoder.scheduler.config, prediction_type=kind)
    stage = replace(decoder, scheduler=scheduler)
    batch, images = setting.batch(stage, SHORT), setting.images(SHORT)
    loss = stage.loss(stage.model, batch, stage.scheduler, gamma)
    latents, image_embeds = setting.live.latents(images, PIXELS), setting.live.image(images)
    expected = reference.decoder_loss(
        stage.model, latents, image_embeds, batch["noise"], batch["timesteps"], gamma, kind
    )
    assert_same(stage.model, loss, expected)


def test_the_decoder_takes_its_prediction_type_from_the_checkpoint(decoder: Stage) -> None:
    assert decoder.scheduler.config.prediction_type == "epsilon"
    assert decoder.scheduler.config.beta_end == 0.012


def test_trimmed_and_full_captions_have_the_same_loss_and_gradients(
    setting: Setting, prior: Callable[[bool], Stage]
) -> None:
    trimmed, full = prior(True), prior(False)
    short, long = setting.batch(trimmed, SHORT), setting.batch(full, SHORT)
    assert short["hidden_states"].shape[1] < long["hidden_states"].shape[1] == 77
    loss = trimmed.loss(full.model, short, full.scheduler, None)
    assert_same(full.model, loss, full.loss(full.model, long, full.scheduler, None), tolerance=1e-6)


def test_what_stands_in_the_place_of_pad_tokens_changes_nothing(
    setting: Setting, prior: Callable[[bool], Stage]
) -> None:
    stage = prior(False)
    batch = setting.batch(stage, SHORT)
    padding = torch.arange(77) >= batch["lengths"][:, None]
    other = {**batch, "hidden_states": batch["hidden_states"].masked_fill(padding[..., None], 3.0)}
    assert torch.equal(
        prior_loss(stage.model, other, stage.scheduler, None), prior_loss(stage.model, batch, stage.scheduler, None)
    )


def test_the_statistics_of_the_prior_are_applied_and_frozen(setting: Setting, prior: Callable[[bool], Stage]) -> None:
    model = prior(True).model
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["clip_mean", "clip_std"]
    assert float((model.clip_std - 1).abs().max()) > 0.1
    assert float(model.clip_mean.abs().max()) > 0.1


def test_schedules_are_those_of_the_papers(prior: Callable[[bool], Stage], decoder: Stage) -> None:
    torch.testing.assert_close(prior(True).scheduler.alphas_cumprod, reference.cosine_alphas())
    torch.testing.assert_close(decoder.scheduler.alphas_cumprod, reference.linear_alphas(0.00085, 0.012))


@pytest.mark.parametrize(("kind", "divisor"), [("sample", 1.0), ("epsilon", 4.0), ("v_prediction", 5.0)])
def test_min_snr_weights_are_those_of_the_paper(kind: str, divisor: float) -> None:
    scheduler = DDPMScheduler(trained_betas=[0.2, 0.9], prediction_type=kind)  # SNR 4 and 2/23
    weights = min_snr_weights(torch.tensor([0, 0]), scheduler, 3.0)
    assert weights.tolist() == pytest.approx([3.0 / divisor] * 2, rel=1e-5)


def test_reused_buffers_and_smaller_batches_hold_the_same_samples_and_draws(
    setting: Setting, prior: Callable[[bool], Stage]
) -> None:
    stage = prior(True)
    whole, parts = setting.batch(stage, SHORT), setting.micro_batch(SHORT)
    source = stage.make_source(Samples([Snapshot(setting.cache, stage.columns)]), SEED)
    buffers = source.allocate(3, pin=False)
    source.fill(buffers, setting.micro_batch(["long-caption.webp", *SHORT[:2]]))  # leaves 77 tokens behind
    part = source.fill(buffers, MicroBatch(STEP, parts.slots[3:], parts.positions[3:]))
    for name, tensor in part.items():
        expected = whole[name][3:, : tensor.shape[1]] if name == "hidden_states" else whole[name][3:]
        assert len(tensor) == 2
        assert np.array_equal(tensor.numpy(), expected.numpy()), name
