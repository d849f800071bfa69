"""A signal to one of several processes, or to their launcher, lets all of them finish the same update and save."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from launched import ROOT, TORCHRUN, environ

from kcache.shards import Cache
from kcache.training.checkpointing import checkpoints
from kcache.training.stopping import StopTogether, finish_step_on_signal

FOREVER = 100_000
OPTIONS = ["--seed=3", "--train-batch-size=2", "--optimizer=sgd", "--learning-rate=0.01", "--probe-samples=0"]


@pytest.fixture(scope="module")
def cache(encoded: Callable[..., Cache]) -> Cache:
    return encoded()


@pytest.fixture
def launched(cache: Cache, tiny_prior: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A training that would not end by itself, in two processes that torchrun started in a group of its own."""
    more = [f"--max-train-steps={FOREVER}", f"--checkpointing-steps={FOREVER}", f"--logging-steps={FOREVER}"]
    line = ["-m", "kcache", "train", "prior", str(cache.root), f"--output-dir={tmp_path / 'out'}", *OPTIONS, *more]
    process = subprocess.Popen(
        [*TORCHRUN, *line, f"--pretrained-prior-model-name-or-path={tiny_prior}", "--validation-split=0.3"],
        cwd=ROOT,
        env=environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: (tmp_path / "out" / "best").is_dir(), process)  # the validation before the first update
    time.sleep(1)
    yield process
    process.kill()
    process.wait()


def wait_for(seen: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    for _ in range(12_000):
        if process.poll() is not None:
            pytest.fail(f"the run ended by itself: {process.communicate()}")
        if seen():
            return
        time.sleep(0.01)
    process.kill()
    pytest.fail("nothing within two minutes")


def worker(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    """One of the processes that a launcher started."""
    (found,) = [p for p in psutil.Process(launcher.pid).children() if p.environ().get("RANK") == str(rank)]
    return found


def to_the_main_process(launcher: subprocess.Popen[str]) -> None:
    worker(launcher, 0).send_signal(signal.SIGTERM)


def to_another_process(launcher: subprocess.Popen[str]) -> None:
    worker(launcher, 1).send_signal(signal.SIGTERM)


def to_the_launcher(launcher: subprocess.Popen[str]) -> None:
    launcher.send_signal(signal.SIGTERM)


def from_the_keyboard(launcher: subprocess.Popen[str]) -> None:
    """Ctrl-C goes to all processes of the launcher's group."""
    os.killpg(launcher.pid, signal.SIGINT)


def to_everything_at_once(launcher: subprocess.Popen[str]) -> None:
    """As SLURM does; the launcher then passes its own on, so that the others get two."""
    for process in [worker(launcher, 0), worker(launcher, 1), launcher]:
        process.send_signal(signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(
    "send",
    [
        pytest.param(to_the_main_process, marks=pytest.mark.torture),
        to_another_process,
        pytest.param(to_the_launcher, marks=pytest.mark.torture),
        pytest.param(from_the_keyboard, marks=pytest.mark.torture),
        to_everything_at_once,
    ],
)
def test_all_processes_finish_the_same_update_and_leave_a_checkpoint(
    launched: subprocess.Popen[str], tmp_path: Path, send: Callable[[subprocess.Popen[str]], None]
) -> None:
    send(launched)
    stdout, stderr = launched.communicate(timeout=120)
    (stopped,) = checkpoints(tmp_path / "out")
    step = int(stopped.name.removeprefix("checkpoint-"))
    assert 0 < step < FOREVER, stderr
    assert f"Stopped after update {step:,} of {FOREVER:,}; all of it is in {stopped}" in stdout
    assert "--resume-from-checkpoint latest" in stdout
    assert "a second signal would abandon both" in stderr
    if send in (to_the_main_process, to_another_process):
        assert "exitcode  : 130" in stderr  # what torchrun says of the main process
    assert launched.returncode != 0
    assert not (tmp_path / "out" / "prior").exists()


def test_a_second_signal_within_seconds_of_the_first_is_the_same_where_a_launcher_passes_it_on() -> None:
    with finish_step_on_signal(echo=60.0) as asked:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert asked()


@pytest.mark.parametrize(
    ("seconds", "updates", "expected"), [(5.0, 4, [1, 2, 3, 4]), (0.5, 9, [1, 5, 9]), (0.0, 150, [1, 101])]
)
def test_processes_ask_each_other_more_often_where_updates_are_slow(
    monkeypatch: pytest.MonkeyPatch, seconds: float, updates: int, expected: list[int]
) -> None:
    now, asked, step = [0.0], list[int](), 0

    def nobody() -> bool:
        asked.append(step)
        return False

    two = SimpleNamespace(num_processes=2, device="cpu", reduce=lambda mine, how: 2 * mine)
    monkeypatch.setattr("kcache.training.stopping.time", SimpleNamespace(perf_counter=lambda: now[0]))
    stop = StopTogether(two, nobody, 0)
    for step in range(1, updates + 1):
        now[0] += seconds
        assert not stop(step)
    assert asked == expected
