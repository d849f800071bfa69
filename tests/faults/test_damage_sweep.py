"""Every place of a small cache damaged in every way: reading gives the right bytes or an error, and verify knows."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
from lived_cache import current_files, lived_cache, read_parts, within
from tally import Tally

from kcache.shards import Cache, KcacheError, verify

BLOCK = 512


@dataclass(frozen=True)
class Harm:
    """One file of a cache, what is done to it, and the bytes that it then has (None: it is not there)."""

    file: str
    what: str
    data: bytes | None


def harms(root: Path, step: int, current: set[str], swaps: int) -> Iterator[Harm]:
    """All harm: in every block of ``step`` bytes a bit flipped, zeros, a cut; and what is done to whole files.

    Of files that are not ``current`` the first block stands for all. Each is replaced by ``swaps`` others of its kind.
    """
    paths = [p for p in sorted(root.rglob("*")) if p.is_file() and p.parent.name != "leases"]
    files = {p.relative_to(root).as_posix(): p.read_bytes() for p in paths}
    for file, data in files.items():
        for at in range(0, len(data) if file in current or file.startswith("index/") else 1, step):
            place = at + at // step * 97 % min(step, len(data) - at)  # not always the first byte of a block
            flipped = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
            yield Harm(file, f"flipped at {place}", flipped)
            zeros = bytes(min(BLOCK, len(data) - at))
            yield Harm(file, f"zeroed from {at}", data[:at] + zeros + data[at + len(zeros) :])
            yield Harm(file, f"cut at {at}", data[:at])
        yield Harm(file, "lengthened by zeros", data + bytes(BLOCK))
        yield Harm(file, "lengthened by itself", data + data)
        yield Harm(file, "removed", None)
        alike = (other for other in files if other != file and kind(other) == kind(file))
        for other in islice(alike, swaps):
            yield Harm(file, f"replaced by {other}", files[other])


def kind(file: str) -> tuple[str, str]:
    """Files of one kind hold the same sort of thing, be it of other columns."""
    name, suffix = Path(file).parts[0], Path(file).suffix
    return (name if name in ("plan", "columns", "commits", "dataset", "index") else "data"), suffix


class Sweep:
    """A whole cache, and what became of each harm that was done to it."""

    def __init__(self, cache: Cache, step: int, swaps: int) -> None:
        self.root, self.step, self.swaps = cache.root, step, swaps
        self.right = read_parts(self.root)
        assert not [part for part in self.right.values() if isinstance(part, KcacheError)]
        assert not verify(cache, deep=True).faults
        self.current = current_files(cache)
        self.index = {p: p.read_bytes() for p in (self.root / "index").iterdir() if p.is_file()}
        self.tried: Counter[str] = Counter()
        self.missed: list[str] = []
        self.silent: list[str] = []

    def run(self, *, keep_index: bool) -> None:
        """Do all harm, one after the other. With ``keep_index`` files keep their times, as on a disk that rots."""
        for harm in [*harms(self.root, self.step, self.current, self.swaps)]:
            path = self.root / harm.file
            whole, times = path.read_bytes(), path.stat()
            if harm.data == whole:
                continue
            if harm.data is None:
                path.unlink()
            else:
                path.write_bytes(harm.data)
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + (not keep_index)))
            if not keep_index and not harm.file.startswith("index/"):
                shutil.rmtree(self.root / "index", ignore_errors=True)
            with within(20):
                self.judge(harm)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(whole)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            self.restore_index()

    def restore_index(self) -> None:
        (self.root / "index").mkdir(exist_ok=True)
        for path, data in self.index.items():
            if not path.exists() or path.read_bytes() != data:
                path.write_bytes(data)

    def judge(self, harm: Harm) -> None:
        parts = read_parts(self.root)
        refused = [name for name, part in parts.items() if isinstance(part, KcacheError)]
        wrong = [name for name, part in parts.items() if name not in refused and part != self.right[name]]
        for name in refused:
            said = str(parts[name])
            assert str(self.root) in said or harm.file in said, f"{harm}: {name} is refused without a name: {said}"
        verified = self.faulty(deep=False)
        found = bool(refused) or verified or self.faulty(deep=True)
        self.tried["found" if found else "missed"] += 1
        told = f"{harm.file} {harm.what}"
        if not found:
            self.missed.append(told)
        if wrong and not verified:
            self.silent.append(f"{told}: {', '.join(wrong)}")

    def faulty(self, *, deep: bool) -> bool:
        """Whether verify says so: of a cache that does not open it does at once."""
        try:
            return bool(verify(Cache(self.root), deep=deep).faults)
        except KcacheError:
            return True


def check(sweep: Sweep, tally: Tally) -> None:
    """What was missed is what docs/format.md says is not checked, and nothing wrong was read unnoticed."""
    newest = max(file for file in sweep.current if file.startswith("dataset/"))
    unseen = Counter(_unchecked(told, sweep.current, newest) for told in sweep.missed)
    undeclared = [told for told in sweep.missed if _unchecked(told, sweep.current, newest) is None]
    silent = set(sweep.silent) - {f"{newest} removed: dataset"}
    counted = {str(why): number for why, number in unseen.items() if why}
    tally.add("places damaged", sweep.tried.total(), len({*undeclared, *silent}), counted)
    assert undeclared == []
    assert silent == set()


def _unchecked(told: str, current: set[str], newest: str) -> str | None:
    """What docs/format.md calls a place that nobody promises to look at; None for any other place."""
    file = told.split()[0]
    if file.startswith("index/"):
        return "in index/, which is derived"
    if told == f"{newest} removed":
        return "the newest record of dataset/, removed"
    return None if file in current else "in what no current commit names"


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a cache anew writes its index; here nobody pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def test_every_other_block_of_every_file(tmp_path: Path, container: str, tally: Tally) -> None:
    sweep = Sweep(lived_cache(tmp_path / "cache", container), 2 * BLOCK, swaps=1)
    sweep.run(keep_index=container == "h5")
    check(sweep, tally)


@pytest.mark.torture
@pytest.mark.parametrize("keep_index", [True, False], ids=["rotten", "copied"])
def test_every_64_bytes_of_every_file(tmp_path: Path, container: str, keep_index: bool, tally: Tally) -> None:
    sweep = Sweep(lived_cache(tmp_path / "cache", container), 64, swaps=1000)
    sweep.run(keep_index=keep_index)
    check(sweep, tally)
