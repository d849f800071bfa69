"""The held-out loss is on fixed noise and timesteps, and decides which point of a run is the best, and when to stop."""

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from support import relative_distance
from tiny import PIXELS

from kcache.runs import read_run
from kcache.shards import Cache, KcacheError, Snapshot
from kcache.training.chosen import choose, id_hash, planned_ids
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.draws import HELD_OUT
from kcache.training.held_out import BANDS, HeldOut
from kcache.training.loop import Objective
from kcache.training.samples import Samples
from kcache.training.sources import MicroBatch
from kcache.training.stages import Stage, make_stage
from kcache.training.train import train
from kcache.training.validation_steps import validation_steps

pytestmark = pytest.mark.usefixtures("few_steps")

WEIGHTS = "diffusion_pytorch_model.safetensors"
Config = PriorConfig | DecoderConfig
Make = Callable[..., Config]


@pytest.fixture(params=["prior", "decoder"])
def stage_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(encoded: Callable[..., Cache], tiny_prior: Path, tiny_decoder: Path, tmp_path: Path) -> Make:
    """``make(stage, out, **changes)``: eight updates of two samples, validated after every second."""

    def config(stage: str, out: str = "out", **changes: Any) -> Config:
        options: dict[str, Any] = {
            "cache": str(encoded().root),
            "output_dir": str(tmp_path / out),
            "pretrained_prior_model_name_or_path": str(tiny_prior),
            "pretrained_decoder_model_name_or_path": str(tiny_decoder),
            "seed": 5,
            "train_batch_size": 2,
            "max_train_steps": 8,
            "learning_rate": 1e-3,
            "logging_steps": 4,
            "probe_samples": 0,
            "validation_split": 0.4,
            "validation_steps": 2,
            "resolution": PIXELS,
            **changes,
        }
        return PriorConfig(**options) if stage == "prior" else DecoderConfig(**options)

    return config


def opened(config: Config) -> tuple[Stage, HeldOut]:
    cache = Cache(config.cache)
    stage = make_stage(config, cache)
    snapshot = Snapshot(cache, stage.columns)
    return stage, HeldOut(stage, Samples([snapshot]), choose(config, snapshot, 0).held_out)


