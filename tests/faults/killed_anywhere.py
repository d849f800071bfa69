"""Encodes in forked children, each killed with SIGKILL at one of its calls or at a random moment; run as a program.

Usage: ``python killed_anywhere.py JOBS.json``, by test_kill_anywhere.py; one JSON line on stdout tells of each kill.
Each child is a process of its own with the models already loaded; what it left is looked at and completed in this one.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import start, wait
from tqdm import tqdm

sys.path.append(str(Path(__file__).parent.parent))  # what all tests share

from disk import Call, Disk
from scenes import Scene, keep_models, problems_of, some

Told = dict[str, Any]


def count_calls(scene: Scene, folder: Path) -> list[Call]:
    """The calls of an undisturbed encode."""
    calls: list[Call] = []
    cache = scene.begin(folder)
    with pytest.MonkeyPatch.context() as patch:
        Disk(folder, lambda number, call: calls.append(call)).mount(patch)
        scene.encode(cache)
    return calls


def encode_and_die(scene: Scene, cache: Path, number: int, torn: bool) -> None:
    """One encode that is killed before its call ``number``; where ``torn``, one call later and with half of a write."""

    def act(now: int, call: Call) -> int | None:
        if now == number + torn:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # the signal ends all threads, though perhaps not at once
        return len(call.data) // 2 if torn and now == number else None

    Disk(cache.parent, act).mount(pytest.MonkeyPatch())
    scene.encode(cache)


def kill_at_calls(scene: Scene, folder: Path, number: int) -> Iterator[Told]:
    """Kills before ``number`` of the calls, and in the middle of as many writes as that is of all."""
    calls = count_calls(scene, folder / "counted")
    writes = [n for n, call in enumerate(calls) if call.kind == "write"]
    moments = [(n, False) for n in some(range(len(calls)), number, full=False)]
    moments += [(n, True) for n in some(writes, max(2, len(writes) * number // len(calls)), full=False)]
    for n, torn in moments:
        cache = scene.begin(folder / f"{n}-{torn}")
        code = wait(start(lambda cache=cache, n=n, torn=torn: encode_and_die(scene, cache, n, torn)))
        where = f"{'half of ' if torn else ''}{calls[n].kind} {calls[n].path}"
        yield {"where": where, "code": code, "problems": problems_of(scene, cache)}
        shutil.rmtree(cache.parent)


def kill_at_random(scene: Scene, folder: Path, number: int, seed: int) -> Iterator[Told]:
    """Kills from outside, at moments up to a little more than the time that an encode takes."""
    rng, began = random.Random(seed), time.monotonic()
    assert wait(start(lambda: scene.encode(scene.begin(folder / "timed")))) == 0
    seconds = 1.1 * (time.monotonic() - began)
    for n in range(number):
        cache = scene.begin(folder / f"random-{n}")
        pid = start(lambda cache=cache: scene.encode(cache))
        time.sleep(rng.random() * seconds)
        os.kill(pid, signal.SIGKILL)
        yield {"where": "a random moment", "code": wait(pid), "problems": problems_of(scene, cache)}
        shutil.rmtree(cache.parent)


def main() -> None:
    """Do the jobs in the file that was named."""
    path = Path(sys.argv[1])
    torch.set_num_threads(1)  # a thread pool would not survive the fork
    tqdm.monitor_interval = 0
    keep_models(pytest.MonkeyPatch())
    os.fsync = lambda descriptor: None  # a killed process leaves what it wrote to the system, flushed or not
    for number, job in enumerate(json.loads(path.read_text())):
        scene, folder = Scene(**job["scene"]), path.parent / str(number)
        for kill in [
            *kill_at_calls(scene, folder, job["calls"]),
            *kill_at_random(scene, folder, job["random"], number),
        ]:
            print(json.dumps({"scene": scene.name, **kill}))  # noqa: T201  (the answer)


if __name__ == "__main__":
    main()
