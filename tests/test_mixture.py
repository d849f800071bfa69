"""Several caches in one run: B has its share of the samples, an epoch is one pass of A, and order stays a function."""

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import encode_tiny, metrics
from tiny import PIXELS

from kcache.shards import BatchOrder, Cache, KcacheError, MixedOrder, Snapshot, UsageError
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.mixture import Mixture, open_caches, open_snapshots
from kcache.training.sources import MicroBatch
from kcache.training.stages import make_stage
from kcache.training.train import train

BATCH = 4


def mixed(sizes: list[int], shares: list[str], batch: int = BATCH, *, whole_batches: bool = False) -> MixedOrder:
    """Orders over positions that follow one another: those of the first are 0 to ``sizes[0] - 1``."""
    starts = np.cumsum([0, *sizes])
    orders = [BatchOrder([np.arange(a, b)], batch, 7) for a, b in pairwise(starts)]
    return MixedOrder(orders, [Fraction(share) for share in shares], whole_batches=whole_batches)


# --- the order


@given(
    share=st.fractions(Fraction(1, 50), Fraction(49, 50), max_denominator=50),
    batch=st.integers(1, 9),
    steps=st.integers(1, 60),
)
def test_the_other_cache_has_its_share_to_within_one_sample_at_any_time(
    share: Fraction, batch: int, steps: int
) -> None:
    order = mixed([10, 6], [str(share)], batch)
    seen = np.concatenate([order.batch(step) for step in range(steps)])
    assert abs((seen >= 10).sum() - share * len(seen)) < 1


@pytest.mark.parametrize("shares", [["0.3"], ["0.3", "0.2"], ["0.1", "0.25", "0.4"]])
def test_every_cache_is_passed_whole_before_any_of_it_comes_again(shares: list[str]) -> None:
    sizes = [11, 7, 5, 13][: len(shares) + 1]
    order, ends = mixed(sizes, shares), np.cumsum(sizes)
    seen = np.concatenate([order.batch(step) for step in range(200)])
    expected = [1 - sum(map(Fraction, shares)), *map(Fraction, shares)]
    for start, end, share in zip([0, *ends], ends, expected, strict=False):
        mine = seen[(seen >= start) & (seen < end)]
        assert abs(len(mine) - share * len(seen)) < len(sizes)
        for first in range(0, len(mine) - (end - start) + 1, end - start):
            assert sorted(mine[first : first + end - start]) == list(range(start, end))


def test_any_step_may_be_asked_for_first() -> None:
    straight, jumping = mixed([11, 7, 5], ["0.3", "0.2"]), mixed([11, 7, 5], ["0.3", "0.2"])
    expected = {step: straight.batch(step).tolist() for step in range(40)}
    for step in (39, 3, 17, 0, 38):
        assert jumping.batch(step).tolist() == expected[step]
    assert len(jumping.batch(10**12)) == BATCH


def test_the_first_cache_alone_keeps_its_order() -> None:
    alone, order = BatchOrder([np.arange(10)], BATCH, 7), mixed([10, 6], ["0.25"])
    stream = np.concatenate([alone.batch(step) for step in range(30)])
    seen = np.concatenate([order.batch(step) for step in range(40)])
    assert seen[seen < 10].tolist() == stream.tolist()


def test_batches_of_one_shape_are_of_one_cache() -> None:
    order = mixed([10, 6], ["0.25"], whole_batches=True)
    batches = [order.batch(step) for step in range(40)]
    of_other = [bool((batch >= 10).all()) for batch in batches]
    assert all(other or (batch < 10).all() for other, batch in zip(of_other, batches, strict=True))
    assert sum(of_other) == 10


def test_shares_that_leave_nothing_for_the_first_cache_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be mixed"):
        mixed([10, 6], ["1"])


# --- the run


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, pictures: Path, tiny_prior: Path, tiny_decoder: Path) -> Cache:
    """The same pictures in another cache."""
    return encode_tiny(tmp_path_factory.mktemp("other") / "cache", pictures, tiny_prior, tiny_decoder)


Make = Callable[..., PriorConfig | DecoderConfig]


@pytest.fixture
def make(encoded: Callable[..., Cache], tiny_prior: Path, tiny_decoder: Path, tmp_path: Path) -> Make:
    """``make(stage, out, **changes)``: six updates of four samples."""

    def config(stage: str, out: str = "out", **changes: Any) -> PriorConfig | DecoderConfig:
        options: dict[str, Any] = {
            "cache": str(encoded().root),
            "output_dir": str(tmp_path / out),
            "pretrained_prior_model_name_or_path": str(tiny_prior),
            "pretrained_decoder_model_name_or_path": str(tiny_decoder),
            "seed": 5,
            "train_batch_size": BATCH,
            "max_train_steps": 6,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "probe_samples": 0,
            "resolution": PIXELS,
            **changes,
        }
        return PriorConfig(**options) if stage == "prior" else DecoderConfig(**options)

    return config


def opened(config: PriorConfig | DecoderConfig) -> tuple[Any, Mixture]:
    """The source and the samples of a run."""
    caches = open_caches(config)
    stage = make_stage(config, *caches)
    mixture = Mixture(config, open_snapshots(caches, stage.columns, partial=False), 5)
    return stage.make_source(mixture.samples, 5), mixture


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_samples_of_the_other_cache_are_read_from_it(stage: str, make: Make, other: Cache) -> None:
    source, mixture = opened(make(stage, mix=((str(other.root), 0.5),)))
    buffers = source.allocate(2, pin=False)
    # The same pictures lie in both, so that each must be read the same at both of its positions, by the same draws.
    for position in range(10):
        pair = [
            {name: tensor.clone() for name, tensor in source.fill(buffers, MicroBatch(0, [0], [at])).items()}
            for at in (position, position + 10)
        ]
        assert all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0])
    assert [mixture.samples.place(at) for at in (0, 9, 10, 19)] == [(0, 0), (0, 9), (1, 0), (1, 9)]
    assert mixture.samples.id(3) == mixture.samples.id(13)