def validations(out: Path) -> dict[int, dict[str, float]]:
    """What ``metrics.jsonl`` has of each validation, by update."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "validation_loss" in line}


# --- the loss


def test_every_sample_is_measured_once_in_each_band_with_the_draws_of_its_id(make: Make, stage_name: str) -> None:
    stage, held_out = opened(make(stage_name))
    objective = Objective(stage, None).eval()
    found = held_out.loss(Accelerator(), objective, 2)
    snapshot = held_out.samples.snapshots[0]
    expected = []
    for band in range(BANDS):
        steps, losses = range(band * 250, (band + 1) * 250), []
        for position, name in zip(held_out.positions, planned_ids(snapshot, held_out.positions), strict=True):
            of_one = MicroBatch(HELD_OUT + band, [id_hash(name)], [int(position)], steps)
            batch = held_out.source.fill(held_out.source.allocate(1, pin=False), of_one)
            assert int(batch["timesteps"][0]) in steps
            with torch.no_grad():
                losses.append(float(objective(batch)))
        expected.append(np.mean(losses))
    assert list(found.bands.values()) == pytest.approx(expected, rel=1e-5)
    assert found.loss == pytest.approx(np.mean(expected), rel=1e-5)
    assert list(found.bands) == [(0, 249), (250, 499), (500, 749), (750, 999)]


def test_the_loss_depends_neither_on_the_batch_size_nor_on_weights_and_dropout_of_training(
    make: Make, stage_name: str
) -> None:
    losses = []
    for batch_size, changes in ((1, {}), (4, {}), (3, {"snr_gamma": 5.0, "conditioning_dropout": 1.0})):
        stage, held_out = opened(make(stage_name, **changes))
        objective = Objective(stage, changes.get("snr_gamma"))
        losses.append(held_out.loss(Accelerator(), objective, batch_size).loss)
        assert objective.training
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_the_noise_of_a_sample_does_not_depend_on_what_else_is_held_out(make: Make) -> None:
    noises = []
    for share in (0.4, 0.7):
        _, held_out = opened(make("prior", validation_split=share))
        names = planned_ids(held_out.samples.snapshots[0], held_out.positions)
        batches = held_out.batches(1, HELD_OUT)
        buffers = held_out.source.allocate(1, pin=False)
        noises.append(
            {names[int(which[0])]: held_out.source.fill(buffers, batch)["noise"].clone() for which, batch in batches}
        )
    assert noises[0].keys() < noises[1].keys()
    assert all(torch.equal(noise, noises[1][name]) for name, noise in noises[0].items())


# --- in a run


def test_runs_with_other_seeds_and_rates_begin_at_the_same_loss(make: Make, stage_name: str, tmp_path: Path) -> None:
    firsts = []
    for out, changes in (("one", {}), ("two", {"seed": 6, "learning_rate": 1e-2, "train_batch_size": 3})):
        train(make(stage_name, out, **changes))
        found = validations(tmp_path / out)
        assert sorted(found) == [0, 2, 4, 6, 8]
        firsts.append(found[0]["validation_loss"])
        assert len({line["validation_loss"] for line in found.values()}) == 5
    assert firsts[0] == pytest.approx(firsts[1], rel=1e-6)


def test_validation_changes_nothing_of_the_training(make: Make, stage_name: str, tmp_path: Path) -> None:
    reports = [
        train(make(stage_name, out, where='id != "none"', **changes))
        for out, changes in (("with", {}), ("often", {"validation_steps": 1}))
    ]
    one, two = ((tmp_path / out / reports[0].component / WEIGHTS).read_bytes() for out in ("with", "often"))
    assert one == two


def test_the_prior_is_scored_by_what_it_samples(make: Make, tmp_path: Path) -> None:
    train(make("prior"))
    for line in validations(tmp_path / "out").values():
        assert -1 <= line["validation_cosine"] <= 1
        assert 0 <= line["validation_r1"] <= line["validation_r5"] <= 1


def test_the_best_point_is_kept_and_can_be_begun_from(make: Make, stage_name: str, tmp_path: Path) -> None:
    report = train(make(stage_name, learning_rate=3e-2))  # so high that it soon gets worse
    found = validations(tmp_path / "out")
    best = min(found, key=lambda step: found[step]["validation_loss"])
    assert (report.best_step, report.best_loss) == (best, pytest.approx(found[best]["validation_loss"]))
    name = f"pretrained_{stage_name}_model_name_or_path"
    again = {name: str(tmp_path / "out" / "best"), "max_train_steps": 1, "learning_rate": 0.0, "validation_steps": 9}
    train(make(stage_name, "again", **again))
    assert validations(tmp_path / "again")[0]["validation_loss"] == pytest.approx(report.best_loss, rel=1e-5)


def test_training_ends_when_no_validation_is_better_and_the_result_is_the_best(
    make: Make, stage_name: str, tmp_path: Path
) -> None:
    report = train(make(stage_name, learning_rate=0.3, max_train_steps=40, early_stopping=2))
    found = validations(tmp_path / "out")
    assert report.ended_early
    assert report.finished
    assert report.best_step is not None
    assert report.step == max(found) == report.best_step + 4
    result, best = (load_file(tmp_path / "out" / folder / report.component / WEIGHTS) for folder in ("", "best"))
    assert all(torch.equal(result[name], best[name]) for name in best)


def test_a_resumed_run_remembers_its_best_and_its_patience(make: Make, tmp_path: Path) -> None:
    options = {"learning_rate": 0.3, "early_stopping": 3, "checkpointing_steps": 2}
    straight = train(make("prior", "straight", max_train_steps=40, **options))
    first = train(make("prior", "stopped", max_train_steps=2, **options))
    assert not first.ended_early
    resumed = train(make("prior", "stopped", max_train_steps=40, resume_from_checkpoint="latest", **options))
    assert (resumed.step, resumed.best_step, resumed.best_loss) == (
        straight.step,
        straight.best_step,
        straight.best_loss,
    )


def test_with_a_moving_average_it_is_the_average_that_is_measured_and_kept(make: Make, tmp_path: Path) -> None:
    plain = train(make("prior", "plain"))
    averaged = train(make("prior", "averaged", use_ema=True))
    assert plain.best_loss != averaged.best_loss
    result = load_file(tmp_path / "averaged" / "prior" / WEIGHTS)
    last = load_file(tmp_path / "averaged" / "checkpoint-8" / "prior" / WEIGHTS)
    assert relative_distance(result.values(), last.values()) > 1e-5
    same = load_file(tmp_path / "plain" / "prior" / WEIGHTS)
    assert relative_distance(last.values(), same.values()) == 0  # the average does not touch what is trained


# --- when


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0, 3, 15, 20]),  # after epochs 1 and 6 of 2.5 updates, as the reference, before and after
        ({"lora": True}, [0, 3, 5, 8, 10, 13, 15, 18, 20]),
        ({"validation_epochs": 2}, [0, 3, 8, 13, 18, 20]),
        ({"validation_steps": 7}, [0, 7, 14, 20]),
    ],
)
def test_validation_comes_by_epochs_as_in_the_reference_or_by_updates(
    changes: dict[str, Any], expected: list[int]
) -> None:
    due = validation_steps(PriorConfig(cache="", output_dir="", **changes), Fraction(10), 4, 20)
    assert [step for step in range(21) if due(step)] == expected


# --- what is said of it


def test_a_result_that_is_the_best_is_described_as_that(make: Make, tmp_path: Path) -> None:
    report = train(make("decoder", learning_rate=0.3, max_train_steps=40, early_stopping=2, probe_samples=4))
    out = tmp_path / "out"
    record = json.loads((out / "training.json").read_text())
    assert report.result_is_best
    assert report.last_probe is None  # it would be of other weights
    assert (record["step"], record["ended"]) == (report.best_step, report.step)
    said = f"| updates | {report.best_step} of 2 samples each, the best of {report.step} |"
    assert said in (out / "README.md").read_text()
    assert (out / "validation.png").read_bytes() == (
        out / "validation" / f"step-{report.best_step:06d}.png"
    ).read_bytes()
    assert read_run(out).finished


def test_a_run_that_ended_before_its_first_checkpoint_is_not_written_over(make: Make, tmp_path: Path) -> None:
    train(make("prior"))
    for left in ("checkpoint-8", "prior"):
        shutil.rmtree(tmp_path / "out" / left)
    with pytest.raises(KcacheError, match=r"already holds a run \(best\); go on with --resume-from-checkpoint latest"):
        train(make("prior"))
    shutil.rmtree(tmp_path / "out" / "best")
    with pytest.raises(KcacheError, match=r"already holds a run \(metrics.jsonl\)"):
        train(make("prior"))
    assert train(make("prior", resume_from_checkpoint="latest")).step == 8


def test_a_run_that_goes_on_in_another_folder_looks_for_its_best_there(make: Make, tmp_path: Path) -> None:
    train(make("prior", "first", learning_rate=0.3, max_train_steps=4, early_stopping=5))
    checkpoint = str(tmp_path / "first" / "checkpoint-4")
    report = train(make("prior", "second", learning_rate=0.3, early_stopping=5, resume_from_checkpoint=checkpoint))
    assert report.finished
    assert (tmp_path / "second" / "best").is_dir()
    assert report.best_step in validations(tmp_path / "second")


def test_the_precision_that_the_launcher_chose_is_what_is_recorded(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    train(make("prior", validation_split=0.0, validation_steps=None))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["options"]["mixed_precision"] == "bf16"
    assert "| mixed precision | bf16 |" in (tmp_path / "out" / "README.md").read_text()
