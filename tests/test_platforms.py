"""What other systems do differently, forced here one by one: no preadv, no links, files held open, names of devices."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from toy_cache import FIELDS, SAMPLES, assert_rows, make_cache, read_all, row, shard_file

import kcache.shards.reader as reader_module
from kcache.shards import Cache, ColumnReader, DamageError, Snapshot, durable, files, layout

# --- reading


def test_without_preadv_the_same_bytes_are_read(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "read_at", files._seek_and_read)
    for name in FIELDS:
        assert_rows(read_all(cache, name), [row(name, n) for n in range(SAMPLES)])


def test_without_preadv_a_file_that_was_cut_is_an_error_too(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "read_at", files._seek_and_read)
    reader = ColumnReader(Snapshot(cache, ["image"]), "image")
    reader.read(0, "image_embeds")
    os.truncate(shard_file(cache, "image", 0), 100)
    with pytest.raises(DamageError, match=r"field 'image_embeds' of sample '.*': \d+ of \d+ bytes could be read"):
        reader.read(0, "image_embeds")
    reader.close()


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="this system reads with the other function")
def test_where_there_is_preadv_nothing_stands_between_it_and_the_reader() -> None:
    assert files.read_at is os.preadv


# --- writing


def test_without_hard_links_a_cache_is_written_and_the_first_of_two_writers_wins(
    tmp_path: Path, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> NoReturn:
        raise OSError(errno.EINVAL, "what Windows says on exFAT")

    monkeypatch.setattr(os, "link", no_links)
    cache = make_cache(tmp_path / "cache", container)
    assert_rows(read_all(cache, "image"), [row("image", n) for n in range(SAMPLES)])
    assert durable.put_if_absent(tmp_path / "file", b"first")
    assert not durable.put_if_absent(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert not list(tmp_path.rglob(".tmp-*"))


def held_open(monkeypatch: pytest.MonkeyPatch, attempts: float) -> None:
    """Let the system be a Windows where another program lets go of the file after so many attempts to replace it."""
    replace, failed = os.replace, 0

    def refuse(source: Any, target: Any) -> None:
        nonlocal failed
        failed += 1
        if failed <= attempts:
            raise PermissionError(errno.EACCES, "Access is denied", str(source), 5, str(target))
        replace(source, target)

    monkeypatch.setattr(durable, "WINDOWS", True)
    monkeypatch.setattr(durable, "_PATIENCE", (0.0, 0.0, 0.0))
    monkeypatch.setattr(os, "replace", refuse)


def test_a_file_that_is_held_open_for_a_moment_is_replaced_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    held_open(monkeypatch, attempts=3)
    durable.replace(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_file_that_stays_open_keeps_its_bytes_and_no_temp_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    held_open(monkeypatch, attempts=float("inf"))
    with pytest.raises(PermissionError):
        durable.replace(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_derived_index_that_is_held_open_is_left_as_it_is(tar_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    held_open(monkeypatch, attempts=float("inf"))
    assert len(Snapshot(tar_cache, ["image"])) == SAMPLES


# --- names


def test_a_temp_file_is_named_briefly_on_a_machine_with_a_long_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(socket, "gethostname", lambda: "ü" * 200)
    monkeypatch.setattr(durable, "failpoint", lambda step: seen.extend(p.name for p in tmp_path.iterdir()))
    durable.put_if_absent(tmp_path / "000012.000001.json", b"{}")
    (temporary,) = {name for name in seen if name.startswith(durable.TEMPORARY)}
    assert len(temporary.encode()) <= 32


def test_machines_whose_long_names_differ_at_the_end_leave_each_others_temp_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []
    for machine in ("worker-0", "worker-1"):
        name = "encode-job-in-a-cluster-" * 3 + machine
        monkeypatch.setattr(socket, "gethostname", lambda name=name: name)
        left.append(tmp_path / f"{durable.TEMPORARY}{durable.host()}-{dead_pid()}-0")
        left[-1].write_bytes(b"")
    assert durable.clear_dead_temporaries(tmp_path) == 1
    assert [path.exists() for path in left] == [True, False]


def test_temp_files_of_a_living_process_stay(tmp_path: Path) -> None:
    mine = tmp_path / f"{durable.TEMPORARY}{durable.host()}-{os.getpid()}-0"
    strange = tmp_path / f"{durable.TEMPORARY}{durable.host()}-notes"
    for path in (mine, strange):
        path.write_bytes(b"")
    assert durable.clear_dead_temporaries(tmp_path) == 0
    assert mine.exists()
    assert strange.exists()


def dead_pid() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("name", ["con", "nul", "aux", "prn", "com1", "lpt9"])
def test_no_column_is_called_as_a_device_of_windows(name: str) -> None:
    assert not layout.is_column_name(name)
    assert layout.is_column_name(f"text-{name}")


def test_no_file_of_a_cache_has_a_name_that_windows_or_a_mac_would_read_otherwise(cache: Cache) -> None:
    for path in cache.root.rglob("*"):
        name = path.name
        assert name == name.lower()
        assert not set(name) & set('<>:"|?*\\ ')
        assert not name.endswith(".")
        assert len(name) <= 40
        assert layout.is_column_name(name) or path.is_file()


def test_a_cache_on_a_path_of_300_letters_is_written_and_read(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100) / ("f" * 100)
    cache = make_cache(deep / "cache")
    assert_rows(read_all(cache, "image"), [row("image", n) for n in range(SAMPLES)])
