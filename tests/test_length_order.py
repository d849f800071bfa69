"""Batches grouped by caption length hold the samples that others hold, as often, and hardly any padding."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import encode_tiny, metrics

from kcache.shards import BatchOrder, Cache, KcacheError, LengthOrder, MixedOrder, UsageError
from kcache.shards.length_order import WINDOW
from kcache.training.config import PriorConfig
from kcache.training.loop import Geometry
from kcache.training.mixture import Mixture, open_caches, open_snapshots
from kcache.training.stages import make_stage
from kcache.training.train import train

SEEDS = st.integers(0, 2**63 - 1)
WEIGHTS = "prior/diffusion_pytorch_model.safetensors"
Make = Callable[..., PriorConfig]


def lengths_of(n: int) -> Any:
    """Captions of 2 to 77 tokens, most of them short."""
    return (2 + np.random.default_rng(0).exponential(9, n)).astype(np.int64).clip(max=77)


def orders(n: int, global_batch: int, seed: int) -> tuple[BatchOrder, LengthOrder]:
    plain = BatchOrder([np.arange(n)], global_batch, seed)
    return plain, LengthOrder(plain, lengths_of(n), seed, n)


# --- the order


@given(n=st.integers(1, 300), global_batch=st.integers(1, 9), seed=SEEDS)
def test_after_every_window_the_samples_of_the_plain_order_were_seen(n: int, global_batch: int, seed: int) -> None:
    plain, order = orders(n, global_batch, seed)
    assert order.window == max(1, min(WINDOW, n // global_batch))
    for window in range(4):
        steps = range(window * order.window, (window + 1) * order.window)
        seen, expected = (np.sort(np.concatenate([one.batch(step) for step in steps])) for one in (order, plain))
        assert np.array_equal(seen, expected)


@given(n=st.integers(1, 60), global_batch=st.integers(1, 9), seed=SEEDS)
def test_every_sample_is_seen_as_often_as_any_other(n: int, global_batch: int, seed: int) -> None:
    _, order = orders(n, global_batch, seed)
    passes = order.window * n  # whole windows that are whole epochs
    seen = np.bincount(np.concatenate([order.batch(step) for step in range(passes)]), minlength=n)
    assert set(seen.tolist()) == {passes * global_batch // n}


@given(n=st.integers(1, 300), global_batch=st.integers(1, 9), seed=SEEDS, steps=st.lists(st.integers(0, 300)))
def test_a_batch_depends_on_its_step_alone(n: int, global_batch: int, seed: int, steps: list[int]) -> None:
    (_, one), (_, other) = (orders(n, global_batch, seed) for _ in range(2))
    whole = [other.batch(step) for step in range(301)]
    for step in steps:
        assert np.array_equal(one.batch(step), whole[step])
    assert len(one.batch(10**12)) == global_batch


def test_batches_of_a_window_are_of_neighbouring_lengths_and_come_in_a_drawn_order() -> None:
    _, order = orders(2000, 16, seed=3)
    lengths = [lengths_of(2000)[order.batch(step)] for step in range(order.window)]
    assert all((np.diff(batch) >= 0).all() for batch in lengths)
    ends = sorted((batch[0], batch[-1]) for batch in lengths)
    assert all(shorter[1] <= longer[0] for shorter, longer in pairwise(ends))
    assert ends != [(batch[0], batch[-1]) for batch in lengths]


def test_two_windows_are_ordered_otherwise_and_so_are_two_seeds() -> None:
    starts = []
    for seed in (3, 4):
        _, order = orders(4000, 16, seed)
        firsts = [int(lengths_of(4000)[order.batch(step)].min()) for step in range(2 * WINDOW)]
        starts += [firsts[:WINDOW], firsts[WINDOW:]]
    assert len({tuple(np.argsort(one).tolist()) for one in starts}) == 4


def test_most_padding_is_saved() -> None:
    plain, order = orders(64 * WINDOW, 64, seed=3)
    lengths = lengths_of(64 * WINDOW)
    padded = [sum(64 * int(lengths[one.batch(step)].max()) for step in range(WINDOW)) for one in (plain, order)]
    assert padded[1] < 1.1 * lengths.sum()
    assert padded[0] > 3 * padded[1]


def test_caches_that_are_mixed_keep_their_shares() -> None:
    parts = [BatchOrder([np.arange(0, 200)], 8, 1), BatchOrder([np.arange(200, 260)], 8, 1)]
    mixed = MixedOrder(parts, [Fraction("0.25")], whole_batches=False)
    order = LengthOrder(mixed, lengths_of(260), 1, 260)
    for window in range(3):
        steps = range(window * order.window, (window + 1) * order.window)
        seen = np.concatenate([order.batch(step) for step in steps])
        assert abs((seen >= 200).sum() - len(seen) / 4) < 1


@pytest.mark.parametrize(("batch_size", "accumulation", "processes"), [(8, 1, 1), (2, 2, 2), (4, 1, 2)])
def test_an_update_has_the_same_samples_however_it_is_cut(batch_size: int, accumulation: int, processes: int) -> None:
    read = []
    for rank in range(processes):
        geometry, (_, order) = Geometry(batch_size, accumulation, processes, rank), orders(50, 8, 5)
        for batch in geometry.micro_batches(order, 2, 9):
            read += [(batch.step, slot, place) for slot, place in zip(batch.slots, batch.positions, strict=True)]
    _, whole = orders(50, 8, 5)
    expected = [(step, slot, place) for step in range(2, 9) for slot, place in enumerate(whole.batch(step).tolist())]
    assert sorted(read) == expected


def test_the_order_is_the_one_it_has_always_been() -> None:
    """If this fails, runs that are grouped by length can no longer be resumed across the change."""
    plain = BatchOrder([np.arange(12)], 3, 42)
    order = LengthOrder(plain, np.array([9, 2, 5, 5, 7, 3, 2, 8, 4, 6, 3, 77]), 42, 12)
    assert [order.batch(step).tolist() for step in range(4)] == [[6, 1, 5], [10, 8, 2], [3, 9, 4], [7, 0, 11]]


# --- a run


@pytest.fixture
def make(encoded: Callable[..., Cache], tiny_prior: Path, tmp_path: Path) -> Make:
    """``make(out, **changes)``: seven updates of two times two of ten samples, grouped by length."""

    def config(out: str = "out", **changes: Any) -> PriorConfig:
        options: dict[str, Any] = {
            "cache": str(encoded().root),
            "output_dir": str(tmp_path / out),
            "pretrained_prior_model_name_or_path": str(tiny_prior),
            "seed": 3,
            "train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_train_steps": 7,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "checkpointing_steps": 3,
            "probe_samples": 4,
            "group_by_length": True,
        }
        return PriorConfig(**{**options, **changes})

    return config


def order_of(config: PriorConfig, global_batch: int = 2) -> tuple[Any, Any]:
    """What a run reads, and in which order."""
    caches = open_caches(config)
    stage = make_stage(config, *caches)
    mixture = Mixture(config, open_snapshots(caches, stage.columns, partial=False), 3)
    source = stage.make_source(mixture.samples, 3)
    return source, mixture.order(source, global_batch, 3)


def test_of_several_captions_that_are_drawn_among_the_longest_counts(make: Make) -> None:
    source, order = order_of(make())
    assert isinstance(order, LengthOrder)
    each, _ = order_of(make(captions="all"))
    assert len(source.lengths) == 10
    assert len(each.lengths) == 11
    for position in range(11):
        sample = each.sample_of(position)
        assert each.lengths[position] <= source.lengths[sample]
    longest = [max(each.lengths[p] for p in range(11) if each.sample_of(p) == sample) for sample in range(10)]
    assert source.lengths.tolist() == longest
    assert max(longest) == 77


def test_no_order_is_changed_where_nobody_asked(make: Make) -> None:
    assert isinstance(order_of(make(group_by_length=False))[1], BatchOrder)


@pytest.mark.parametrize("changes", [{"captions": "all"}, {"where": "text != ''"}, {"max_train_samples": 6}])
def test_it_goes_with_every_choice_of_samples(make: Make, changes: dict[str, Any]) -> None:
    source, order = order_of(make(**changes))
    _, plain = order_of(make(group_by_length=False, **changes))
    assert isinstance(order, LengthOrder)
    steps = range(2 * order.window)
    seen, expected = (sorted(np.concatenate([one.batch(step) for step in steps])) for one in (order, plain))
    assert seen == expected
    assert all((np.diff(source.lengths[order.batch(step)]) >= 0).all() for step in steps)


def test_it_goes_with_a_mix(make: Make, pictures: Path, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path) -> None:
    other = encode_tiny(tmp_path / "other", pictures, tiny_prior, tiny_decoder)
    _, order = order_of(make(mix=((str(other.root), 0.25),)))
    seen = np.concatenate([order.batch(step) for step in range(2 * order.window)])
    assert (seen >= 10).sum() == len(seen) // 4


def test_a_grouped_run_goes_on_bit_for_bit(make: Make) -> None:
    train(make("whole"))
    train(make("parts", max_train_steps=3))
    train(make("parts", resume_from_checkpoint="latest"))
    one, other = (Path(make(name).output_dir) for name in ("whole", "parts"))
    assert (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()
    assert [line["loss"] for line in metrics(one)] == [line["loss"] for line in metrics(other)]


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
def test_a_run_goes_on_only_in_the_order_in_which_it_began(make: Make, before: bool, after: bool) -> None:
    train(make(max_train_steps=3, group_by_length=before))
    said = {True: "group_by_length True", False: "group_by_length None"}
    with pytest.raises(KcacheError, match=f"selection {said[before]} and this run has {said[after]}; give the options"):
        train(replace(make(resume_from_checkpoint="latest"), group_by_length=after))


@pytest.mark.parametrize("name", ["group_by_length", "pack_captions"])
def test_it_is_refused_where_all_padding_is_kept(make: Make, name: str) -> None:
    options = {"group_by_length": False, "trim_captions": False, name: True}
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} .* --no-trim-captions keeps all of it; give one"):
        train(make(**options))
