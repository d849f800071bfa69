"""The condition that a sample is trained with: dropped for the cached null one, or one of several captions, or all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ids
from tiny import PIXELS

from kcache.shards import Cache, Snapshot, read_null
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.draws import DROPOUT, Draws
from kcache.training.samples import Samples
from kcache.training.sources import MicroBatch, Source
from kcache.training.stages import make_stage
from kcache.training.train import train

SEED = 5
WEIGHTS = "diffusion_pytorch_model.safetensors"
Config = PriorConfig | DecoderConfig
Make = Callable[..., Config]


@pytest.fixture
def make(encoded: Callable[..., Cache], tiny_prior: Path, tiny_decoder: Path, tmp_path: Path) -> Make:
    """``make(stage, out, **changes)``: six updates of four samples."""

    def config(stage: str, out: str = "out", **changes: Any) -> Config:
        options: dict[str, Any] = {
            "cache": str(encoded().root),
            "output_dir": str(tmp_path / out),
            "pretrained_prior_model_name_or_path": str(tiny_prior),
            "pretrained_decoder_model_name_or_path": str(tiny_decoder),
            "seed": SEED,
            "train_batch_size": 4,
            "max_train_steps": 6,
            "learning_rate": 1e-3,
            "checkpointing_steps": 2,
            "probe_samples": 0,
            "resolution": PIXELS,
            **changes,
        }
        if stage == "prior":
            return PriorConfig(**options)
        return DecoderConfig(**{name: value for name, value in options.items() if name != "captions"})

    return config


def source_of(config: Config, *, training: bool = True) -> Source:
    cache = Cache(config.cache)
    stage = make_stage(config, cache)
    return stage.make_source(Samples([Snapshot(cache, stage.columns)]), SEED, training=training)


def read(source: Source, positions: list[int], step: int = 0) -> dict[str, torch.Tensor]:
    batch = MicroBatch(step, range(len(positions)), positions)
    filled = source.fill(source.allocate(len(positions), pin=False), batch)
    return {name: tensor.clone() for name, tensor in filled.items()}


# --- dropout of the condition


def test_a_dropped_caption_is_the_cached_empty_one(make: Make, encoded: Callable[..., Cache]) -> None:
    null = read_null(encoded(), encoded().column("text"))
    dropped = read(source_of(make("prior", conditioning_dropout=1.0)), [0, 4, 7])
    assert dropped["lengths"].tolist() == [len(null["hidden_states"])] * 3
    for i in range(3):
        assert np.array_equal(dropped["text_embeds"][i], null["text_embeds"][0])
        assert np.array_equal(dropped["hidden_states"][i, : len(null["hidden_states"])], null["hidden_states"])
        assert not dropped["hidden_states"][i, len(null["hidden_states"]) :].any()
    plain = read(source_of(make("prior")), [0, 4, 7])
    for name in ("image_embeds", "noise", "timesteps"):
        assert torch.equal(plain[name], dropped[name])  # the other draws do not move


def test_a_dropped_image_embedding_is_the_cached_null_one(make: Make, encoded: Callable[..., Cache]) -> None:
    null = read_null(encoded(), encoded().column("image"))["image_embeds"]
    plain, dropped = (read(source_of(make("decoder", conditioning_dropout=p)), [0, 4, 7]) for p in (0.0, 1.0))
    assert all(np.array_equal(embeds, null) for embeds in dropped["image_embeds"])
    for name in ("latents", "noise", "timesteps"):
        assert torch.equal(plain[name], dropped[name])


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_which_conditions_are_dropped_is_a_function_of_seed_update_and_slot(make: Make, stage: str) -> None:
    field = {"prior": "text_embeds", "decoder": "image_embeds"}[stage]
    source, plain = source_of(make(stage, conditioning_dropout=0.3)), read(source_of(make(stage)), [3] * 4)
    draws, seen = Draws(SEED), []
    for step in (0, 1, 77, 0):
        batch = read(source, [3] * 4, step)
        seen.append([not torch.equal(batch[field][i], plain[field][i]) for i in range(4)])
        assert seen[-1] == [draws.chance(step, slot, DROPOUT, 0.3) for slot in range(4)]
    assert seen[0] == seen[3]


def test_the_share_that_is_dropped_is_the_probability() -> None:
    draws = Draws(SEED)
    dropped = sum(draws.chance(step, slot, DROPOUT, 0.1) for step in range(250) for slot in range(40))
    assert 0.09 < dropped / 10_000 < 0.11


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_nothing_is_dropped_where_the_loss_is_measured(make: Make, stage: str) -> None:
    measured = read(source_of(make(stage, conditioning_dropout=1.0), training=False), [0, 4])
    plain = read(source_of(make(stage), training=False), [0, 4])
    assert all(torch.equal(plain[name], measured[name]) for name in plain)


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_a_run_with_dropout_that_is_resumed_ends_bit_identical(make: Make, stage: str, tmp_path: Path) -> None:
    options = {"conditioning_dropout": 0.5, "captions": "all"}
    train(make(stage, "straight", **options))
    train(make(stage, "stopped", max_train_steps=4, **options))
    report = train(make(stage, "stopped", resume_from_checkpoint="latest", **options))
    without = train(make(stage, "without", captions="all"))
    one, two, three = (
        (tmp_path / out / report.component / WEIGHTS).read_bytes() for out in ("straight", "stopped", "without")
    )
    assert one == two != three
    assert without.step == 6


# --- several captions


def test_with_all_captions_each_of_them_is_a_sample_of_the_epoch(make: Make, encoded: Callable[..., Cache]) -> None:
    cache = encoded()
    two = ids(cache).index("two-captions.webp")
    every = source_of(make("prior", captions="all"))
    assert every.groups[0].tolist() == list(range(11))
    assert [every.sample_of(position) for position in range(11)] == sorted([*range(10), two])
    assert every.of_samples(np.array([0, two])).tolist() == [0, two, two + 1]
    report = train(make("prior", captions="all", max_train_steps=None, num_train_epochs=4))
    assert report.max_steps == 11  # 44 captions, four at a time


def test_each_caption_is_read_at_its_own_position(make: Make, encoded: Callable[..., Cache]) -> None:
    two = ids(encoded()).index("two-captions.webp")
    every = read(source_of(make("prior", captions="all")), [two, two + 1])
    short, long = every["lengths"].tolist()
    assert short < long
    one = source_of(make("prior"))
    drawn = [read(one, [two], step) for step in range(40)]
    assert {int(batch["lengths"][0]) for batch in drawn} == {short, long}
    for batch in drawn:
        which = [short, long].index(int(batch["lengths"][0]))
        assert torch.equal(batch["text_embeds"][0], every["text_embeds"][which])
        length = int(batch["lengths"][0])
        assert torch.equal(batch["hidden_states"][0, :length], every["hidden_states"][which, :length])
