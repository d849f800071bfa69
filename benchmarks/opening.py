"""Measures how long a cache of many made-up rows takes to open, and how much memory that takes.

    python benchmarks/opening.py --rows 10000000

Only what opening reads is made: names and sizes of plan and commits, and the derived index of a text and an image
column; shards and captions are not there. Each time a new process opens both columns and their readers, looks up a
batch, and tells the seconds and by how much its memory grew; then what a training does that draws an order, chooses
all samples, or holds out a hundredth by the hashes of their ids (made up; reading them is not in it). The plain work
that no opening can do without is timed beside it, in turns: asking for names and sizes, and reading the entries once.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
from machine import add_json_option, describe, keep

from kcache.shards import Cache, Column, ColumnReader, Field, Snapshot, layout, permutation, snapshot
from kcache.shards.index import ENTRY
from kcache.shards.pinned import FILE, EntriesInMemory, PinnedColumn
from kcache.training.config import PriorConfig
from kcache.training.mixture import Mixture

COLUMNS = {
    "text": ("captions", [("text_embeds", (None, 1280)), ("hidden_states", (None, 1280)), ("lengths", (None,))]),
    "image": ("image", [("image_embeds", (1280,))]),
}
SPAWN = multiprocessing.get_context("spawn")


def make_cache(root: Path, rows: int, shard_size: int) -> None:
    """Names of ``rows`` samples in shards, and a derived index that says where their features would be."""
    cache = Cache.create(root, shard_size=shard_size, container="tar")
    shards = -(-rows // shard_size)
    (root / layout.PLAN).mkdir()
    for shard in range(shards):
        (root / layout.plan(shard)).touch()
    for name, (reads, fields) in COLUMNS.items():
        typed = tuple(Field(field, "int32" if field == "lengths" else "float16", shape) for field, shape in fields)
        cache.add_column(Column(name, reads, typed, {}, {}, "fp16"), None)
    for name in (layout.SAMPLES, *COLUMNS):
        (root / layout.commits(name)).mkdir(parents=True)
        for shard in range(shards):
            (root / layout.commit(name, shard, 1)).touch()
    with mock.patch.object(snapshot, "_gather", lambda cache, column, *_: made_up(cache, column, rows)):
        Snapshot(cache, list(COLUMNS))


def made_up(cache: Cache, column: Column, rows: int) -> PinnedColumn:
    """A column of random digests and checksums, one row in a thousand of which was set aside."""
    random = np.random.default_rng(0)
    table = np.zeros(-(-rows // cache.shard_size), FILE)
    table["shard"], table["generation"], table["bytes"] = np.arange(len(table)), 1, 2**40
    table["rows"] = np.diff([*range(0, rows, cache.shard_size), rows])
    table["sha256"] = np.frombuffer(random.bytes(32 * len(table)), "V32")
    entries = np.zeros((rows, len(column.fields)), ENTRY)
    entries["offset"] = 512 + np.arange(rows)[:, None] * 50_000
    entries["nbytes"] = 2560
    entries["crc32"] = random.integers(0, 2**32, entries.shape, np.uint32)
    absent = np.arange(0, rows, 1000)
    entries[absent] = 0
    return PinnedColumn(column, cache.container, table, EntriesInMemory(entries), absent)


def open_in_child(answer: Connection, root: Path) -> None:
    """Answer with seconds and bytes of opening, and of the order of an epoch, which training needs beside it."""
    cache = Cache(root)
    Path("/proc/self/clear_refs").write_text("5")  # Linux then counts the most memory from here
    before, began, used = psutil.Process().memory_info().rss, time.perf_counter(), time.process_time()
    pinned = Snapshot(cache, list(COLUMNS))
    readers = [ColumnReader(pinned, name) for name in COLUMNS]
    batch = np.random.default_rng(0).integers(0, len(pinned), 64)
    assert all(reader.rows(batch).nbytes(reader.column.fields[0].name).all() for reader in readers)
    opened, processor, after = time.perf_counter(), time.process_time(), peak()
    permutation(0, 0, len(pinned))
    ordered = time.process_time()
    told = {
        "seconds": opened - began,
        "processor": processor - used,
        "megabytes": (after - before) / 1e6,
        "order, processor": ordered - processor,
    }
    answer.send({**told, **choose(pinned, 0.0, "all"), **choose(pinned, 0.01, "held out")})


def choose(pinned: Snapshot, share: float, name: str) -> dict[str, float]:
    """Processor time and memory of choosing the samples of a training that holds out a share, and of naming them."""
    config = PriorConfig(cache="", output_dir="", validation_split=share)
    Path("/proc/self/clear_refs").write_text("5")
    before, used = psutil.Process().memory_info().rss, time.process_time()
    with mock.patch.object(Cache, "planned_ids", ids_of):
        assert Mixture(config, [pinned], 0).digest
    taken = time.process_time() - used
    return {f"{name} chosen, processor": taken, f"{name} chosen, megabytes": (peak() - before) / 1e6}


def ids_of(cache: Cache, shard: int) -> list[str]:
    """Made-up ids of the samples of a shard."""
    return [f"picture-{shard:06}-{row:06}.png" for row in range(cache.shard_size)]


def peak() -> int:
    """The most memory that this process has had at once, in bytes."""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def bare(root: Path) -> float:
    """Processor time of what there is to do in any case: ask for names and sizes of commits, and read the index."""
    began = time.process_time()
    os.listdir(root / layout.PLAN)
    for name in (layout.SAMPLES, *COLUMNS):
        with os.scandir(root / layout.commits(name)) as entries:
            sizes = [entry.stat(follow_symlinks=False).st_size for entry in entries if name != layout.SAMPLES]
            assert not any(sizes)
    buffer = bytearray(4 * 2**20)
    for name in COLUMNS:
        with open(root / layout.derived(f"{name}.idx"), "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.process_time() - began


def measure(rows: int, shard_size: int, rounds: int) -> dict[str, Any]:
    """Every figure of every round."""
    with tempfile.TemporaryDirectory(prefix="kcache-opening-") as folder:
        root = Path(folder) / "cache"
        make_cache(root, rows, shard_size)
        found: list[dict[str, float]] = []
        for _ in range(rounds):
            receive, send = SPAWN.Pipe(duplex=False)
            child = SPAWN.Process(target=open_in_child, args=(send, root))
            child.start()
            found.append({**receive.recv(), "bare, processor": bare(root)})
            child.join()
    return {name: [one[name] for one in found] for name in found[0]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--shard-sizes", type=int, nargs="+", default=[256, 10_000])
    parser.add_argument("--rounds", type=int, default=5)
    add_json_option(parser)
    options = parser.parse_args()
    machine, measured = describe(), {}
    print(json.dumps(machine, indent=1))
    for shard_size in options.shard_sizes:
        found = measured[shard_size] = measure(options.rows, shard_size, options.rounds)
        ratios = [one / bare for one, bare in zip(found["processor"], found["bare, processor"], strict=True)]
        print(f"\n{options.rows:,} rows, {shard_size:,} in a shard")
        for name, values in {**found, "processor / bare": ratios}.items():
            print(f"{name:28} {statistics.median(values):8.2f}  ({min(values):.2f} to {max(values):.2f})", flush=True)
    keep(options, machine, measured)


if __name__ == "__main__":
    main()
