"""Measures how quickly kcache and its peers read shuffled batches of 64 samples, and how far each is from memcpy.

    pip install --no-deps -r benchmarks/requirements.txt
    python benchmarks/loader.py

``--no-deps``, since what mosaicml-streaming and litdata ask for would replace torch and numpy; the file lists all that
they need here. Made-up samples are written in each one's own format, a stage at a time and below 2 GB, and removed.

All sides take turns, round after round, each turn in a new process that is forked from this one; what is printed is
the median of the rounds, and how far from it they were at most. ``warm``: one process, files in the page cache.
``cold``: their pages are dropped before, and opening counts. ``eight``: eight processes at once, warm, samples of all
together. A side that is not installed is left out, and named.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from loader_sides import BATCH, KCACHE, PEERS, SIDES, Epoch, Memcpy, make_samples
from machine import describe

COUNTS = {"prior": 2048, "decoder-fp16": 1024, "decoder-fp32": 512}
MODES = {"warm": 1, "cold": 1, "eight": 8}
"""How many processes read at once."""
SECONDS = 0.5
"""How long one turn reads at least, but for a cold one, which reads everything once."""
FORK = multiprocessing.get_context("fork")


def run_epoch(epoch: Epoch, seed: int) -> int:
    """Read everything once; returns the number of samples."""
    return sum(len(next(iter(batch.values()))) if "bytes" not in batch else BATCH for batch in epoch(seed))


def read_for(open_side: Callable[[], Epoch], *, cold: bool, start: Any) -> tuple[int, float]:
    """Samples read and the seconds that it took."""
    torch.set_num_threads(1)
    if cold:
        began = time.perf_counter()
        return run_epoch(open_side(), 1), time.perf_counter() - began
    epoch, samples, seed = open_side(), 0, 1
    run_epoch(epoch, 0)
    start.wait()
    began = time.perf_counter()
    while (seconds := time.perf_counter() - began) < SECONDS:
        samples, seed = samples + run_epoch(epoch, seed), seed + 1
    return samples, seconds


def in_child(answer: Connection, side: Any, folder: Path, cold: bool, start: Any) -> None:
    """What a forked process does: it answers with samples and seconds, and ends without a word from any library."""
    try:
        answer.send(read_for(lambda: side.open(folder), cold=cold, start=start))
    except BaseException as error:
        answer.send(repr(error))
    finally:
        os._exit(0)


def turn(side: Any, folder: Path, mode: str) -> float:
    """Samples in a second, of all processes together."""
    if mode == "cold":
        drop_pages(folder)
    start, answers, children = FORK.Barrier(MODES[mode]), [], []
    for number in range(MODES[mode]):
        own = folder.parent / f"{folder.name}-{number}"  # streaming wants a folder for each process
        if not own.is_symlink():
            own.symlink_to(folder)
        receive, send = FORK.Pipe(duplex=False)
        children.append(FORK.Process(target=in_child, args=(send, side, own, mode == "cold", start)))
        answers.append(receive)
        children[-1].start()
    found = [answer.recv() for answer in answers]
    for child in children:
        child.join()
    if failed := [one for one in found if isinstance(one, str)]:
        raise SystemExit(f"{side.name} cannot be read: {failed[0]}")
    return sum(samples / seconds for samples, seconds in found)


def drop_pages(folder: Path) -> None:
    """Let the kernel forget the files below ``folder``, once they are on the disk."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def write(stage: str, root: Path) -> list[Any]:
    """Write the samples for every side; returns the sides that are installed."""
    samples, sides = make_samples(stage, COUNTS[stage]), []
    for side in SIDES:
        try:
            if not (root / side.folder).exists():
                side.write(root / side.folder, samples)
            sides.append(side)
        except ImportError as error:
            print(f"{side.name} is left out: {error}")
    return sides


def check(sides: list[Any], root: Path) -> None:
    """Every side must give the same samples: the sum of all values of each field tells."""
    sums = {}
    for side in sides:
        if isinstance(side, Memcpy):
            continue
        receive, send = FORK.Pipe(duplex=False)
        FORK.Process(target=sum_in_child, args=(send, side, root / side.folder)).start()
        sums[side.name] = receive.recv()
    if len(set(sums.values())) != 1:
        raise SystemExit(f"the sides read different samples: {sums}")


def sum_in_child(answer: Connection, side: Any, folder: Path) -> None:
    """Answer with the sums of whole numbers made of all bits of each field: exact in any order."""
    totals: dict[str, int] = {}
    try:
        for batch in side.open(folder)(0):
            for name in set(batch) - {"noise", "timesteps"}:
                bits = batch[name].contiguous()
                kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[bits.element_size()]
                totals[name] = totals.get(name, 0) + int(bits.view(kind).sum(dtype=torch.int64))
        answer.send(str(sorted(totals.items())))
    except BaseException as error:
        answer.send(repr(error))
    finally:
        os._exit(0)


def measure(stage: str, modes: list[str], rounds: int) -> dict[str, Any]:
    """Rates by mode and side, of every round."""
    rates: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="kcache-loader-") as folder:
        root = Path(folder)
        sides = write(stage, root)
        check(sides, root)
        for mode in modes:
            taking_part = [side for side in sides if mode != "cold" or not isinstance(side, Memcpy)]
            rates[mode] = {side.name: [] for side in taking_part}
            for _ in range(rounds):
                for side in taking_part:
                    rates[mode][side.name].append(turn(side, root / side.folder, mode))
            show(stage, mode, rates[mode])
    return rates


def show(stage: str, mode: str, rates: dict[str, list[float]]) -> None:
    """A row for each side: samples in a second, the spread, and the ratio to the fastest peer of the same round."""
    peers = [side.name for side in PEERS if side.name in rates]
    fastest = max(peers, key=lambda name: statistics.median(rates[name])) if peers else KCACHE[0].name
    print(f"\n{stage}, {mode} (ratios to {fastest}, round by round)")
    for name, found in sorted(rates.items(), key=lambda item: -statistics.median(item[1])):
        ratios = [one / other for one, other in zip(found, rates[fastest], strict=True)]
        median, spread = statistics.median(found), max(abs(one / statistics.median(found) - 1) for one in found)
        print(
            f"{name:32} {median:10,.0f} samples/s  +-{spread:4.0%}"
            f"  {statistics.median(ratios):6.2f}x ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def main() -> None:
    """Write, check, measure and print; with ``--json`` also every single figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=COUNTS, default=list(COUNTS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write machine, versions and every figure to this file")
    options = parser.parse_args()
    machine = describe("webdataset", "datasets", "h5py", "mosaicml-streaming", "litdata")
    print(json.dumps(machine, indent=1))
    rates = {stage: measure(stage, options.modes, options.rounds) for stage in options.stages}
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "samples_per_second": rates}, indent=1) + "\n")


if __name__ == "__main__":
    main()
