"""Encodes in forked children, each killed with SIGKILL at a chosen step; test_kill.py runs it as a program of its own.

This process has encoded once, on one thread, before it forks: a kill costs half a second and not a start of Python.
Usage: ``python killed.py JOBS.json``. Each job gets a folder beside that file; the answers are JSON on stdout.
"""

import hashlib
import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from kcache.shards import Cache, ColumnReader, Snapshot, durable, verify

COLUMNS = ["text", "image", "latents-32"]


def start(work: Callable[[], Any]) -> int:
    """A child that does ``work`` and exits with 0, or with 1 and a traceback."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def wait(pid: int) -> int:
    """The exit code of a child, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def encode(job: dict[str, Any], cache: Path) -> None:
    """One encode, as the command line would do it."""
    from kcache.encoding.config import EncodeConfig
    from kcache.encoding.encode import encode

    options = {"resolution": (32,), "shard_size": 4, "batch_size": 3, "device": "cpu", "workers": 2}
    encode(EncodeConfig(cache=str(cache), **{**options, **job["options"]}))


def encode_and_note_steps(job: dict[str, Any], cache: Path, notes: Path) -> None:
    """One encode that leaves the name of every step it took."""
    taken: list[str] = []
    durable.failpoint = taken.append
    encode(job, cache)
    notes.write_text(json.dumps(taken))


def encode_and_die(job: dict[str, Any], cache: Path, step: int) -> None:
    """One encode that is killed before its step number ``step``, if it comes to it."""
    count = itertools.count()

    def die(name: str) -> None:
        if next(count) == step:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # the signal ends all threads, though perhaps not at once

    durable.failpoint = die
    encode(job, cache)


def kill_at_many_steps(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """For each chosen step: an encode killed there, what `verify` says of it, and the exit code of one more run."""
    notes = folder / "steps.json"
    codes = [wait(start(lambda: encode_and_note_steps(job, folder / "counted", notes)))]
    steps = json.loads(notes.read_text())
    chosen = {steps.index(name) for name in steps} | set(range(0, len(steps), max(1, len(steps) // job["kills"])))
    kills = []
    for step in sorted({*chosen, len(steps) - 1}):
        cache = folder / f"killed-{step:04}"
        code = wait(start(lambda cache=cache, step=step: encode_and_die(job, cache, step)))
        left = sum(".tmp-" in path.name for path in cache.rglob("*"))
        kills.append({"step": step, "name": steps[step], "code": code, "left": left, "faults": faults(cache)})
        kills[-1]["again"] = wait(start(lambda cache=cache: encode(job, cache)))
    return {"codes": codes, "steps": steps, "kills": kills}


def kill_again_and_again(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One cache, encoded by processes that each die after a few steps more, until one comes to its end."""
    cache = folder / "killed"
    for attempt in range(200):
        code = wait(start(lambda attempt=attempt: encode_and_die(job, cache, 20 + 6 * attempt)))
        if code == 0:
            return {"codes": [code], "attempts": attempt, "faults": faults(cache)}
        assert code == -signal.SIGKILL, code
    raise AssertionError("the encode makes no progress")


def race(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Rounds in which several processes encode into one cache at the same time, at uneven speeds."""
    codes = []
    for number in range(job["rounds"]):
        begin = time.monotonic() + 0.2

        def run(seed: int, begin: float = begin, number: int = number) -> None:
            columns = job.get("columns", [()] * job["processes"])[seed % job["processes"]]
            rng = random.Random(seed)
            durable.failpoint = lambda name: time.sleep(rng.random() * 0.004)
            time.sleep(max(0.0, begin - time.monotonic()))
            encode({"options": {**job["options"], "columns": tuple(columns)}}, folder / f"raced-{number}")

        pids = [
            start(lambda seed=seed: run(seed))
            for seed in range(job["processes"] * number, job["processes"] * (number + 1))
        ]
        codes += [wait(pid) for pid in pids]
    return {"codes": codes}


def read_meanwhile(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A process that reads all of one snapshot again and again while another encodes a change, and prunes."""
    cache, told = folder / "cache", folder / "told.json"
    encode(job, cache)
    before = Snapshot(Cache(cache), COLUMNS).digest
    reading = start(lambda: read_until(cache, folder / "pinned", folder / "encoded", told))
    while not (folder / "pinned").exists():
        time.sleep(0.01)
    changed = {**job["options"], "dataset": job["changed"], "prune": True}
    codes = [wait(start(lambda: encode({"options": changed}, cache)))]
    (folder / "encoded").touch()
    codes.append(wait(reading))
    return {"codes": codes, "changed": Snapshot(Cache(cache), COLUMNS).digest != before, **json.loads(told.read_text())}


def read_until(cache: Path, pinned: Path, end: Path, told: Path) -> None:
    """Pin a snapshot, say so, and read all of it until ``end`` is there, and once more."""
    snapshot, digests, passes = Snapshot(Cache(cache), COLUMNS), set(), 0
    pinned.touch()
    while True:
        last = end.exists()
        digest = hashlib.sha256()
        for name in COLUMNS:
            reader = ColumnReader(snapshot, name)
            for position, field in itertools.product(range(len(snapshot)), reader.column.fields):
                digest.update(reader.read(position, field.name).tobytes())
            reader.close()
        digests.add(digest.hexdigest())
        passes += 1
        if last:
            told.write_text(json.dumps({"passes": passes, "digests": sorted(digests)}))
            return


def faults(cache: Path) -> list[str]:
    """What a deep look at a cache finds wrong with it; nothing where there is no cache yet."""
    if not (cache / "kcache.json").exists():
        return []
    return [f"{fault.path}: {fault.problem}" for fault in verify(Cache(cache), deep=True).faults]


def main() -> None:
    """Do the jobs in the file that was named."""
    folder, answers = Path(sys.argv[1]).parent, {}
    torch.set_num_threads(1)  # a thread pool would not survive the fork
    tqdm.monitor_interval = 0
    kinds = {
        "many": kill_at_many_steps,
        "again": kill_again_and_again,
        "race": race,
        "columns": race,
        "reading": read_meanwhile,
    }
    for kind, job in json.loads(Path(sys.argv[1]).read_text()).items():
        (folder / kind).mkdir()
        encode(job, folder / kind / "undisturbed")
        answers[kind] = kinds[kind](job, folder / kind)
    print(json.dumps(answers))  # noqa: T201  (the answer)


if __name__ == "__main__":
    main()
