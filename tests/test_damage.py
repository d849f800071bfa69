"""Damage to a cache is an error that names what is lost; verify finds every byte of it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from support import flip
from toy_cache import (
    FIELDS,
    SHARD_SIZE,
    read_all,
    row,
    shard_file,
    with_record,
)

from kcache.shards import (
    Cache,
    CacheError,
    ColumnReader,
    DamageError,
    Snapshot,
    layout,
    read_null,
    verify,
)
from kcache.shards.records import load_record

# --- damage


@pytest.mark.parametrize("name", FIELDS)
def test_a_flipped_byte_in_a_sample_names_the_shard_and_the_sample(cache: Cache, name: str) -> None:
    snapshot = Snapshot(cache, [name])
    entries = snapshot.pinned[name].entries
    for number in (0, 5, 9):
        path = shard_file(cache, name, number // SHARD_SIZE)
        for j, field in enumerate(FIELDS[name]):
            offset = int(entries[number, j]["offset"]) + int(entries[number, j]["nbytes"]) - 1
            flip(path, offset, bits=0x80)
            reader = ColumnReader(snapshot, name)
            with pytest.raises(DamageError, match=rf"{path.name}: field '{field.name}' of sample 'sample {number}'"):
                reader.read(number, field.name)
            neighbour = number - 1 if number else 1
            assert reader.read(neighbour, field.name).tobytes() == row(name, neighbour)[field.name].tobytes()
            reader.close()
            flip(path, offset, bits=0x80)


def test_crc32_can_be_left_unchecked(cache: Cache) -> None:
    snapshot = Snapshot(cache, ["image"])
    flip(shard_file(cache, "image", 0), int(snapshot.pinned["image"].entries[0, 0]["offset"]))
    reader = ColumnReader(snapshot, "image", check_crc=False)
    assert reader.read(0, "image_embeds").shape == (3,)
    reader.close()


def test_a_shard_that_was_cut_is_an_error_that_has_the_numbers(cache: Cache) -> None:
    path = shard_file(cache, "text", 1)
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(
        DamageError, match=rf"{path.name} has {size - 1:,} bytes, its commit says {size:,}; run 'kcache"
    ):
        read_all(cache, "text")


def test_a_shard_that_is_cut_under_an_open_reader_is_an_error(cache: Cache) -> None:
    reader = ColumnReader(Snapshot(cache, ["text"]), "text")
    reader.read(4, "text_embeds")
    os.truncate(shard_file(cache, "text", 1), 100)
    with pytest.raises(DamageError, match=r"field 'hidden_states' of sample 'sample 7': 0 of 20 bytes could be read"):
        reader.read(7, "hidden_states")
    reader.close()


def test_a_shard_that_is_missing_is_an_error(cache: Cache) -> None:
    path = shard_file(cache, "image", 2)
    path.unlink()
    with pytest.raises(DamageError, match=f"{path.name} is missing; run 'kcache verify"):
        read_all(cache, "image")


RECORDS = {
    "kcache.json": lambda cache: Cache(cache.root).shard_size,
    "plan/000001.jsonl": lambda cache: cache.planned_ids(1),
    "columns/image.json": lambda cache: cache.column("image"),
    "commits/image/000001.000001.json": lambda cache: cache.commit("image", 1, 1),
    "samples/000000-*.jsonl": lambda cache: cache.samples(0),
    "text/000001-*.idx": lambda cache: read_all(cache, "text"),
    "columns/image.null*.tar": lambda cache: read_null(cache, cache.column("image")),
    "columns/image.null*.idx": lambda cache: read_null(cache, cache.column("image")),
}


@pytest.mark.parametrize("pattern", RECORDS)
def test_any_flipped_byte_in_a_record_is_an_error(tar_cache: Cache, pattern: str) -> None:
    (path,) = tar_cache.root.glob(pattern)
    whole, read = path.read_bytes(), RECORDS[pattern]
    read(tar_cache)
    for offset in range(0, len(whole), 1 + len(whole) // 200):
        for bits in (0x01, 0x20, 0x80):
            shutil.rmtree(tar_cache.root / "index", ignore_errors=True)
            data = bytearray(whole)
            data[offset] ^= bits
            path.write_bytes(data)
            with pytest.raises(DamageError):
                read(tar_cache)


@pytest.mark.parametrize("pattern", RECORDS)
def test_a_record_that_was_cut_or_lengthened_is_an_error(tar_cache: Cache, pattern: str) -> None:
    (path,) = tar_cache.root.glob(pattern)
    whole, read = path.read_bytes(), RECORDS[pattern]
    for data in (b"", whole[:1], whole[: len(whole) // 2], whole[:-1], whole + b"\n", whole + whole):
        path.write_bytes(data)
        with pytest.raises(DamageError):
            read(tar_cache)


def test_another_format_version_is_refused_with_a_sentence(cache: Cache) -> None:
    with_record(cache.root / "kcache.json", format_version=99)
    with pytest.raises(
        CacheError, match=r"has cache format 99 and this kcache reads format 1; a newer kcache made it: install"
    ):
        Cache(cache.root)


def test_a_folder_that_is_no_cache_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"is not a kcache cache; make one with 'kcache encode DATASET"):
        Cache(tmp_path)
    for file, said in {
        "metadata.jsonl": f"but a dataset; make one of it with 'kcache encode {tmp_path} CACHE'",
        "training.json": f"but what 'kcache train' left; 'kcache report {tmp_path} -o report.html' shows it",
    }.items():
        (tmp_path / file).touch()
        with pytest.raises(CacheError, match=f"{tmp_path} is not a kcache cache {said}"):
            Cache(tmp_path)
        with pytest.raises(CacheError, match=f"{file} is a file and not a kcache cache; name a folder"):
            Cache(tmp_path / file)


def test_a_hole_in_the_plan_is_an_error(cache: Cache) -> None:
    (cache.root / layout.plan(1)).unlink()
    with pytest.raises(DamageError, match=r"lacks plan/000001\.jsonl"):
        Cache(cache.root).shard_count  # noqa: B018


@pytest.mark.parametrize("file", ["../outside.tar", "/etc/passwd", "image/../../outside.tar", "", "a\\..\\b"])
def test_a_commit_that_points_outside_the_cache_is_refused(cache: Cache, file: str) -> None:
    path = cache.root / layout.commit("image", 1, 1)
    for changes in ({"file": file}, {"index": {**load_record(path)["index"], "file": file}}):
        whole = path.read_bytes()
        with_record(path, **changes)
        with pytest.raises(DamageError):
            Snapshot(cache, ["image"])
        path.write_bytes(whole)


def test_a_commit_in_the_place_of_another_is_refused(cache: Cache) -> None:
    shutil.copy(cache.root / layout.commit("image", 0, 1), cache.root / layout.commit("image", 1, 1))
    with pytest.raises(DamageError, match="names another shard than its own"):
        Snapshot(cache, ["image"])


# --- verify


def test_a_whole_cache_has_no_fault(cache: Cache) -> None:
    told: list[int] = []
    result = verify(cache, deep=True, progress=told.append)
    assert result.faults == []
    assert result.files == len(told) == 9
    assert result.bytes == sum(told)
    assert result.rows == {"samples": 10, "image": 10, "text": 10}


def committed_files(cache: Cache) -> list[str]:
    files = (p.relative_to(cache.root).as_posix() for p in cache.root.rglob("*") if p.is_file())
    return sorted(f for f in files if not f.startswith(("index/", "kcache.json")))


def test_verify_finds_every_flipped_byte(cache: Cache) -> None:
    for file in committed_files(cache):
        path = cache.root / file
        whole = path.read_bytes()
        for offset in {0, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
            data = bytearray(whole)
            data[offset] ^= 1
            path.write_bytes(data)
            assert verify(Cache(cache.root), deep=True).faults, (file, offset)
        path.write_bytes(whole)
    assert not verify(cache, deep=True).faults


def test_verify_finds_every_missing_and_every_cut_file(cache: Cache) -> None:
    for file in committed_files(cache):
        path = cache.root / file
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        assert verify(Cache(cache.root)).faults, file
        path.unlink()
        found = verify(Cache(cache.root))
        # A commit that is gone is work to be done again; anything else that is gone was promised by a record.
        assert found.faults or (file.startswith("commits/") and sum(found.missing_shards.values()) == 1), file
        path.write_bytes(whole)


def test_verify_names_the_samples_that_are_lost(tar_cache: Cache) -> None:
    path = shard_file(tar_cache, "image", 1)
    entries = Snapshot(tar_cache, ["image"]).pinned["image"].entries
    for number in (4, 6):
        flip(path, int(entries[number, 0]["offset"]))
    (fault,) = verify(tar_cache, deep=True).faults
    assert fault.path == path.relative_to(tar_cache.root).as_posix()
    assert "samples 'sample 4', 'sample 6' are damaged" in fault.problem
    assert not verify(tar_cache).faults  # sizes and records are as they were


def test_verify_says_when_no_sample_is_lost(tar_cache: Cache) -> None:
    flip(shard_file(tar_cache, "image", 1), -1)
    (fault,) = verify(tar_cache, deep=True).faults
    assert "no sample is damaged" in fault.problem


def test_records_are_one_line_of_json_a_value(cache: Cache) -> None:
    assert json.loads((cache.root / "kcache.json").read_text())["format_version"] == 1
    plan = (cache.root / layout.plan(0)).read_text().splitlines()
    assert [json.loads(line) for line in plan[:-1]] == [{"id": f"sample {n}"} for n in range(4)]
    assert json.loads(plan[-1])["lines"] == 4
