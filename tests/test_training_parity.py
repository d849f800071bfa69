"""Twenty updates from a cache follow twenty updates of a plain loop with live encoders and the same draws."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from accelerate import Accelerator
from diffusers import PriorTransformer, UNet2DConditionModel
from reference import Encoders, open_picture
from support import ids, metrics, relative_distance
from tiny import PIXELS
from torch import Tensor

from kcache.shards import BatchOrder, Cache, Snapshot, Stream
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.draws import CAPTION, NOISE, TIMESTEP, Draws
from kcache.training.feeder import Feeder
from kcache.training.loop import After, Geometry, Loop, Objective
from kcache.training.samples import Samples
from kcache.training.stages import Stage, make_stage
from kcache.training.train import train

Encoded = Callable[..., Cache]
Config = PriorConfig | DecoderConfig
UPDATES, BATCH, ACCUMULATION, SEED = 20, 2, 2, 11
MAX_NORM = 1.0


@dataclass
class Sample:
    """What one slot of one micro-batch holds: a picture, a caption, and its draws."""

    picture: str
    caption: str
    noise: Tensor
    timestep: int


class LiveTraining:
    """A training script as anyone would write it: encoders at every step, plain torch, one process."""

    def __init__(self, stage: str, cache: Cache, pictures: Path, prior: Path, decoder: Path) -> None:
        self.stage, self.pictures, self.encoders = stage, pictures, Encoders(prior, decoder)
        self.names = ids(cache)
        rows = (row for shard in range(cache.shard_count) for row in cache.samples(shard))
        self.captions = {row["id"]: row["captions"] for row in rows}
        self.draws, self.stream = Draws(SEED), Stream(len(self.names), SEED)
        if stage == "prior":
            self.model = PriorTransformer.from_pretrained(prior / "prior").train()
            self.model.clip_mean.requires_grad_(False)
            self.model.clip_std.requires_grad_(False)
        else:
            self.model = UNet2DConditionModel.from_pretrained(decoder / "unet").train()
        self.shape = (16,) if stage == "prior" else (4, PIXELS // 4, PIXELS // 4)

    def run(self, optimizer: torch.optim.Optimizer) -> list[float]:
        """Train; returns the loss of every update."""
        losses = []
        for update in range(UPDATES):
            batches = list(self._micro_batches(update))
            optimizer.zero_grad()
            values = [self._loss(batch) / len(batches) for batch in batches]
            for value in values:
                value.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
            optimizer.step()
            losses.append(sum(value.item() for value in values))
        return losses

    def trained(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _micro_batches(self, update: int) -> Iterator[list[Sample]]:
        size = BATCH * ACCUMULATION
        names = [self.names[i] for i in self.stream.take(update * size, size)]
        samples = [self._sample(update, slot, name) for slot, name in enumerate(names)]
        yield from (samples[start : start + BATCH] for start in range(0, size, BATCH))

    def _sample(self, update: int, slot: int, name: str) -> Sample:
        noise, captions = np.empty(self.shape, np.float32), self.captions[name]
        self.draws.normal(update, slot, NOISE, noise)
        timestep = self.draws.integer(update, slot, TIMESTEP, 1000)
        caption = captions[self.draws.integer(update, slot, CAPTION, len(captions))]
        return Sample(name, caption, torch.from_numpy(noise), timestep)

    def _loss(self, batch: list[Sample]) -> Tensor:
        images = [open_picture(self.pictures / sample.picture) for sample in batch]
        noise = torch.stack([sample.noise for sample in batch])
        timesteps, image_embeds = torch.tensor([s.timestep for s in batch]), self.encoders.image(images)
        if self.stage == "prior":
            text = self.encoders.text([sample.caption for sample in batch])
            return reference.prior_loss(self.model, text, image_embeds, noise, timesteps, None)
        latents = self.encoders.latents(images, PIXELS)
        return reference.decoder_loss(self.model, latents, image_embeds, noise, timesteps, None)


@pytest.fixture(params=["prior", "decoder"])
def stage_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cache(encoded: Encoded) -> Cache:
    return encoded(alpha="drop")


@pytest.fixture
def live(stage_name: str, cache: Cache, pictures: Path, tiny_prior: Path, tiny_decoder: Path) -> LiveTraining:
    return LiveTraining(stage_name, cache, pictures, tiny_prior, tiny_decoder)


@pytest.fixture
def config(stage_name: str, cache: Cache, tmp_path: Path, tiny_prior: Path, tiny_decoder: Path) -> Config:
    options: dict[str, Any] = {
        "cache": str(cache.root),
        "output_dir": str(tmp_path / "out"),
        "seed": SEED,
        "train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATION,
        "max_train_steps": UPDATES,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "max_grad_norm": MAX_NORM,
        "probe_samples": 0,
    }
    if stage_name == "prior":
        return PriorConfig(**options, pretrained_prior_model_name_or_path=str(tiny_prior))
    return DecoderConfig(**options, pretrained_decoder_model_name_or_path=str(tiny_decoder), resolution=PIXELS)


def run_loop(config: Config, cache: Cache, make_optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]) -> Stage:
    """The real loop with another optimizer than the command line offers; returns the stage that it trained."""
    stage = make_stage(config, cache)
    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATION)
    snapshot = Snapshot(cache, stage.columns)
    optimizer = make_optimizer([p for p in stage.model.parameters() if p.requires_grad])
    objective, prepared = accelerator.prepare(Objective(stage, None).train(), optimizer)
    geometry = Geometry(BATCH, ACCUMULATION, processes=1, rank=0)
    loop = Loop(
        accelerator=accelerator,
        objective=objective,
        optimizer=prepared,
        schedule=torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        geometry=geometry,
        max_grad_norm=MAX_NORM,
        logging_steps=1,
        has_dropout=False,
        seed=SEED,
    )
    source = stage.make_source(Samples([snapshot]), SEED)
    batches = geometry.micro_batches(BatchOrder(source.groups, geometry.global_batch, SEED), 0, UPDATES)
    after = After(update=lambda step: None, logged=lambda progress: None, stop=lambda step: False)
    with Feeder(source, batches, BATCH, torch.device("cpu")) as feeder:
        assert loop.run(iter(feeder), 0, UPDATES, after) == UPDATES
    return stage


def test_sgd_ends_at_the_same_weights(config: Config, cache: Cache, live: LiveTraining) -> None:
    before = [p.detach().clone() for p in live.trained()]
    live.run(torch.optim.SGD(live.trained(), lr=0.3))
    model = run_loop(config, cache, lambda parameters: torch.optim.SGD(parameters, lr=0.3)).model
    ours = [p for p in model.parameters() if p.requires_grad]
    assert relative_distance(ours, live.trained()) < 1e-5
    assert relative_distance(before, live.trained()) > 1e-2
    for one, other in zip(ours, live.trained(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_adamw_has_the_same_losses(config: Config, live: LiveTraining) -> None:
    expected = live.run(torch.optim.AdamW(live.trained(), lr=3e-3, weight_decay=0.0))
    train(config)
    losses = [line["loss"] for line in metrics(Path(config.output_dir))]
    assert losses == pytest.approx(expected, rel=1e-5)
    assert np.mean(losses[-5:]) < 0.97 * np.mean(losses[:5])


def test_the_result_loads_in_diffusers_and_is_what_was_trained(config: Config, live: LiveTraining) -> None:
    report = train(config)
    loaded = type(live.model).from_pretrained(config.output_dir, subfolder=report.component).state_dict()
    live.run(torch.optim.AdamW(live.trained(), lr=3e-3, weight_decay=0.0))
    expected = live.model.state_dict()
    assert loaded.keys() == expected.keys()
    # Attention does not depend on to_k.bias: its gradient is rounding errors, of which AdamW makes whole steps.
    names = [name for name in expected if not name.endswith("to_k.bias")]
    assert relative_distance((loaded[n] for n in names), (expected[n] for n in names)) < 1e-5
