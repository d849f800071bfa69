"""The order of samples and every random number are pure functions of their keys, and stay what they are."""

import random
from fractions import Fraction
from itertools import count, islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcache.shards import BatchOrder, Stream, Windows, permutation
from kcache.training.draws import CAPTION, NOISE, PROBE, TIMESTEP, VIEW, Draws
from kcache.training.loop import Geometry
from kcache.training.shapes import Positions
from kcache.training.sources import MicroBatch

SEEDS = st.integers(0, 2**63 - 1)
SIZES = st.integers(1, 300)


# --- order


@given(seed=SEEDS, epoch=st.integers(0, 2**31), n=SIZES)
def test_an_epoch_has_every_sample_once(seed: int, epoch: int, n: int) -> None:
    assert sorted(permutation(seed, epoch, n)) == list(range(n))


@given(seed=SEEDS, epoch=st.integers(0, 1000), n=SIZES)
def test_the_order_is_a_pure_function(seed: int, epoch: int, n: int) -> None:
    first = permutation(seed, epoch, n)
    permutation(seed + 1, epoch + 1, n + 1)
    assert np.array_equal(permutation(seed, epoch, n), first)


@given(seed=SEEDS, epoch=st.integers(0, 1000), n=st.integers(30, 300))
def test_epochs_and_seeds_differ(seed: int, epoch: int, n: int) -> None:
    order = permutation(seed, epoch, n)
    assert not np.array_equal(order, permutation(seed, epoch + 1, n))
    assert not np.array_equal(order, permutation(seed ^ 1, epoch, n))
    assert not np.array_equal(order, np.arange(n))


def test_every_sample_is_as_likely_at_every_place() -> None:
    places = np.stack([permutation(3, epoch, 5) for epoch in range(4000)])
    counts = np.stack([np.bincount(column, minlength=5) for column in places.T])
    assert np.abs(counts - 800).max() < 5 * (4000 * 0.2 * 0.8) ** 0.5


