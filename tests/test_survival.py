"""What a training survives: kills at any moment, full disks, NaNs, and signals while it saves or validates."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest
import torch
from launched import ROOT, environ, updates
from safetensors.torch import load_file
from tally import Tally
from tiny import PIXELS

from kcache.checkpoints import training_record
from kcache.shards import Cache, KcacheError, durable
from kcache.training.checkpointing import checkpoints, load_state, load_tensors
from kcache.training.config import PriorConfig
from kcache.training.engine import make_accelerator
from kcache.training.held_out import HeldOut
from kcache.training.train import train
from kcache.training.weights import FullWeights


@pytest.fixture(scope="module")
def cache(encoded: Callable[..., Cache]) -> Cache:
    return encoded()


# --- SIGKILL


SAMPLED, ALL = 6, 100
"""How often each training is killed in every run of the tests, and in a torture."""

Told = dict[str, Any]


def kill_trainings(folder: Path, cache: Cache, checkpoints: dict[str, Path], kills: int) -> Told:
    """Let killed_training.py kill a training of each of these stages in ``folder``; what it tells of them."""
    everything = {
        "cache": str(cache.root),
        "seed": 3,
        "train_batch_size": 2,
        "max_train_steps": 8 * kills,
        "use_ema": True,
        "conditioning_dropout": 0.3,
        "validation_split": 0.3,
        "validation_steps": 4,
        "checkpointing_steps": 2,
        "checkpoints_total_limit": 2,
        "logging_steps": 1,
        "probe_samples": 4,
        "resume_from_checkpoint": "latest",
    }
    own = {
        "prior": {"lr_scheduler": "cosine"},
        "decoder": {"resolution": PIXELS, "lora": True, "validation_steps": 24},  # each makes pictures
    }
    jobs = {
        stage: {
            "stage": stage,
            "kills": kills,
            "seed": len(stage),
            "options": {
                **everything,
                **own[stage],
                f"pretrained_{stage}_model_name_or_path": str(checkpoint),
                "output_dir": str(folder / stage),
            },
        }
        for stage, checkpoint in checkpoints.items()
    }
    (folder / "jobs.json").write_text(json.dumps(jobs))
    program = Path(__file__).with_name("killed_training.py")
    line = [sys.executable, "-W", "ignore", str(program), str(folder / "jobs.json")]
    ran = subprocess.run(line, cwd=ROOT, env=environ(), capture_output=True, text=True, timeout=100 * kills)
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def killed(cache: Cache, tiny_prior: Path, tiny_decoder: Path, tmp_path_factory: Any) -> tuple[Path, Told]:
    """The folder in which both trainings were killed some times, and what is told of each."""
    folder = tmp_path_factory.mktemp("killed")
    return folder, kill_trainings(folder, cache, {"prior": tiny_prior, "decoder": tiny_decoder}, SAMPLED)


def check_killed(folder: Path, stage: str, told: Told, kills: int) -> None:
    """A training that was killed ended as the one beside it to which nothing happened."""
    assert told["codes"] == [0, 0]
    assert len(told["steps"]) == kills
    assert told["steps"] == sorted(told["steps"])  # no kill costs a checkpoint
    assert told["halves"] > 0, told  # some came while something was being written
    ours, theirs = folder / stage, folder / f"{stage}-undisturbed"
    left = {path.name for path in theirs.iterdir()}
    assert {path.name for path in ours.iterdir()} == left
    for path in sorted(theirs.rglob("*.safetensors")):  # the result, the best, and both checkpoints
        assert_equal(load_file(ours / path.relative_to(theirs)), load_file(path))
    for checkpoint in checkpoints(theirs):
        assert_equal(load_tensors(ours / checkpoint.name), load_tensors(checkpoint))
        assert load_state(ours / checkpoint.name) == load_state(checkpoint)
    assert updates(ours) == updates(theirs)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here, to be killed cheaply")


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_killed_at_random_moments_a_training_ends_at_the_same_bits(
    killed: tuple[Path, Told], tally: Tally, stage: str
) -> None:
    folder, told = killed
    with tally.all_survived(f"kills of a training of the {stage}", SAMPLED):
        check_killed(folder, stage, told[stage], SAMPLED)


@pytest.mark.torture
@needs_fork
@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_killed_a_hundred_times_a_training_ends_at_the_same_bits(
    cache: Cache, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path, tally: Tally, stage: str
) -> None:
    with tally.all_survived(f"kills of a training of the {stage}", ALL):
        checkpoint = {"prior": tiny_prior, "decoder": tiny_decoder}[stage]
        told = kill_trainings(tmp_path, cache, {stage: checkpoint}, ALL)
        check_killed(tmp_path, stage, told[stage], ALL)


def assert_equal(one: Any, other: Any) -> None:
    """Two nested states are the same to the bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict | list):
        assert len(one) == len(other)
        for key in one if isinstance(one, dict) else range(len(one)):
            assert_equal(one[key], other[key])
    else:
        assert one == other


