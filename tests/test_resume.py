"""A run that is stopped after any update and resumed ends bit-identical, and what cannot be gone on from is refused."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import encode_tiny, flip, ids, metrics, relative_distance
from tiny import PIXELS
from torch import Tensor

from kcache.shards import Cache, DamageError, KcacheError, Snapshot
from kcache.training.checkpointing import checkpoints
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.loop import Objective
from kcache.training.objectives import Batch
from kcache.training.stopping import finish_step_on_signal
from kcache.training.train import TrainReport, train

Config = PriorConfig | DecoderConfig
ROOT = Path(__file__).parent.parent
UPDATES, WARMUP, PEAK, ACCUMULATION = 7, 3, 2e-3, 2
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", params=["prior", "decoder"])
def stage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def cache(encoded: Callable[..., Cache]) -> Cache:
    return encoded()


def make_config(stage: str, root: Path, out: Path, prior: Path, decoder: Path, **changes: Any) -> Config:
    """Seven updates of 2 x 2 of 10 samples, so that most stops fall inside an epoch; the rate warms up and falls."""
    options: dict[str, Any] = {
        "cache": str(root),
        "output_dir": str(out),
        "seed": 3,
        "train_batch_size": 2,
        "gradient_accumulation_steps": ACCUMULATION,
        "max_train_steps": UPDATES,
        "learning_rate": PEAK,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": WARMUP,
        "checkpointing_steps": 1,
        "logging_steps": 1,
        "probe_samples": 4,
        **changes,
    }
    if stage == "prior":
        return PriorConfig(**options, pretrained_prior_model_name_or_path=str(prior))
    return DecoderConfig(**options, pretrained_decoder_model_name_or_path=str(decoder), resolution=PIXELS)


Make = Callable[..., Config]


@pytest.fixture(scope="module")
def make(cache: Cache, tiny_prior: Path, tiny_decoder: Path) -> Make:
    """``make(stage, out, **changes)``: the options of a run."""
    return lambda stage, out, **changes: make_config(stage, cache.root, out, tiny_prior, tiny_decoder, **changes)


@pytest.fixture(scope="module")
def straight(stage: str, make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped, with a checkpoint after every update."""
    out = tmp_path_factory.mktemp("straight")
    assert train(make(stage, out)).step == UPDATES
    return out