def test_an_epoch_is_one_pass_of_the_first_cache(make: Make, other: Cache) -> None:
    source, mixture = opened(make("prior", mix=((str(other.root), 0.2),)))
    assert mixture.epoch(source) == Fraction(25, 2)  # ten of the first in each 12.5
    report = train(make("prior", mix=((str(other.root), 0.2),), max_train_steps=None, num_train_epochs=2))
    assert report.max_steps == 7  # 25 samples, four at a time
    assert report.samples == 10


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_a_mixed_run_that_is_resumed_ends_bit_identical(stage: str, make: Make, other: Cache, tmp_path: Path) -> None:
    mix = {"mix": ((str(other.root), 0.3),), "loss_weight": (0.5,), "checkpointing_steps": 2}
    train(make(stage, "straight", **mix))
    train(make(stage, "stopped", **mix, max_train_steps=4))
    report = train(make(stage, "stopped", **mix, resume_from_checkpoint="latest"))
    one, two = (
        (tmp_path / out / report.component / "diffusion_pytorch_model.safetensors").read_bytes()
        for out in ("straight", "stopped")
    )
    assert one == two


def test_resuming_with_another_mix_is_refused(make: Make, other: Cache) -> None:
    train(make("prior", mix=((str(other.root), 0.3),), max_train_steps=2))
    for changes, sentence in [
        ({}, "made with mixed of 1 further caches and this run has 0; give --mix as it was"),
        ({"mix": ((str(other.root), 0.4),)}, r"made with selection shares \[0.3\] and this run has shares \[0.4\]"),
    ]:
        with pytest.raises(KcacheError, match=sentence):
            train(make("prior", resume_from_checkpoint="latest", **changes))


# --- what a sample counts


def test_a_weight_of_zero_trains_on_the_first_cache_alone(make: Make, other: Cache, tmp_path: Path) -> None:
    config = make("prior", mix=((str(other.root), 0.5),), loss_weight=(0.0,))
    source, _ = opened(config)
    stage = make_stage(config, *open_caches(config))
    batch = source.fill(source.allocate(4, pin=False), MicroBatch(0, [0, 1, 2, 3], [2, 12, 5, 18]))
    assert batch["weights"].tolist() == [1, 0, 1, 0]
    half = source.fill(source.allocate(2, pin=False), MicroBatch(0, [0, 2], [2, 5]))
    with torch.no_grad():
        whole, alone = (stage.loss(stage.model, some, stage.scheduler, None) for some in (batch, half))
    assert float(whole) == pytest.approx(float(alone) / 2, rel=1e-5)


def test_weights_of_one_are_no_weights(make: Make, other: Cache) -> None:
    source, _ = opened(make("prior", mix=((str(other.root), 0.5),), loss_weight=(1.0,)))
    assert "weights" not in source.allocate(1, pin=False)


def test_the_weight_of_the_other_cache_changes_what_is_learned(make: Make, other: Cache, tmp_path: Path) -> None:
    losses = []
    for weight in (1.0, 0.1):
        train(make("prior", f"out-{weight}", mix=((str(other.root), 0.5),), loss_weight=(weight,)))
        losses.append([line["loss"] for line in metrics(tmp_path / f"out-{weight}")])
    assert losses[1][0] < losses[0][0]


# --- what is refused


def test_what_cannot_be_mixed_is_refused_with_a_sentence(
    make: Make, other: Cache, encoded: Callable[..., Cache], tmp_path: Path
) -> None:
    half = encoded(store_dtype="fp16")
    mix = str(other.root)
    for changes, error, sentence in [
        ({"mix": ((mix, 0.6), (mix, 0.4))}, UsageError, "leaves none to .*; give shares that add up to less than 1"),
        (
            {"mix": ((mix, 0.5),), "loss_weight": (1.0, 2.0)},
            UsageError,
            "2 --loss-weight for 1 --mix; give one",
        ),
        (
            {"mix": ((str(half.root), 0.5),)},
            KcacheError,
            "encoded otherwise than that .*dtype float16, not float32",
        ),
        ({"mix": ((str(tmp_path / "none"), 0.5),)}, KcacheError, "none"),
    ]:
        with pytest.raises(error, match=sentence):
            train(make("prior", **changes))


def test_a_cache_with_other_encoders_is_not_mixed_in(
    make: Make, pictures: Path, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    prior = tmp_path / "prior"
    shutil.copytree(tiny_prior, prior)
    weights = load_file(prior / "text_encoder" / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, prior / "text_encoder" / "model.safetensors")
    foreign = encode_tiny(tmp_path / "foreign", pictures, prior, tiny_decoder)
    with pytest.raises(KcacheError, match=r"encoded otherwise .*weights|with another text_encoder"):
        train(make("prior", mix=((str(foreign.root), 0.5),)))


def test_snapshots_of_all_caches_are_pinned(make: Make, other: Cache) -> None:
    caches = open_caches(make("prior", mix=((str(other.root), 0.5),)))
    snapshots = open_snapshots(caches, ("text", "image"), partial=False)
    assert [len(snapshot) for snapshot in snapshots] == [10, 10]
    assert all(isinstance(snapshot, Snapshot) for snapshot in snapshots)