# --- what a kill may leave half done


def options(cache: Cache, prior: Path, out: Path, **changes: Any) -> PriorConfig:
    """Six updates of the prior; it validates and saves after every second one."""
    fixed = {
        "cache": str(cache.root),
        "output_dir": str(out),
        "pretrained_prior_model_name_or_path": str(prior),
        "seed": 3,
        "train_batch_size": 2,
        "max_train_steps": 6,
        "learning_rate": 2e-3,
        "lr_warmup_steps": 0,
        "validation_split": 0.3,
        "validation_steps": 2,
        "checkpointing_steps": 2,
        "probe_samples": 2,
        "resume_from_checkpoint": "latest",
    }
    return PriorConfig(**{**fixed, **changes})


Make = Callable[..., PriorConfig]


@pytest.fixture(scope="module")
def make(cache: Cache, tiny_prior: Path) -> Make:
    """``make(out, **changes)``: the options of a run."""
    return lambda out, **changes: options(cache, tiny_prior, out, **changes)


@pytest.fixture(scope="module")
def straight(make: Make, tmp_path_factory: Any) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("straight")
    train(make(out))
    return out


def assert_same(out: Path, expected: Path) -> None:
    """The same result, best and checkpoints, to the bit, and nothing else."""
    assert {path.name for path in out.iterdir()} == {path.name for path in expected.iterdir()}
    for path in sorted(expected.rglob("*.safetensors")):
        assert_equal(load_file(out / path.relative_to(expected)), load_file(path))