@pytest.fixture(scope="module")
def prior_run(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of seven updates of the prior."""
    out = tmp_path_factory.mktemp("prior-run")
    with stopping_after(3):
        train(make("prior", out))
    return out


@contextmanager
def stopping_after(updates: int) -> Iterator[None]:
    """Within it a run gets Ctrl-C in the first forward of its update number ``updates``, counted from its start."""
    forward, calls = Objective.forward, count()

    def interrupted(objective: Objective, batch: Batch) -> Tensor:
        if objective.training and next(calls) == (updates - 1) * ACCUMULATION:
            signal.raise_signal(signal.SIGINT)
        return forward(objective, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "forward", interrupted)
        yield


def copy_checkpoint(run: Path, step: int, out: Path) -> None:
    shutil.copytree(run / f"checkpoint-{step}", out / f"checkpoint-{step}")


def resume(config: Config, **changes: Any) -> TrainReport:
    return train(replace(config, **{"resume_from_checkpoint": "latest", **changes}))


def assert_identical(out: Path, expected: Path, component: str) -> None:
    """The same weights and the same optimizer, to the last bit."""
    assert (out / component / WEIGHTS).read_bytes() == (expected / component / WEIGHTS).read_bytes()
    ours, theirs = (load_optimizer(run / f"checkpoint-{UPDATES}") for run in (out, expected))
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys() != set()
    for key, state in theirs["state"].items():
        assert all(torch.equal(state[name], ours["state"][key][name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def load_optimizer(checkpoint: Path) -> dict[str, Any]:
    tensors: dict[str, Any] = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    return tensors["optimizer"]


def component_of(stage: str) -> str:
    return {"prior": "prior", "decoder": "unet"}[stage]


# --- bit for bit


@pytest.mark.parametrize("step", range(1, UPDATES))
def test_a_run_resumed_after_any_update_ends_bit_identical(
    stage: str, straight: Path, make: Make, tmp_path: Path, step: int
) -> None:
    copy_checkpoint(straight, step, tmp_path)
    assert resume(make(stage, tmp_path)).step == UPDATES
    assert_identical(tmp_path, straight, component_of(stage))
    ours, theirs = metrics(tmp_path), metrics(straight)[step:]
    assert [[line[k] for k in ("step", "loss", "learning_rate", "gradient_norm")] for line in ours] == [
        [line[k] for k in ("step", "loss", "learning_rate", "gradient_norm")] for line in theirs
    ]


def test_a_run_stopped_after_every_single_update_ends_bit_identical(
    stage: str, straight: Path, make: Make, tmp_path: Path
) -> None:
    config = make(stage, tmp_path, checkpointing_steps=1000)
    reports = []
    for _ in range(UPDATES - 1):
        with stopping_after(1):
            reports.append(resume(config))
    assert [report.step for report in reports] == list(range(1, UPDATES))
    assert [Path(str(report.checkpoint)).name for report in reports] == [f"checkpoint-{n}" for n in range(1, UPDATES)]
    assert not (tmp_path / component_of(stage)).exists()
    last = resume(config, checkpointing_steps=1)
    assert_identical(tmp_path, straight, component_of(stage))
    assert {report.first_probe for report in (*reports, last)} == {reports[0].first_probe}
    assert reports[0].first_probe is not None


def test_two_runs_with_one_seed_are_the_same_and_with_another_are_not(
    stage: str, straight: Path, make: Make, tmp_path: Path
) -> None:
    train(make(stage, tmp_path / "same"))
    train(make(stage, tmp_path / "other", seed=4))
    assert_identical(tmp_path / "same", straight, component_of(stage))
    weights = [(run / component_of(stage) / WEIGHTS).read_bytes() for run in (straight, tmp_path / "other")]
    assert weights[0] != weights[1]


def rate(update: int) -> float:
    """The learning rate of an update, counted from 0: linear warm-up over WARMUP updates, then half a cosine."""
    if update < WARMUP:
        return PEAK * update / WARMUP
    return PEAK * (1 + math.cos(math.pi * (update - WARMUP) / (UPDATES - WARMUP))) / 2


def test_warm_up_is_counted_in_updates_whatever_the_accumulation(stage: str, straight: Path) -> None:
    expected = [rate(update) for update in range(1, UPDATES + 1)]
    assert [line["learning_rate"] for line in metrics(straight)] == pytest.approx(expected)
    saved = [load_optimizer(path)["param_groups"][0]["lr"] for path in checkpoints(straight)]
    assert saved == pytest.approx(expected)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 1), (1, 4), (1, 2)])
def test_another_split_of_the_same_global_batch_goes_on_and_accumulation_is_adjusted_to_it(
    stage: str, straight: Path, make: Make, tmp_path: Path, batch_size: int, accumulation: int
) -> None:
    copy_checkpoint(straight, 4, tmp_path)
    resume(make(stage, tmp_path), train_batch_size=batch_size, gradient_accumulation_steps=accumulation)
    losses = [[line["loss"] for line in metrics(run)] for run in (tmp_path, straight)]
    assert losses[0] == pytest.approx(losses[1][4:], rel=1e-6)
    ours, theirs = (load_file(run / component_of(stage) / WEIGHTS) for run in (tmp_path, straight))
    names = [name for name in theirs if not name.endswith("to_k.bias")]  # its gradient is rounding errors
    assert relative_distance((ours[n] for n in names), (theirs[n] for n in names)) < 1e-6


# --- stopping


def test_sigterm_finishes_the_update_and_leaves_a_checkpoint_that_resumes_exactly(
    make: Make, tmp_path: Path, tiny_prior: Path, cache: Cache
) -> None:
    updates, out = 100_000, tmp_path / "stopped"  # far more than are done before the signal comes
    options = {"max_train_steps": updates, "lr_scheduler": "constant", "checkpointing_steps": updates}
    names = {"seed": 3, "train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": PEAK, **options}
    names |= {"logging_steps": 1, "probe_samples": 4, "pretrained_prior_model_name_or_path": tiny_prior}
    line = [f"--{name}={value}" for name, value in names.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "kcache", "train", "prior", str(cache.root), f"--output-dir={out}", *line],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_updates(out, process)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    (stopped,) = checkpoints(out)
    step = int(stopped.name.removeprefix("checkpoint-"))
    assert (process.returncode, 0 < step < updates) == (130, True), stderr
    assert f"Stopped after update {step:,} of {updates:,}" in stdout
    assert "--resume-from-checkpoint latest" in stdout
    assert "Traceback" not in stderr
    assert not (out / "prior").exists()
    options["max_train_steps"] = step + 5
    resume(make("prior", out, **options))
    train(make("prior", tmp_path / "straight", **options))
    assert (out / "prior" / WEIGHTS).read_bytes() == (tmp_path / "straight" / "prior" / WEIGHTS).read_bytes()


def wait_for_updates(out: Path, process: "subprocess.Popen[str]") -> None:
    for _ in range(6000):
        if process.poll() is not None:
            pytest.fail(f"the run ended by itself: {process.communicate()}")
        if (out / "metrics.jsonl").is_file() and len(metrics(out)) > 2:
            return
        time.sleep(0.01)
    process.kill()
    pytest.fail("no update within a minute")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with finish_step_on_signal() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": 4}, "was made with seed 3 and this run has 4; leave --seed out"),
        ({"train_batch_size": 3}, "was made with global_batch 4 and this run has 6; choose --train-batch-size"),
        ({"train_batch_size": 8}, "was made with global_batch 4 and this run has 16"),
        (
            {"max_train_samples": 8},
            "made with selection max_train_samples None and this run has max_train_samples 8",
        ),
        (
            {"validation_split": 0.5},
            "made with selection validation_split 0.0 and this run has validation_split 0.5",
        ),
        ({"use_ema": True}, "was made without --use-ema; leave it out"),
        ({"optimizer": "sgd"}, "was made with --optimizer adamw and this run has sgd"),
        ({"max_train_steps": 2}, "the run has 3 updates already and 2 were asked for"),
        ({"resume_from_checkpoint": "checkpoint-9"}, r"no checkpoint checkpoint-9 \(in .*: checkpoint-1, .*-3\); give"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_resume_refuses_what_would_not_go_on_exactly(
    prior_run: Path, make: Make, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(KcacheError, match=sentence):
        resume(make("prior", prior_run), **changes)


def test_resume_without_a_seed_takes_the_one_that_was_saved(prior_run: Path, make: Make, tmp_path: Path) -> None:
    shutil.copytree(prior_run, tmp_path / "given")
    shutil.copytree(prior_run, tmp_path / "left-out")
    resume(make("prior", tmp_path / "given"))
    resume(make("prior", tmp_path / "left-out"), seed=None)
    assert_identical(tmp_path / "left-out", tmp_path / "given", "prior")


def test_resume_refuses_the_other_trainer(prior_run: Path, make: Make) -> None:
    with pytest.raises(KcacheError, match=r"was made with stage prior and this run has decoder"):
        resume(make("decoder", prior_run))


def test_resume_refuses_a_cache_that_has_grown(
    prior_run: Path, make: Make, cache: Cache, pictures: Path, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    shutil.copytree(cache.root, tmp_path / "cache")
    shutil.copytree(pictures, tmp_path / "pictures")
    config = make("prior", prior_run, cache=str(tmp_path / "cache"), max_train_steps=4)
    shutil.copytree(prior_run, tmp_path / "out")
    assert resume(config, output_dir=str(tmp_path / "out")).step == 4  # moved, but the same
    shutil.copy(pictures / "apple.webp", tmp_path / "pictures" / "zebra.webp")
    with open(tmp_path / "pictures" / "metadata.jsonl", "a") as file:
        file.write('{"file_name": "zebra.webp", "text": "not a zebra"}\n')
    encode_tiny(tmp_path / "cache", tmp_path / "pictures", tiny_prior, tiny_decoder)
    with pytest.raises(KcacheError, match=r"trained on \(text: 1 row added; .* by --accept-new-snapshot"):
        resume(config)


def test_a_folder_that_holds_a_run_is_refused_without_resume(prior_run: Path, make: Make, straight: Path) -> None:
    for out in (prior_run, straight):
        before = sorted(path.stat().st_mtime_ns for path in out.rglob("*"))
        with pytest.raises(KcacheError, match=r"already holds a run \(checkpoint-.*\); go on with --resume-from-check"):
            train(make("prior", out))
        assert sorted(path.stat().st_mtime_ns for path in out.rglob("*")) == before


def test_latest_with_no_checkpoint_starts_anew(stage: str, straight: Path, make: Make, tmp_path: Path) -> None:
    (tmp_path / ".tmp-checkpoint-5").mkdir()  # what a run leaves that is killed while it saves
    resume(make(stage, tmp_path))
    assert_identical(tmp_path, straight, component_of(stage))


def test_a_named_checkpoint_is_taken_by_name_or_by_path(prior_run: Path, make: Make, tmp_path: Path) -> None:
    for name in ("checkpoint-2", str(prior_run / "checkpoint-2")):
        out = tmp_path / name.replace("/", "-")
        shutil.copytree(prior_run, out)
        resume(make("prior", out), resume_from_checkpoint=name)
        assert [line["step"] for line in metrics(out)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_folder_that_is_no_checkpoint_is_refused(prior_run: Path, make: Make) -> None:
    with pytest.raises(KcacheError, match="is not a kcache checkpoint"):
        resume(make("prior", prior_run), resume_from_checkpoint=str(prior_run / "checkpoint-2" / "prior"))


def test_a_checkpoint_whose_state_is_damaged_is_refused(prior_run: Path, make: Make, tmp_path: Path) -> None:
    copy_checkpoint(prior_run, 2, tmp_path)
    flip(tmp_path / "checkpoint-2" / "state.json", 40)
    with pytest.raises(DamageError, match=r"state\.json"):
        resume(make("prior", tmp_path))


@pytest.mark.parametrize("file", ["optimizer.pt", f"prior/{WEIGHTS}"])
def test_a_checkpoint_that_was_cut_is_refused_with_a_sentence(
    prior_run: Path, make: Make, tmp_path: Path, file: str
) -> None:
    copy_checkpoint(prior_run, 2, tmp_path)
    os.truncate(tmp_path / "checkpoint-2" / file, 1000)
    with pytest.raises(KcacheError, match=r"checkpoint-2.* does not load .*; resume from another checkpoint"):
        resume(make("prior", tmp_path))


def test_a_pickle_in_the_place_of_the_optimizer_is_not_run(prior_run: Path, make: Make, tmp_path: Path) -> None:
    copy_checkpoint(prior_run, 2, tmp_path)
    torch.save({"optimizer": Path("something that is no tensor")}, tmp_path / "checkpoint-2" / "optimizer.pt")
    with pytest.raises(KcacheError, match="does not load"):
        resume(make("prior", tmp_path))


def test_a_damaged_sample_stops_the_run_and_is_named(make: Make, cache: Cache, stage: str, tmp_path: Path) -> None:
    shutil.copytree(cache.root, tmp_path / "cache")
    entries = Snapshot(cache, ["image"]).pinned["image"].entries
    flip(tmp_path / "cache" / cache.commit("image", 1, 1).file, int(entries[6, 0]["offset"]))
    config = make(stage, tmp_path / "out", cache=str(tmp_path / "cache"), probe_samples=0)
    with pytest.raises(DamageError, match=f"sample '{ids(cache)[6]}': the bytes do not match their crc32"):
        train(config)
    assert not (tmp_path / "out" / component_of(stage)).exists()


# --- what a checkpoint is


def test_the_limit_keeps_the_newest_checkpoints(make: Make, tmp_path: Path) -> None:
    with stopping_after(5):
        train(make("prior", tmp_path, checkpoints_total_limit=2))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-5"]


def test_the_limit_never_removes_what_was_just_saved(prior_run: Path, make: Make, tmp_path: Path) -> None:
    copy_checkpoint(prior_run, 1, tmp_path)
    copy_checkpoint(prior_run, 3, tmp_path)
    config = make("prior", tmp_path, checkpoints_total_limit=2, resume_from_checkpoint="checkpoint-1")
    with stopping_after(1):
        report = train(config)
    assert report.checkpoint == str(tmp_path / "checkpoint-2")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]


def test_a_checkpoint_holds_tensors_and_json_only(straight: Path, stage: str) -> None:
    folder = straight / f"checkpoint-{UPDATES}"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    component = component_of(stage)
    assert files == {"state.json", "optimizer.pt", f"{component}/config.json", f"{component}/{WEIGHTS}"}
    assert load_optimizer(folder)["state"]


def test_a_folder_that_was_being_exchanged_when_the_run_was_killed_comes_back(tmp_path: Path) -> None:
    from kcache.training.checkpointing import recover

    for name in (".old-prior", ".old-checkpoint-2", "checkpoint-2", ".tmp-checkpoint-4"):
        (tmp_path / name).mkdir()
    recover(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "prior"]


def test_adam_options_of_a_resumed_run_are_those_that_were_asked_for(
    prior_run: Path, make: Make, tmp_path: Path
) -> None:
    shutil.copytree(prior_run, tmp_path / "out")
    config = make("prior", tmp_path / "out", max_train_steps=4)
    resume(config, adam_weight_decay=0.5, adam_beta1=0.1)
    (last,) = (path for path in checkpoints(tmp_path / "out") if path.name == "checkpoint-4")
    (group,) = torch.load(last / "optimizer.pt", weights_only=True)["optimizer"]["param_groups"]
    assert (group["weight_decay"], group["betas"][0]) == (0.5, 0.1)


def test_the_result_of_a_run_is_a_checkpoint_to_begin_the_next_one_from(
    prior_run: Path, make: Make, tiny_prior: Path, tmp_path: Path
) -> None:
    import json

    first, second = (make("prior", tmp_path / name, max_train_steps=1) for name in ("first", "second"))
    train(first)
    train(replace(second, pretrained_prior_model_name_or_path=str(tmp_path / "first")))
    assert json.loads((tmp_path / "second" / "training.json").read_bytes())["trained_from"] == str(tiny_prior)
