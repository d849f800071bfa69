"""Measures how quickly kcache and its peers read shuffled batches of 64 samples, and how far each is from memcpy.

    pip install --no-deps -r benchmarks/requirements.txt
    python benchmarks/loader.py

``--no-deps``, since what mosaicml-streaming and litdata ask for would replace torch and numpy; the file lists all that
they need here. Made-up samples are written in each one's own format, a stage at a time and below 2 GB, and removed.

All sides take turns, round after round, each turn in a new process that is forked from this one; what is printed is
the median of the rounds, and how far they lay apart. Rates are of the clock and of processor time: on a machine that
others use too the second tells more, but for cold reads, which wait. ``warm``: one process, files in the page cache.
``cold``: their pages are dropped before, and opening counts. ``eight``: eight processes at once, warm, samples of all
together. A side that is not installed is left out, and named.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from loader_sides import BATCH, KCACHE, PEERS, SIDES, Batch, Epoch, Memcpy, make_samples
from machine import add_json_option, describe, keep

COUNTS = {"prior": 2048, "decoder-fp16": 1024, "decoder-fp32": 512}
MODES = {"warm": 1, "cold": 1, "eight": 8}
"""How many processes read at once."""
SECONDS = 0.4
"""Processor time of one turn, but for a cold one, which reads everything once."""
FORK = multiprocessing.get_context("fork")


class Turn(NamedTuple):
    """What one process read in one turn, and the seconds that it took, of the clock and of the processor."""

    samples: int
    seconds: float
    processor: float


def size(batch: Batch) -> int:
    """Samples in a batch."""
    return BATCH if "bytes" in batch else len(next(iter(batch.values())))


def endless(epoch: Epoch) -> Iterator[Batch]:
    """Epoch after epoch, each in another order."""
    for seed in itertools.count(1):
        yield from epoch(seed)


def read_for(batches: Iterator[Batch], seconds: float) -> Turn:
    """Read for so many seconds of processor time."""
    began, used, samples = time.perf_counter(), time.process_time(), 0
    while (passed := time.process_time() - used) < seconds:
        samples += size(next(batches))
    return Turn(samples, time.perf_counter() - began, passed)


def read_side(open_side: Callable[[], Epoch], *, cold: bool, start: Any) -> Turn:
    """One turn of one process."""
    torch.set_num_threads(1)
    if cold:
        began, used = time.perf_counter(), time.process_time()
        samples = sum(map(size, open_side()(1)))
        return Turn(samples, time.perf_counter() - began, time.process_time() - used)
    batches = endless(open_side())
    read_for(batches, SECONDS / 4)
    start.wait()
    return read_for(batches, SECONDS)


def in_child(answer: Connection, side: Any, folder: Path, cold: bool, start: Any) -> None:
    """What a forked process does: it answers with samples and seconds, and ends without a word from any library."""
    try:
        answer.send(read_side(lambda: side.open(folder), cold=cold, start=start))
    except BaseException as error:
        answer.send(repr(error))
    finally:
        os._exit(0)


def turn(side: Any, folder: Path, mode: str) -> dict[str, float]:
    """Samples in a second of the clock, of all processes together, and in one of processor time."""
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
    samples, used = (sum(getattr(one, name) for one in found) for name in ("samples", "processor"))
    return {"clock": sum(one.samples / one.seconds for one in found), "processor": samples / used}


def drop_pages(folder: Path) -> None:
    """Let the kernel forget the files below ``folder``, once they are on the disk."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def write(stage: str, root: Path, wanted: list[str]) -> list[Any]:
    """Write the samples for every side that is wanted; returns those that are installed."""
    samples, sides = make_samples(stage, COUNTS[stage]), []
    for side in (side for side in SIDES if not wanted or any(name in side.name for name in wanted)):
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


def measure(stage: str, modes: list[str], rounds: int, wanted: list[str]) -> dict[str, Any]:
    """Rates by mode and side, of every round."""
    rates: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="kcache-loader-") as folder:
        root = Path(folder)
        sides = write(stage, root, wanted)
        check(sides, root)
        for mode in modes:
            taking_part = [side for side in sides if mode != "cold" or not isinstance(side, Memcpy)]
            rates[mode] = {side.name: [] for side in taking_part}
            for _ in range(rounds):
                for side in taking_part:
                    rates[mode][side.name].append(turn(side, root / side.folder, mode))
            show(stage, mode, rates[mode])
    return rates


def show(stage: str, mode: str, rates: dict[str, list[dict[str, float]]]) -> None:
    """A row for each side: samples in a second, and the ratio to the fastest peer, round by round."""
    peers = [side.name for side in PEERS if side.name in rates] or [KCACHE[0].name]
    for clock in ("clock", "processor"):
        found = {name: [one[clock] for one in turns] for name, turns in rates.items()}
        medians = {name: statistics.median(values) for name, values in found.items()}
        fastest = max(peers, key=lambda name: medians[name])
        print(f"\n{stage}, {mode}: samples in a second of the {clock}, and the ratio to {fastest}")
        for name, values in sorted(found.items(), key=lambda item: -medians[item[0]]):
            ratios = [one / other for one, other in zip(values, found[fastest], strict=True)]
            spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"{name:32} {medians[name]:10,.0f}  {statistics.median(ratios):7.2f}x {spread}", flush=True)


def main() -> None:
    """Write, check, measure and print; with ``--json`` also every single figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=COUNTS, default=list(COUNTS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--sides", nargs="+", default=[], help="parts of names, such as '.tar' and litdata; else all")
    parser.add_argument("--rounds", type=int, default=5)
    add_json_option(parser)
    options = parser.parse_args()
    machine = describe("webdataset", "datasets", "h5py", "mosaicml-streaming", "litdata")
    print(json.dumps(machine, indent=1))
    rates = {stage: measure(stage, options.modes, options.rounds, options.sides) for stage in options.stages}
    keep(options, machine, rates)


if __name__ == "__main__":
    main()
