"""`kcache verify`: are the bytes of a cache those that were committed?"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kcache.cli.options import WholeNumber
from kcache.cli.say import say
from kcache.cli.sizes import count, size

if TYPE_CHECKING:
    from kcache.encoding.repair import Filled
    from kcache.shards import Cache, Verification
    from kcache.shards.salvage import Salvage


@click.command()
@click.argument("cache")
@click.option(
    "--deep", is_flag=True, help="Read every byte: sha256 of every shard, crc32 of the samples in damaged ones."
)
@click.option("--repair", is_flag=True, help="Read every byte, and bring back what is damaged.")
@click.option(
    "--dataset", metavar="DATASET", help="What CACHE was encoded from: for --repair to encode lost rows again."
)
@click.option("--pretrained-prior-model-name-or-path", metavar="NAME", help="For --repair.  [default: as CACHE has it]")
@click.option(
    "--pretrained-decoder-model-name-or-path", metavar="NAME", help="For --repair.  [default: as CACHE has it]"
)
@click.option("--device", metavar="NAME", help="For --repair.  [default: the first GPU, else the CPU]")
@click.option("--batch-size", type=WholeNumber(min=1), help="For --repair.  [default: by the device]")
def verify(cache: str, deep: bool, repair: bool, **encoding: str | int | None) -> int:
    """Check CACHE: every record's checksum, every file's size and index; with --deep every byte.

    With --repair it is brought back to what was committed, as far as that goes: indexes, commits, plans and rows are
    written again from whole files and older generations. What no file holds any more is counted, and encoded again
    from --dataset in a new generation: lost rows and nothing else, with the encoders and options that CACHE has.

    Exit code 0: all is as it was committed. 1: something is not; each fault is a line that names the file and what is
    lost, and rows that were lost and not brought back are named column by column. A shard that is not encoded yet is no
    fault.

    \b
      kcache verify cache
      kcache verify cache --deep
      kcache verify cache --repair --dataset my-pictures
    """
    from kcache.shards import UsageError

    given = [f"--{name.replace('_', '-')}" for name, value in encoding.items() if value is not None]
    if given and not (repair and encoding["dataset"]):
        needed = "--repair and --dataset" if repair or encoding["dataset"] is None else "--repair"
        raise UsageError(f"{given[-1]} has no effect without {needed}; add them, or leave it out")
    restored = _repair(cache, encoding) if repair else True
    with _opened(cache) as opened:
        code = _tell(opened, _verify(opened, deep or repair), deep or repair)
    return code if restored else 1


@contextmanager
def _opened(name: str) -> Iterator["Cache"]:
    """The cache; one in a store with a copy that begins empty, as it is the store that is to be verified."""
    from kcache.shards import Cache
    from kcache.shards.local_cache import LocalCache
    from kcache.shards.objects import is_url

    if not is_url(name):
        yield Cache(name)
        return
    with tempfile.TemporaryDirectory(prefix="kcache-verify-") as folder:
        yield Cache(name, LocalCache(Path(folder), LocalCache.default().size))


def _repair(cache: str, encoding: dict[str, str | int | None]) -> bool:
    """Repair, and say what was done; False where the dataset could not give all that was lost."""
    from kcache.progress import bar
    from kcache.shards import Cache
    from kcache.shards.repair import repair
    from kcache.shards.verify import committed_bytes

    opened = Cache(cache)
    opened.require_local("kcache verify --repair")
    with bar(committed_bytes(opened, samples=False), "B", "repair", scale=True) as progress:
        found = repair(opened.root, progress.update)
    for mended in found.mended:
        say(mended)
    if found.lost and encoding["dataset"] is None:
        _tell_lost(cache, found.lost)
    elif found.lost:
        from kcache.encoding.config import EncodeConfig
        from kcache.encoding.repair import fill_in

        given = {name: value for name, value in encoding.items() if value is not None}
        filled = fill_in(EncodeConfig(cache=cache, **given), found)  # type: ignore[arg-type]
        for name, rows in filled.encoded.items():
            say(f"{name}: {count(rows, 'row')} encoded again")
        _tell_missing(str(encoding["dataset"]), filled)
        return not (filled.missing or filled.aside)
    return True


def _tell_missing(dataset: str, filled: "Filled") -> None:
    for name, ids in filled.missing.items():
        was = "it was" if len(ids) == 1 else "they were"
        rows = count(len(ids), "row")
        say(f"{name}: {rows} could not be encoded again, for {dataset} lacks what {was} made from: {_named(ids)}")
    if filled.aside:
        rows = count(len(filled.aside), "row")
        say(f"samples: {rows} lost and not in {dataset}, set aside until an encode finds them: {_named(filled.aside)}")


def _named(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")


def _tell_lost(cache: str, lost: "Salvage") -> None:
    """What the disk does not hold any more, and what brings it back."""
    said = [f"{count(rows, 'row')} of '{name}'" for name, rows in lost.rows.items()]
    said += [f"the samples of {count(len(lost.forgotten), 'shard')}"] if lost.forgotten else []
    said += [f"the last samples of {count(len(lost.behind), 'shard')}"] if lost.behind else []
    said += [f"the record of '{name}'" for name in sorted(lost.records)]
    said += [f"the null features of '{name}'" for name in sorted(lost.nulls)]
    say(f"Lost: {', '.join(said)}; 'kcache verify {cache} --repair --dataset DATASET' makes them again")


def _verify(cache: "Cache", deep: bool) -> "Verification":
    from kcache.progress import bar
    from kcache.shards.verify import committed_bytes
    from kcache.shards.verify import verify as verify_cache

    with bar(committed_bytes(cache) if deep else 0, "B", "verify", scale=True) as progress:
        return verify_cache(cache, deep=deep, progress=progress.update if deep else lambda nbytes: None)


def _tell(cache: "Cache", result: "Verification", deep: bool) -> int:
    for fault in result.faults:
        say(f"{fault.path}: {fault.problem}")
    for name, missing in result.missing_shards.items():
        if missing > 0:
            lack = f"{count(missing, 'shard')} {'is' if missing == 1 else 'are'} not encoded yet"
            say(f"{name}: {lack}; 'kcache encode DATASET {cache.name}' goes on")
    for name, ids in result.lacking.items():
        say(
            f"{name}: {count(len(ids), 'row')} without features, which training leaves out: {_named(ids)}; lost and not"
            f" brought back, or left out by --columns: 'kcache verify {cache.name} --repair --dataset DATASET' encodes"
            f" what DATASET has, 'kcache encode DATASET {cache.name} --prune' takes out what it has no more"
        )
    checked = f"{count(result.files, 'file')}, {size(result.bytes)}" + (
        "" if deep else " (sizes and records; --deep reads all)"
    )
    if result.faults:
        say(
            f"{count(len(result.faults), 'fault')} in {checked}; copy those files again, or {cache.how_to_repair},"
            " which encodes again exactly what is lost"
        )
        return 1
    say(f"No fault in {checked}{', but for the rows without features' if result.lacking else ''}.")
    return int(bool(result.lacking))
