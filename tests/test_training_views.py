"""Training draws among the views of a picture, takes batches of one shape from buckets, and picks its captioning."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from view_cache import SAMPLES, SEED, SHAPE_OF, SHAPES, ViewRun, latents_shape, make_view_cache, row, view_config

from kcache.shards import BatchOrder, Cache
from kcache.training import samples
from kcache.training.draws import NOISE, PROBE, TIMESTEP, VIEW, Draws
from kcache.training.loop import Geometry, Objective
from kcache.training.probe import probe_loss
from kcache.training.sources import MicroBatch

Opened = Callable[..., ViewRun]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return make_view_cache(tmp_path_factory.mktemp("views") / "cache")


@pytest.fixture
def opened(cache: Cache, tiny_prior: Path, tiny_decoder: Path) -> Opened:
    """``opened("decoder", buckets=True)``: what a run with these options reads."""
    paths = {"prior": tiny_prior, "decoder": tiny_decoder}
    return lambda stage, **options: ViewRun(view_config(stage, cache, paths[stage], **options), cache)


# --- buckets


def test_buckets_group_samples_by_shape_not_by_size(opened: Opened) -> None:
    groups = opened("decoder", buckets=True).source.groups
    assert [group.tolist() for group in groups] == [
        [n for n in range(SAMPLES) if SHAPE_OF[n] == shape] for shape in range(len(SHAPES))
    ]


def test_a_bucketed_batch_holds_what_was_committed_and_noise_of_its_shape(opened: Opened) -> None:
    run = opened("decoder", buckets=True)
    for group, shape in zip(run.source.groups, SHAPES, strict=True):
        batch = run.read(group.tolist(), step=5, first_slot=7)
        assert batch["latents"].shape == batch["noise"].shape == (len(group), *shape)
        for i, number in enumerate(group.tolist()):
            features = row("latents-32-buckets", number) | row("image-32-buckets", number)
            assert np.array_equal(batch["latents"][i].numpy(), features["latents"].reshape(shape))
            assert np.array_equal(batch["image_embeds"][i].numpy(), features["image_embeds"])
            noise = np.empty(shape, np.float32)
            Draws(SEED).normal(5, 7 + i, NOISE, noise)
            assert np.array_equal(batch["noise"][i].numpy(), noise)


def test_the_loss_of_a_bucketed_batch_is_that_of_a_direct_computation(opened: Opened) -> None:
    run, numbers = opened("decoder", buckets=True), [2, 5, 10]
    latents = torch.stack([torch.from_numpy(row("latents-32-buckets", n)["latents"]) for n in numbers])
    latents = latents.float().view(3, *latents_shape("latents-32-buckets", 2))
    embeds = torch.stack([torch.from_numpy(row("image-32-buckets", n)["image_embeds"]) for n in numbers])
    noise, draws = np.empty(latents.shape, np.float32), Draws(SEED)
    for slot in range(3):
        draws.normal(0, slot, NOISE, noise[slot])
    timesteps = torch.tensor([draws.integer(0, slot, TIMESTEP, 1000) for slot in range(3)])
    kept = run.stage.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = kept.sqrt() * latents + (1 - kept).sqrt() * torch.from_numpy(noise)
    condition = {"image_embeds": embeds}
    predicted = run.stage.model(noisy, timesteps, None, added_cond_kwargs=condition).sample[:, :4]
    expected = (predicted - torch.from_numpy(noise)).square().mean()
    loss = Objective(run.stage, None)(run.read(numbers))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_a_batch_of_several_shapes_is_refused_also_where_they_have_as_many_values(
    opened: Opened,
) -> None:
    run = opened("decoder", buckets=True)
    for mixed in ([0, 2], [2, 3]):
        with pytest.raises(ValueError, match="latents of 2 shapes cannot be stacked"):
            run.read(mixed)


@pytest.mark.parametrize("processes", [1, 2])
def test_all_processes_and_accumulation_steps_of_an_update_read_one_shape(opened: Opened, processes: int) -> None:
    order = BatchOrder(opened("decoder", buckets=True).source.groups, 8, SEED)
    ranks = [Geometry(4 // processes, 2, processes, rank).micro_batches(order, 0, 30) for rank in range(processes)]
    batches = [batch for rank in ranks for batch in rank]
    for step in range(30):
        read = sorted(
            (slot, p) for b in batches if b.step == step for slot, p in zip(b.slots, b.positions, strict=True)
        )
        assert [position for _, position in read] == order.batch(step).tolist()
        assert len({SHAPE_OF[position] for _, position in read}) == 1
    assert {SHAPE_OF[position] for batch in batches for position in batch.positions} == {0, 1, 2}


# --- views


def test_without_options_nothing_is_drawn_but_noise_and_timesteps(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    integer = Draws.integer

    def spy(self: Draws, step: int, slot: int, draw: int, high: int, number: int = 0) -> int:
        drawn.append(draw)
        return integer(self, step, slot, draw, high, number)

    monkeypatch.setattr(Draws, "integer", spy)
    for stage, columns in (("prior", ("text", "image")), ("decoder", ("latents-32", "image"))):
        run = opened(stage)
        assert run.stage.columns == columns
        run.read(list(range(SAMPLES)))
    assert Counter(drawn) == {TIMESTEP: 2 * SAMPLES}


VIEWS = [
    ("prior", {"random_flip": True}, ["image", "image-flip"]),
    ("prior", {"random_crops": True}, [f"image-crop-{k}" for k in (1, 2, 3)]),
    ("decoder", {"random_flip": True}, ["latents-32", "latents-32-flip"]),
    ("decoder", {"random_crops": True}, [f"latents-32-crop-{k}" for k in (1, 2, 3)]),
    (
        "decoder",
        {"random_crops": True, "random_flip": True},
        [f"latents-32-crop-{k}{flip}" for flip in ("", "-flip") for k in (1, 2, 3)],
    ),
]


@pytest.mark.parametrize(("stage", "options", "views"), VIEWS, ids=lambda value: "-".join(value))
def test_each_sample_comes_as_the_view_that_its_draw_says_all_equally_often(
    opened: Opened, stage: str, options: dict[str, bool], views: list[str]
) -> None:
    run, field = opened(stage, **options), "image_embeds" if stage == "prior" else "latents"
    seen: Counter[str] = Counter()
    for step in range(40):
        found = run.views(field, step)
        assert found == [views[Draws(SEED).integer(step, slot, VIEW, len(views))] for slot in range(SAMPLES)]
        seen.update(found)
    expected, total = 1 / len(views), 40 * SAMPLES
    assert set(seen) == set(views)
    assert max(abs(n / total - expected) for n in seen.values()) < 4 * (expected * (1 - expected) / total) ** 0.5


@pytest.mark.parametrize(
    "options", [{"random_flip": True}, {"random_crops": True, "random_flip": True}], ids=lambda o: "-".join(o)
)
def test_latents_and_embedding_are_of_the_same_view(opened: Opened, options: dict[str, bool]) -> None:
    run = opened("decoder", **options)
    for step in range(5):
        latents, embeds = run.views("latents", step), run.views("image_embeds", step)
        assert [name.replace("latents-32", "image") for name in latents] == embeds


def test_buckets_are_mirrored_too(opened: Opened) -> None:
    run = opened("decoder", buckets=True, random_flip=True)
    assert run.stage.columns == (
        "latents-32-buckets",
        "latents-32-buckets-flip",
        "image-32-buckets",
        "image-32-buckets-flip",
    )
    squares = run.source.groups[1].tolist()
    for step in range(10):
        batch = run.read(squares, step)
        for slot, number in enumerate(squares):
            flip = "-flip" if Draws(SEED).integer(step, slot, VIEW, 2) else ""
            latents, embeds = row(f"latents-32-buckets{flip}", number), row(f"image-32-buckets{flip}", number)
            assert np.array_equal(batch["latents"][slot].numpy().reshape(-1), latents["latents"])
            assert np.array_equal(batch["image_embeds"][slot].numpy(), embeds["image_embeds"])


def test_views_leave_noise_and_timesteps_as_they_are(opened: Opened) -> None:
    plain, flipped = (opened("decoder", random_flip=flip).read(list(range(SAMPLES)), step=2) for flip in (False, True))
    for name in ("noise", "timesteps"):
        assert torch.equal(plain[name], flipped[name])


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_many_views_do_not_open_more_files_than_few(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_OPEN_FILES", 12)
    before = len(os.listdir("/proc/self/fd"))
    run = opened("decoder", random_crops=True, random_flip=True)  # twelve columns of three shards
    for step in range(20):
        run.read(list(range(SAMPLES)), step)
    assert before + 6 < len(os.listdir("/proc/self/fd")) <= before + 12
    run.source.close()
    assert len(os.listdir("/proc/self/fd")) == before


# --- captionings


def test_the_text_column_that_was_picked_is_read(opened: Opened) -> None:
    for options, name in (({}, "text"), ({"text_column": "text-sks"}, "text-sks")):
        run = opened("prior", **options)
        assert run.stage.columns == (name, "image")
        batch = run.read([4, 9])
        for i, number in enumerate((4, 9)):
            captions = row(name, number)
            assert np.array_equal(batch["text_embeds"][i].numpy(), captions["text_embeds"][0])
            hidden = batch["hidden_states"][i, : batch["lengths"][i]].numpy()
            assert np.array_equal(hidden, captions["hidden_states"])


# --- the loss on fixed draws


def probe(run: ViewRun, samples: int, batch_size: int) -> float:
    positions = np.arange(len(run.samples))
    objective, device = Objective(run.stage, None), torch.device("cpu")
    return probe_loss(objective, run.stage, run.samples, positions, samples, batch_size, device)


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_runs_with_and_without_random_flip_have_comparable_probes(opened: Opened, stage: str) -> None:
    assert probe(opened(stage, random_flip=True), 9, 2) == probe(opened(stage), 9, 2)


def test_the_probe_over_buckets_is_the_mean_over_samples_whatever_the_batch_size(
    opened: Opened,
) -> None:
    run = opened("decoder", buckets=True)
    positions = BatchOrder([np.arange(SAMPLES)], 9, 0).batch(0).tolist()
    source, objective = run.stage.make_source(run.samples, 0), Objective(run.stage, None).eval()
    losses = []
    for slot, position in enumerate(positions):
        batch = source.fill(source.allocate(1, pin=False), MicroBatch(PROBE, [slot], [position]))
        losses.append(objective(batch).item())
    assert len({SHAPE_OF[position] for position in positions}) == 3
    for batch_size in (1, 2, 9):
        assert probe(run, 9, batch_size) == pytest.approx(np.mean(losses), rel=1e-5)
