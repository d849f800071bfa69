"""What a run measures: ``metrics.jsonl`` and ``run.json`` in OUT, and the trackers of ``--report-to``."""

import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from toy_cache import make_cache

from kcache import __version__
from kcache.runs import read_run
from kcache.shards import KcacheError, Snapshot, UsageError
from kcache.training.config import PriorConfig
from kcache.training.metrics import Metrics
from kcache.training.run_record import cache_record, command_line
from kcache.training.trackers import TRACKERS, log_with

RUN = {"step": 0, "stage": "prior", "max_steps": 30, "samples": 10}


@dataclass(frozen=True)
class Shown:
    """One picture and what it shows."""

    caption: str
    image: Image.Image


def accelerator(out: Path, report_to: str | None = None) -> Any:
    """One as training makes it for ``report_to``."""
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    project = ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "logs"))
    return Accelerator(cpu=True, log_with=log_with(report_to) or None, project_config=project)


def begin(out: Path, step: int = 0, **options: Any) -> Metrics:
    """The metrics of a run that starts, or goes on at an update."""
    out.mkdir(exist_ok=True)
    config = PriorConfig(cache="cache", output_dir=str(out), **options)
    metrics = Metrics(config, accelerator(out, config.report_to), out)
    metrics.start({**RUN, "step": step})
    return metrics


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in (out / "metrics.jsonl").read_text().splitlines()]


# --- metrics.jsonl


def test_every_measurement_is_a_line(out: Path) -> None:
    metrics = begin(out)
    metrics.log({"loss": 0.5, "learning_rate": 1e-4}, 10)
    metrics.log({"step": 20, "validation_loss": 0.25}, 20)
    metrics.finish()
    assert lines(out) == [
        {"step": 10, "loss": 0.5, "learning_rate": 1e-4},
        {"step": 20, "validation_loss": 0.25},
    ]


def test_what_is_no_finite_number_is_null(out: Path) -> None:
    metrics = begin(out)
    metrics.log({"loss": float("nan"), "gradient_norm": float("inf"), "learning_rate": 1.0}, 1)
    assert lines(out) == [{"step": 1, "loss": None, "gradient_norm": None, "learning_rate": 1.0}]


def test_lines_of_updates_that_are_done_again_are_taken_out(out: Path) -> None:
    metrics = begin(out)
    for step in range(1, 6):
        metrics.log({"loss": float(step)}, step)
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # killed here
    metrics = begin(out, step=3)
    metrics.log({"loss": 40.0}, 4)
    assert [(line["step"], line["loss"]) for line in lines(out)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_a_run_that_begins_anew_begins_with_no_lines(out: Path) -> None:
    begin(out).log({"probe_loss": 2.0}, 0)
    begin(out).log({"probe_loss": 1.0}, 0)
    assert lines(out) == [{"step": 0, "probe_loss": 1.0}]


def test_other_processes_write_and_open_nothing(out: Path) -> None:
    other = types.SimpleNamespace(is_main_process=False)
    metrics = Metrics(PriorConfig(cache="cache", output_dir=str(out), report_to="tensorboard"), other, out)
    metrics.start(RUN)
    metrics.log({"loss": 1.0}, 1)
    metrics.pictures("validation", [Shown("a fox", Image.new("RGB", (4, 4)))], 1)
    metrics.finish()
    assert not out.exists()


def test_of_two_lines_of_one_update_readers_take_the_later(out: Path) -> None:
    metrics = begin(out)
    for value in (1.0, 2.0):
        metrics.log({"validation_loss": value}, 10)
    assert read_run(out).series["validation_loss"].finite == [(10, 2.0)]


# --- run.json


def test_the_record_says_what_was_asked_for_by_which_versions(out: Path) -> None:
    begin(out, learning_rate=0.25, validation_prompts=("a", "b"))
    record = json.loads((out / "run.json").read_text())
    assert record["stage"] == "prior"
    assert record["max_steps"] == 30
    assert record["options"]["learning_rate"] == 0.25
    assert record["options"]["validation_prompts"] == ["a", "b"]
    assert record["changed"] == ["cache", "output_dir", "learning_rate", "validation_prompts"]
    assert record["versions"]["kcache"] == __version__
    assert {"python", "torch", "diffusers"} <= record["versions"].keys()


def test_a_run_that_goes_on_keeps_its_id_and_lists_its_starts(out: Path) -> None:
    begin(out)
    first = json.loads((out / "run.json").read_text())
    begin(out, step=20)
    second = json.loads((out / "run.json").read_text())
    assert second["id"] == first["id"]
    assert [start["step"] for start in second["starts"]] == [0, 20]
    begin(out)
    assert json.loads((out / "run.json").read_text())["id"] != first["id"]


def test_a_record_that_is_damaged_is_named(out: Path) -> None:
    begin(out)
    (out / "run.json").write_text("{")
    with pytest.raises(KcacheError, match=r"run\.json is not a JSON object .*; remove it"):
        begin(out, step=1)


def test_a_cache_is_recorded_by_its_root_and_snapshot(tmp_path: Path) -> None:
    snapshot = Snapshot(make_cache(tmp_path / "cache"), ["image"])
    record = cache_record(snapshot, share=0.3)
    assert record["root"] == str(tmp_path / "cache")
    assert record["snapshot"] == snapshot.digest
    assert (record["samples"], record["share"], list(record["columns"])) == (10, 0.3, ["image"])


def test_the_token_is_written_nowhere(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["/bin/kcache", "train", "prior", "c", "--hub-token=hf_secret", "--hub-token", "hf_secret"]
    )
    metrics = begin(out, hub_token="hf_secret", report_to="tensorboard")
    metrics.finish()
    assert json.loads((out / "run.json").read_text())["starts"][0]["command"] == (
        "kcache train prior c '--hub-token=***' --hub-token '***'"
    )
    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(written) >= 3
    assert not [path for path in written if b"hf_secret" in path.read_bytes()]


def test_a_run_from_python_has_no_command() -> None:
    assert command_line(["/usr/bin/pytest", "-q"], None) is None
    assert command_line(["/a/kcache/__main__.py", "train", "two words"], None) == "kcache train 'two words'"


# --- which trackers


def test_trackers_are_named_one_by_one_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert log_with(None) == []
    assert log_with("tensorboard") == ["tensorboard"]
    assert log_with("wandb, tensorboard,wandb") == ["wandb", "tensorboard"]
    here = {"tensorboard", "comet_ml"}
    monkeypatch.setattr("kcache.training.trackers._is_installed", here.__contains__)
    assert log_with("all") == ["tensorboard", "comet_ml"]


def test_an_unknown_tracker_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"tensorbord is not known; choose .*Did you mean 'tensorboard'"):
        log_with("tensorbord")