@given(seed=SEEDS, n=st.integers(1, 40), start=st.integers(0, 200), count=st.integers(0, 90))
def test_the_stream_is_epoch_after_epoch(seed: int, n: int, start: int, count: int) -> None:
    epochs = np.concatenate([permutation(seed, epoch, n) for epoch in range((start + count) // n + 1)])
    assert np.array_equal(Stream(n, seed).take(start, count), epochs[start : start + count])


@given(seed=SEEDS, epoch=st.integers(0, 50), sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12), data=st.data())
def test_in_windows_an_epoch_has_every_sample_once_and_few_shards_at_a_time(
    seed: int, epoch: int, sizes: list[int], data: st.DataObject
) -> None:
    shards = np.repeat(np.arange(len(sizes)), sizes)
    if not len(shards):
        return
    size = data.draw(st.integers(1, len(sizes)))
    stream = Stream(len(shards), seed, Windows(shards, len(sizes), size), seed)
    order = stream.take(epoch * len(shards), len(shards))
    assert sorted(order) == list(range(len(shards)))
    seen = [int(shard) for shard in shards[order]]
    first, last = {}, {}
    for place, shard in enumerate(seen):
        first.setdefault(shard, place)
        last[shard] = place
    for place in range(len(seen)):
        assert sum(first[shard] <= place <= last[shard] for shard in first) <= size


@given(seed=SEEDS, n=SIZES, count=st.integers(1, 9))
def test_a_window_of_all_shards_is_no_window(seed: int, n: int, count: int) -> None:
    windows = Windows(np.arange(n) % count, count, count)
    assert np.array_equal(Stream(n, seed, windows, seed).take(0, 2 * n), Stream(n, seed).take(0, 2 * n))


@given(seed=SEEDS, count=st.integers(2, 12), data=st.data())
def test_groups_take_the_shards_of_a_store_in_the_same_order(seed: int, count: int, data: st.DataObject) -> None:
    """So that samples of all shapes are in the same windows: the fetched ones."""
    shards = np.repeat(np.arange(count), 4)
    groups = [np.arange(0, len(shards), 2), np.arange(1, len(shards), 2)]
    size = data.draw(st.integers(1, count))
    order = BatchOrder(groups, 1, seed, [Windows(shards[group], count, size) for group in groups])
    places = np.concatenate([order.batch(step) for step in range(len(shards))])
    of_group = [[int(shards[place]) for place in places if place % 2 == group] for group in (0, 1)]
    windows = [[set(seen[start : start + 2 * size]) for start in range(0, len(seen), 2 * size)] for seen in of_group]
    assert windows[0] == windows[1]


@given(seed=SEEDS, n=st.integers(1, 40), cuts=st.lists(st.integers(0, 200), min_size=1, max_size=6))
def test_the_stream_does_not_depend_on_how_it_is_asked(seed: int, n: int, cuts: list[int]) -> None:
    stream, whole = Stream(n, seed), Stream(n, seed).take(0, 210)
    for start in cuts:
        assert np.array_equal(stream.take(start, 10), whole[start : start + 10])


def test_nothing_is_dropped_or_repeated_where_an_epoch_ends_inside_a_batch() -> None:
    batches = [Stream(5, seed=1).take(start, 4) for start in range(0, 20, 4)]
    seen = np.concatenate(batches)
    assert [sorted(seen[start : start + 5]) for start in range(0, 20, 5)] == [[0, 1, 2, 3, 4]] * 4


def test_a_stream_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Stream(0, seed=1)


def test_the_order_is_the_one_it_has_always_been() -> None:
    """If this fails, runs can no longer be resumed across the change: bump the checkpoint's version and say so."""
    assert permutation(0, 0, 10).tolist() == [8, 5, 7, 4, 6, 0, 2, 9, 3, 1]
    assert permutation(0, 1, 10).tolist() == [6, 8, 3, 2, 7, 9, 0, 4, 5, 1]
    assert permutation(2**63 - 1, 5, 10).tolist() == [1, 6, 2, 7, 4, 8, 9, 3, 0, 5]
    assert Stream(7, seed=42).take(5, 12).tolist() == [1, 3, 3, 1, 0, 5, 4, 2, 6, 4, 1, 0]


# --- the order of batches over groups

GROUPS = st.lists(st.integers(1, 60), min_size=1, max_size=9)


def grouped(sizes: list[int], global_batch: int, seed: int) -> BatchOrder:
    """Positions dealt to groups in turn, so that no group is a run of neighbours."""
    dealt = random.Random(0).sample(range(sum(sizes)), sum(sizes))
    ends = np.cumsum([0, *sizes])
    groups = [np.sort(np.asarray(dealt[start:stop])) for start, stop in pairwise(ends)]
    return BatchOrder(groups, global_batch, seed)


def plain(n: int, global_batch: int, seed: int) -> BatchOrder:
    """All samples in one group."""
    return BatchOrder([np.arange(n)], global_batch, seed)


def group_of(order: BatchOrder, step: int) -> int:
    """The one group whose samples a batch has."""
    batch = order.batch(step)
    (group,) = (number for number, group in enumerate(order.groups) if np.isin(batch, group).any())
    assert np.isin(batch, order.groups[group]).all()
    assert batch.shape == (order.global_batch,)
    return group


@given(n=st.integers(1, 200), global_batch=st.integers(1, 40), seed=SEEDS, step=st.integers(0, 10**9))
def test_batches_of_one_group_are_the_plain_stream(n: int, global_batch: int, seed: int, step: int) -> None:
    expected = Stream(n, seed).take(step * global_batch, global_batch)
    assert np.array_equal(plain(n, global_batch, seed).batch(step), expected)


@given(sizes=GROUPS, global_batch=st.integers(1, 7), seed=SEEDS, steps=st.lists(st.integers(0, 200), max_size=9))
def test_a_batch_is_of_one_group_and_depends_on_its_step_alone(
    sizes: list[int], global_batch: int, seed: int, steps: list[int]
) -> None:
    one, other = (grouped(sizes, global_batch, seed) for _ in range(2))
    whole = [other.batch(step) for step in range(201)]
    for step in steps:
        assert np.array_equal(one.batch(step), whole[step])
        group_of(one, step)


@given(sizes=GROUPS, seed=SEEDS, steps=st.integers(1, 300))
def test_the_turns_are_those_of_a_list_of_due_times(sizes: list[int], seed: int, steps: int) -> None:
    """The rule as it is written down, in fractions, from the first batch on."""
    order = grouped(sizes, 1, seed)
    phases = [Fraction(phase, 2**32) for phase in order.phases]
    assert all(0 < phase < 1 for phase in phases)
    due = sorted(((j + phases[group]) / n, group) for group, n in enumerate(sizes) for j in range(steps))
    assert [group_of(order, step) for step in range(steps)] == [group for _, group in due[:steps]]


@given(sizes=GROUPS, seed=SEEDS, first=st.sampled_from([0, 10**6, 10**15]), steps=st.integers(1, 80))
def test_after_any_number_of_batches_all_groups_have_given_their_share(
    sizes: list[int], seed: int, first: int, steps: int
) -> None:
    """There is an x for which every group of n samples has given n * x batches, to within one."""
    order = grouped(sizes, 1, seed)
    for step in (first, first + steps):
        given_by = order.given(step)
        assert sum(given_by) == step
        lowest = max(Fraction(number - 1, n) for number, n in zip(given_by, sizes, strict=True))
        highest = min(Fraction(number + 1, n) for number, n in zip(given_by, sizes, strict=True))
        assert lowest < highest


@given(sizes=GROUPS, global_batch=st.integers(1, 7), seed=SEEDS)
def test_each_group_shows_each_of_its_samples_once_in_its_epoch(sizes: list[int], global_batch: int, seed: int) -> None:
    order = grouped(sizes, global_batch, seed)
    seen: dict[int, list[int]] = {group: [] for group in range(len(sizes))}
    for step in range(2 * sum(sizes)):
        seen[group_of(order, step)] += order.batch(step).tolist()
    for group, positions in zip(seen, order.groups, strict=True):
        epochs = [seen[group][start : start + len(positions)] for start in range(0, len(seen[group]), len(positions))]
        assert all(sorted(epoch) == positions.tolist() for epoch in epochs[:-1])
        assert len(set(epochs[-1])) == len(epochs[-1])


@given(sizes=GROUPS, global_batch=st.integers(1, 5), seed=SEEDS)
def test_in_the_long_run_every_sample_is_seen_as_often(sizes: list[int], global_batch: int, seed: int) -> None:
    order, passes = grouped(sizes, global_batch, seed), 6
    batches = [order.batch(step) for step in range(sum(sizes) * passes)]
    seen = np.bincount(np.concatenate(batches), minlength=sum(sizes))
    for group in order.groups:  # within one batch of the group, and one epoch of its samples
        assert np.abs(seen[group] - passes * global_batch).max() <= 2 * global_batch / len(group) + 1


def test_the_order_within_a_group_does_not_depend_on_the_other_groups() -> None:
    squares, others = np.arange(0, 40, 4), [np.arange(1, 40, 4), np.arange(2, 40, 4)]
    orders = [BatchOrder(groups, 4, seed=6) for groups in ([squares], [squares, *others], [others[0], squares])]
    first = [list(islice((b for b in map(order.batch, count()) if b[0] % 4 == 0), 12)) for order in orders]
    assert np.array_equal(first[0], first[1])
    assert np.array_equal(first[0], first[2])


def test_groups_of_one_size_have_orders_of_their_own() -> None:
    order = BatchOrder([np.arange(0, 80, 2), np.arange(1, 80, 2)], 40, seed=6)
    one, other = (order.batch(step) // 2 for step in (0, 1))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("groups", "size"), [([], 2), ([np.arange(3), np.arange(0)], 2), ([np.arange(3)], 0)])
def test_batches_of_nothing_are_refused(groups: list[Positions], size: int) -> None:
    with pytest.raises(ValueError, match="nothing may be empty"):
        BatchOrder(groups, size, seed=1)


def test_the_order_of_batches_is_the_one_it_has_always_been() -> None:
    """If this fails, bucketed runs can no longer be resumed across the change."""
    order = BatchOrder([np.array([0, 3, 4]), np.array([1, 2, 5, 6, 7])], 2, seed=42)
    assert [order.batch(step).tolist() for step in range(8)] == [
        [2, 6],
        [1, 5],
        [4, 0],
        [7, 1],
        [3, 3],
        [6, 5],
        [7, 2],
        [0, 4],
    ]
    assert order.batch(10**12).tolist() == [7, 1]


# --- how a global batch is cut


def slots_of(batches: list[MicroBatch]) -> list[tuple[int, int, int]]:
    """``(update, slot, position)`` of everything that is read, in order of slots."""
    return sorted((b.step, slot, p) for b in batches for slot, p in zip(b.slots, b.positions, strict=True))


def read_by(batch_size: int, accumulation: int, processes: int) -> list[tuple[int, int, int]]:
    ranks = [Geometry(batch_size, accumulation, processes, rank) for rank in range(processes)]
    return slots_of([b for rank in ranks for b in rank.micro_batches(plain(10, rank.global_batch, seed=8), 2, 7)])


@pytest.mark.parametrize(("batch_size", "accumulation", "processes"), [(2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2)])
def test_the_same_global_batch_holds_the_same_samples(batch_size: int, accumulation: int, processes: int) -> None:
    assert read_by(batch_size, accumulation, processes) == read_by(4, 1, 1)


def test_a_global_batch_is_cut_by_accumulation_then_process_then_slot() -> None:
    batches = list(Geometry(2, 3, processes=2, rank=1).micro_batches(plain(50, 12, seed=8), 0, 1))
    assert [list(b.slots) for b in batches] == [[2, 3], [6, 7], [10, 11]]
    assert [p for b in batches for p in b.positions] == Stream(50, seed=8).take(0, 12)[[2, 3, 6, 7, 10, 11]].tolist()


@given(stop=st.integers(0, 9))
def test_micro_batches_go_on_where_they_were_stopped(stop: int) -> None:
    geometry, order = Geometry(2, 2, processes=1, rank=0), plain(5, 4, seed=3)
    whole = list(geometry.micro_batches(order, 0, 9))
    assert [*geometry.micro_batches(order, 0, stop), *geometry.micro_batches(order, stop, 9)] == whole


# --- draws

KEYS = [
    (step, slot, draw) for step in (0, 1, 7, PROBE) for slot in range(4) for draw in (NOISE, TIMESTEP, CAPTION, VIEW)
]


def rolled(draws: Draws, key: tuple[int, int, int]) -> list[float]:
    noise = np.empty(5, np.float32)
    draws.normal(*key, noise)
    return [*noise.tolist(), draws.integer(*key, 1000)]


@given(order=st.permutations(KEYS))
def test_draws_do_not_depend_on_the_order_of_asking(order: list[tuple[int, int, int]]) -> None:
    draws = Draws(5)
    assert {key: rolled(draws, key) for key in order} == {key: rolled(Draws(5), key) for key in KEYS}


def test_no_two_draws_are_the_same() -> None:
    seen = {tuple(rolled(Draws(seed), key)) for seed in (0, 1, 2**63 - 1) for key in KEYS}
    assert len(seen) == 3 * len(KEYS)


@given(length=st.integers(1, 3000), shape=st.sampled_from([(-1,), (1, -1), (-1, 1)]))
def test_a_short_draw_is_the_beginning_of_a_long_one(length: int, shape: tuple[int, ...]) -> None:
    long, short = np.empty(3000, np.float32), np.empty(length, np.float32)
    Draws(1).normal(2, 3, NOISE, long)
    Draws(1).normal(2, 3, NOISE, short.reshape(shape))
    assert np.array_equal(short, long[:length])


def test_long_draws_of_neighbours_do_not_overlap() -> None:
    rows = np.empty((3, 50_000), np.float32)
    for slot, row in enumerate(rows):
        Draws(1).normal(0, slot, NOISE, row)
    assert np.abs(np.corrcoef(rows)[~np.eye(3, dtype=bool)]).max() < 0.02
    assert len(np.intersect1d(rows[0], rows[1])) < 2000  # equal by chance: fp32 has few values


def test_noise_is_standard_normal_and_timesteps_are_uniform() -> None:
    noise, draws = np.empty(200_000, np.float32), Draws(9)
    draws.normal(0, 0, NOISE, noise)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert abs((noise**4).mean() - 3) < 0.1
    timesteps = [draws.integer(step, 0, TIMESTEP, 10) for step in range(5000)]
    assert np.abs(np.bincount(timesteps, minlength=10) - 500).max() < 5 * (5000 * 0.1 * 0.9) ** 0.5


def test_noise_and_timesteps_are_not_the_same_bits() -> None:
    """A timestep rolled from the noise's bits would tie the noise to the timestep."""
    pairs = []
    for step in range(3000):
        noise = np.empty(1, np.float32)
        Draws(4).normal(step, 0, NOISE, noise)
        pairs.append((noise[0], Draws(4).integer(step, 0, TIMESTEP, 1000)))
    assert abs(np.corrcoef(np.asarray(pairs).T)[0, 1]) < 0.08


def test_draws_leave_the_global_generators_alone() -> None:
    random.seed(1)
    np.random.seed(1)
    before = (random.getstate(), np.random.get_state()[1].tolist())
    rolled(Draws(5), (0, 0, NOISE))
    assert before == (random.getstate(), np.random.get_state()[1].tolist())


def test_draws_are_the_ones_they_have_always_been() -> None:
    """If this fails, a run that is resumed sees other noise: something changed, in kcache or in numpy."""
    noise = np.empty(4, np.float32)
    Draws(42).normal(3, 1, NOISE, noise)
    assert noise.tolist() == pytest.approx([-1.3180528, -1.8689106, -0.0628439, -1.9412694], rel=1e-5)
    assert [Draws(42).integer(3, slot, TIMESTEP, 1000) for slot in range(5)] == [393, 149, 428, 820, 184]
    assert [Draws(2**63 - 1).integer(PROBE, slot, CAPTION, 3) for slot in range(8)] == [0, 0, 2, 2, 1, 1, 2, 1]
    assert [Draws(42).integer(3, slot, VIEW, 2) for slot in range(12)] == [0, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0]