def test_the_oldest_goes_only_when_the_newest_is_safe(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    monkeypatch.setattr(durable, "failpoint", steps.append)
    rename, removed = os.rename, []

    def watched(old: Path, new: Path) -> None:
        if Path(old).name.startswith("checkpoint-"):
            newest = checkpoints(tmp_path)[-1]
            assert steps[-1] == "fsync folder"  # of OUT, after the newest got its name
            assert load_state(newest).step > load_state(Path(old)).step
            assert load_tensors(newest)
            removed.append(Path(old).name)
        rename(old, new)

    monkeypatch.setattr(os, "rename", watched)
    train(make(tmp_path, checkpoints_total_limit=1))
    assert removed == ["checkpoint-2", "checkpoint-4"]
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-6"]


def test_a_kill_while_the_oldest_is_removed_leaves_no_half_of_it(
    make: Make, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rmtree = shutil.rmtree

    def killed(path: Path, **how: Any) -> None:
        if Path(path).name == ".tmp-checkpoint-2" and (Path(path) / "state.json").exists():
            (Path(path) / "optimizer.pt").unlink()
            raise KeyboardInterrupt
        rmtree(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            train(make(tmp_path, checkpoints_total_limit=1))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4"]
    train(make(tmp_path))
    assert_same_result(tmp_path, straight)
    assert not list(tmp_path.glob(".tmp-*"))


def assert_same_result(out: Path, expected: Path) -> None:
    for name in ("prior", "best/prior"):
        file = "diffusion_pytorch_model.safetensors"
        assert_equal(load_file(out / name / file), load_file(expected / name / file))


def test_a_run_that_was_cut_off_before_its_result_writes_it_when_run_again(
    make: Make, straight: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(straight, tmp_path / "out")
    shutil.rmtree(out / "prior")
    assert train(make(out)).finished
    assert_same(out, straight)
    with pytest.raises(KcacheError, match=r"the run has 6 updates already and 6 were asked for; ask for more with --m"):
        train(make(out))


def test_the_same_holds_for_a_run_that_ended_early(make: Make, tmp_path: Path) -> None:
    patient = {"early_stopping": 1, "learning_rate": 5.0}
    ended = train(make(tmp_path / "ended", **patient))
    assert ended.ended_early
    out = shutil.copytree(tmp_path / "ended", tmp_path / "cut")
    (out / "training.json").unlink()
    again = train(make(out, **patient))
    assert (again.step, again.best_step, again.ended_early) == (ended.step, ended.best_step, True)
    assert_same(out, tmp_path / "ended")
    with pytest.raises(KcacheError, match=r"the run ended after \d updates, as 1 validations were not better than"):
        train(make(out, **patient))


def test_a_best_of_updates_that_are_done_again_is_looked_for_anew(
    make: Make, straight: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = shutil.copytree(straight, tmp_path / "out")
    with caplog.at_level("WARNING", logger="kcache"):
        report = train(make(out, resume_from_checkpoint="checkpoint-2", learning_rate=1e-7))
    assert "is of update 6 and the checkpoint knows of update 2 as the best" in caplog.text
    assert report.best_step in (4, 6)
    assert training_record(out / "best")["step"] == report.best_step


# --- full disks, at whatever is being written


@pytest.mark.parametrize("save", range(8))
def test_a_disk_that_is_full_at_any_save_leaves_everything_else_whole(
    make: Make, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: int
) -> None:
    saved, write = count(), FullWeights.save

    def fail(weights: FullWeights, model: Any, folder: Path) -> None:
        write(weights, model, folder)
        if next(saved) == save:
            os.truncate(folder / "prior" / "diffusion_pytorch_model.safetensors", 100)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(FullWeights, "save", fail)
        with pytest.raises(KcacheError, match=r"is full and .* was not written; free some space and run the same"):
            train(make(tmp_path))
    assert not list(tmp_path.glob(".*"))
    for path in tmp_path.rglob("*.safetensors"):
        load_file(path)
    for checkpoint in checkpoints(tmp_path):
        assert load_state(checkpoint).step
        assert load_tensors(checkpoint)
    train(make(tmp_path))
    assert_same(tmp_path, straight)


# --- NaN


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("every", list(product((1, 3), (1, 2), (1, 4))), ids=str)
def test_no_checkpoint_best_or_result_holds_a_nan(
    make: Make, tmp_path: Path, every: tuple[int, int, int], lora: bool
) -> None:
    logging, saving, validating = every
    absurd = {"learning_rate": 1e30, "logging_steps": logging, "checkpointing_steps": saving, "lora": lora}
    with pytest.raises(KcacheError, match=r"finite|the held-out loss is (nan|inf)"):
        train(make(tmp_path, validation_steps=validating, use_ema=True, **absurd))
    assert not (tmp_path / "prior").exists()
    assert not (tmp_path / "pytorch_lora_weights.safetensors").exists()
    kept = [load_file(path) for path in tmp_path.rglob("*.safetensors")]
    kept += [load_tensors(checkpoint) for checkpoint in checkpoints(tmp_path)]
    assert all(tensor.isfinite().all() for state in kept for tensor in tensors_in(state))


def tensors_in(state: Any) -> Iterator[torch.Tensor]:
    """All tensors of a nested state."""
    if isinstance(state, torch.Tensor):
        yield state
    for part in state.values() if isinstance(state, dict) else state if isinstance(state, list) else ():
        yield from tensors_in(part)


# --- a signal while something else is done, and the gradient scaler


@pytest.mark.parametrize("what", [(HeldOut, "loss"), (FullWeights, "save")], ids=["validating", "saving"])
def test_a_signal_cuts_neither_a_validation_nor_a_save_short(
    make: Make, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: tuple[Any, str]
) -> None:
    owner, name = what
    method, calls = getattr(owner, name), count()

    def interrupted(*given: Any) -> Any:
        if next(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return method(*given)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        report = train(make(tmp_path))
    assert not report.finished
    assert report.checkpoint == str(checkpoints(tmp_path)[-1])
    train(make(tmp_path))
    assert_same_result(tmp_path, straight)


def test_the_gradient_scaler_goes_on_where_it_was(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_scaler(config: PriorConfig) -> Any:
        accelerator = make_accelerator(config)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
        return accelerator

    monkeypatch.setattr("kcache.training.train.make_accelerator", with_scaler)
    train(make(tmp_path / "straight"))
    train(make(tmp_path / "stopped", max_train_steps=3))
    train(make(tmp_path / "stopped"))
    ours, theirs = (load_tensors(tmp_path / run / "checkpoint-6") for run in ("stopped", "straight"))
    assert theirs["scaler"]["scale"] == 2.0**11
    assert theirs["scaler"]["_growth_tracker"] == 2
    assert_equal(ours, theirs)