@pytest.mark.parametrize(("name", "extra"), [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("comet_ml", "comet")])
def test_a_tracker_that_is_not_installed_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, name: str, extra: str
) -> None:
    monkeypatch.setattr("kcache.training.trackers._is_installed", lambda name: False)
    with pytest.raises(KcacheError, match=rf"{name} needs .* 'pip install kcache\[{extra}\]'"):
        log_with(name)
    with pytest.raises(KcacheError, match=r"all finds no tracker .*kcache\[tensorboard,wandb,comet\]"):
        log_with("all")


@pytest.mark.parametrize("name", ["wandb", "comet_ml"])
def test_a_token_is_refused_where_the_tracker_keeps_the_command_line(
    out: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kcache.training.trackers._is_installed", lambda name: True)
    config = PriorConfig(cache="c", output_dir=str(out), report_to=name, hub_token="hf_secret")
    with pytest.raises(UsageError, match=f"{name} would store --hub-token .*HF_TOKEN"):
        Metrics(config, None, out)


# --- the trackers themselves


def events(out: Path) -> Any:
    """What TensorBoard itself reads back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(out / "logs" / "text2image-fine-tune"))
    read.Reload()
    return read


def test_tensorboard_reads_back_numbers_and_pictures(out: Path) -> None:
    metrics = begin(out, report_to="tensorboard")
    metrics.log({"loss": 0.5, "note": None}, 10)
    metrics.log({"loss": 0.25}, 20)
    metrics.pictures("validation", [Shown("a red fox", Image.new("RGB", (8, 6), "red"))], 20)
    metrics.finish()
    read = events(out)
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(10, 0.5), (20, 0.25)]
    (picture,) = read.Images("validation/0 a red fox")
    assert (picture.step, picture.width, picture.height) == (20, 8, 6)


def test_tensorboard_has_the_options(out: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    begin(out, report_to="tensorboard", mix=(("b", 0.3),), snr_gamma=5.0).finish()
    (file,) = out.glob("logs/*/*/events*")
    read = EventAccumulator(str(file.parent))
    read.Reload()
    data = read.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"snr_gamma" in data
    assert b"b 0.3" in data
    assert b"hub_token" not in data


def test_tensorboard_forgets_updates_that_are_done_again(out: Path) -> None:
    metrics = begin(out, report_to="tensorboard")
    for step in (10, 20, 30):
        metrics.log({"loss": float(step)}, step)
    metrics.finish()
    second = int(time.time())
    while int(time.time()) == second:  # TensorBoard orders its files by the second
        time.sleep(0.05)
    metrics = begin(out, step=10, report_to="tensorboard")
    metrics.log({"loss": -20.0}, 20)
    metrics.finish()
    assert [(event.step, event.value) for event in events(out).Scalars("loss")] == [(10, 10.0), (20, -20.0)]


WANDB = """
import sys
from pathlib import Path
from PIL import Image
sys.path.insert(0, {tests!r})
from test_metrics import Shown, begin
metrics = begin(Path({out!r}), report_to="wandb", validation_prompts=("a", "b"))
metrics.log({{"loss": 0.5, "gradient_norm": float("inf")}}, 10)
metrics.pictures("validation", [Shown("a red fox", Image.new("RGB", (8, 6), "red"))], 10)
metrics.finish()
"""


def test_wandb_keeps_all_in_out_when_it_is_offline(out: Path, tmp_path: Path) -> None:
    here = tmp_path / "elsewhere"
    here.mkdir()
    code = WANDB.format(tests=str(Path(__file__).parent), out=str(out))
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), environment.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(here.iterdir())
    (folder,) = (out / "wandb").glob("offline-run-*")
    run_id = json.loads((out / "run.json").read_text())["id"]
    (log,) = folder.glob(f"run-{run_id}.wandb")
    data = log.read_bytes()
    assert b"gradient_norm" in data
    assert b"validation_prompts" in data
    assert b"a red fox" in data
    assert list(folder.glob("files/media/images/validation_10_*.png"))
    assert lines(out) == [{"step": 10, "loss": 0.5, "gradient_norm": None}]


class Experiment:
    """What accelerate and kcache use of a Comet experiment, noted."""

    def __init__(self, **options: Any) -> None:
        self.options, self.calls = options, list[tuple[Any, ...]]()

    def __getattr__(self, name: str) -> Any:
        return lambda *words, **options: self.calls.append((name, *words, *options.values()))


@pytest.fixture
def comet(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Experiment]]:
    """A stand-in for ``comet_ml``; the experiments that were started."""
    started: list[Experiment] = []
    module = types.ModuleType("comet_ml")

    def start(**options: Any) -> Experiment:
        started.append(Experiment(**options))
        return started[-1]

    vars(module).update(__version__="3.58.8", start=start, ExperimentConfig=dict)
    monkeypatch.setitem(sys.modules, "comet_ml", module)
    monkeypatch.setattr("kcache.training.trackers._is_installed", lambda name: True)
    from accelerate import tracking
    from accelerate.utils import LoggerType

    monkeypatch.setattr(tracking, "_available_trackers", [*tracking._available_trackers, LoggerType.COMETML])
    return started  # type: ignore[return-value]


def test_comet_is_given_numbers_options_and_pictures(out: Path, comet: list[Experiment]) -> None:
    metrics = begin(out, report_to="comet_ml")
    picture = Image.new("RGB", (8, 6))
    metrics.log({"loss": 0.5}, 10)
    metrics.pictures("validation", [Shown("a red fox", picture)], 10)
    metrics.finish()
    (experiment,) = comet
    assert experiment.options["experiment_key"] == json.loads((out / "run.json").read_text())["id"]
    assert experiment.options["experiment_config"] == {"name": "out", "offline_directory": str(out / "comet")}
    assert ("log_metric", "loss", 0.5, 10) in experiment.calls
    assert ("log_image", picture, "validation/0 a red fox", 10) in experiment.calls
    (parameters,) = (call[1] for call in experiment.calls if call[0] == "log_parameters")
    assert parameters["learning_rate"] == 1e-4
    assert "hub_token" not in parameters
    assert experiment.calls[-1] == ("end",)


# --- when a tracker fails


def failing(*_: Any, **__: Any) -> None:
    raise ConnectionError("no\nnetwork")


def test_a_tracker_that_does_not_start_is_named_before_training(
    out: Path, comet: list[Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["comet_ml"], "start", failing)
    config = PriorConfig(cache="cache", output_dir=str(out), report_to="tensorboard,comet_ml")
    out.mkdir()
    metrics = Metrics(config, accelerator(out, config.report_to), out)
    with pytest.raises(KcacheError, match=r"--report-to tensorboard,comet_ml does not start \(no network\); log in"):
        metrics.start(RUN)
    metrics.finish()


def test_a_tracker_that_fails_later_is_left_out_and_training_goes_on(
    out: Path, comet: list[Experiment], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = begin(out, report_to="comet_ml,tensorboard")
    monkeypatch.setattr(Experiment, "log_metric", failing, raising=False)
    for step in (10, 20):
        metrics.log({"loss": 0.5}, step)
    metrics.finish()
    assert caplog.text.count("comet_ml takes no numbers any more (no network)") == 1
    assert [event.step for event in events(out).Scalars("loss")] == [10, 20]
    assert [line["step"] for line in lines(out)] == [10, 20]


def test_finish_may_be_called_before_start_and_twice(out: Path) -> None:
    config = PriorConfig(cache="cache", output_dir=str(out))
    Metrics(config, accelerator(out), out).finish()
    metrics = begin(out, report_to="tensorboard")
    metrics.finish()
    metrics.finish()


def test_every_tracker_has_an_extra() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    for name, tracker in TRACKERS.items():
        assert extras[tracker.extra][0].startswith(name), tracker.extra
