"""The cache on disk: what is written is read back, and what is not committed is not there."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import flip
from toy_cache import (
    FIELDS,
    SAMPLES,
    SHARD_SIZE,
    assert_rows,
    column,
    commit_shard,
    make_cache,
    read_all,
    row,
    sample,
)

from kcache.shards import (
    Cache,
    CacheError,
    ColumnReader,
    DamageError,
    Snapshot,
    derived,
    durable,
    layout,
    read_null,
    verify,
)
from kcache.shards.index import ENTRY, dump_index, load_index, present
from kcache.shards.pinned import EntriesOnDisk
from kcache.shards.records import dump_lines, dump_record, load_lines, load_record

# --- what is written is read back


@pytest.mark.parametrize("name", FIELDS)
def test_features_are_read_back_bit_for_bit(cache: Cache, name: str) -> None:
    assert_rows(read_all(cache, name), [row(name, n) for n in range(SAMPLES)])


def test_null_features_are_read_back_bit_for_bit(cache: Cache) -> None:
    for name in FIELDS:
        assert_rows([dict(read_null(cache, cache.column(name)))], [row(name, 99)])


def test_a_column_is_read_back_as_it_was_written(cache: Cache) -> None:
    assert cache.column("text").fields == FIELDS["text"]
    assert cache.column("text").fingerprint == column("text").fingerprint
    assert cache.column_names() == ["image", "text"]
    with pytest.raises(CacheError, match=r"has no column 'depth' \(it has: image, text\); add it with 'kcache encode'"):
        cache.column("depth")


def test_a_reader_fills_the_buffers_it_is_given(cache: Cache) -> None:
    rows = ColumnReader(Snapshot(cache, ["image"]), "image").rows([6, 1, 9])
    out = np.full((3, 5), 7, np.float32)
    rows.read_into("image_embeds", [one[1:4].view(np.uint8).data for one in out])
    assert out.tolist() == [[7, *row("image", n)["image_embeds"].tolist(), 7] for n in (6, 1, 9)]
    assert rows.nbytes("image_embeds").tolist() == [12] * 3
    with pytest.raises(DamageError, match="'sample 1'"):
        rows.only([1]).read_into("image_embeds", [out[0].view(np.uint8).data])


def test_a_reader_keeps_few_files_open(cache: Cache) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    reader = ColumnReader(Snapshot(cache, ["image"]), "image", max_open_files=2)
    for position in (0, 4, 8, 0, 9, 5):
        assert reader.read(position, "image_embeds").tolist() == row("image", position)["image_embeds"].tolist()
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    reader.close()


def test_equal_rows_make_equal_files(tmp_path: Path, container: str) -> None:
    one, other = make_cache(tmp_path / "one", container), make_cache(tmp_path / "other", container)
    files = [sorted((p.relative_to(c.root), p.read_bytes()) for p in c.root.rglob("*.*")) for c in (one, other)]
    assert files[0] == files[1]
    assert len(files[0]) > 20


@given(
    entries=st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=24
    ),
    fields=st.integers(1, 4),
)
def test_an_index_is_read_back_as_it_was_written(entries: list[tuple[int, int, int]], fields: int) -> None:
    table = np.array(entries[: len(entries) // fields * fields], ENTRY).reshape(-1, fields)
    assert np.array_equal(load_index(dump_index(table), "x.idx"), table)
    assert present(table).tolist() == [all(offset != 0 for offset in line["offset"]) for line in table]


@given(lines=st.lists(st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.none(), max_size=3)))
def test_lines_are_read_back_as_they_were_written(
    lines: list[dict[str, object]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    path.write_bytes(dump_lines(lines))
    assert load_lines(path) == lines


# --- writing once


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert durable.put_if_absent(path, b"first")
    assert not durable.put_if_absent(path, b"second")
    assert path.read_bytes() == b"first"
    assert [p.name for p in path.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("write", [durable.put_if_absent, durable.replace])
def test_a_failed_fsync_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, bytes], object]
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk says no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="the disk says no"):
            write(tmp_path / "file", b"data")
    assert list(tmp_path.iterdir()) == []


def test_replacing_a_file_shows_the_old_bytes_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "file", []
    durable.replace(path, b"old")
    monkeypatch.setattr(durable, "failpoint", lambda name: seen.append(path.read_bytes()))
    durable.replace(path, b"new")
    assert set(seen) == {b"old", b"new"}


def test_a_damaged_file_named_by_its_content_is_written_again(tmp_path: Path) -> None:
    durable.put_content(tmp_path / "shard", b"right")
    (tmp_path / "shard").write_bytes(b"wrong")
    durable.put_content(tmp_path / "shard", b"right")
    assert (tmp_path / "shard").read_bytes() == b"right"


def test_of_two_that_race_to_one_commit_one_wins_and_is_read(
    tmp_path: Path, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(tmp_path / "cache", container)
    cache.extend_plan(["one more"])
    cache.commit_samples(3, [sample(10)], ["key 10"])
    rival = Cache(cache.root)

    def rival_commits_first(name: str) -> None:
        if name == "commit":
            monkeypatch.setattr(durable, "failpoint", lambda name: None)
            rival.commit_features(column("image"), 3, [row("image", 20)], ["key of both"])

    monkeypatch.setattr(durable, "failpoint", rival_commits_first)
    # The same input on another GPU: equal keys, and features that differ in their last bits.
    cache.commit_features(column("image"), 3, [row("image", 21)], ["key of both"])
    assert_rows(read_all(cache, "image")[SAMPLES:], [row("image", 20)])
    assert not verify(cache, deep=True).faults


def test_of_two_that_race_to_one_commit_with_other_rows_the_late_one_is_told(cache: Cache) -> None:
    numbers = range(4)
    old, new = ([f"{name} {n}" for n in numbers] for name in ("old caption", "new caption"))
    cache.commit_features(column("image"), 0, [row("image", n) for n in numbers], new, generation=2)
    with pytest.raises(CacheError, match=r"another process committed other rows as .*000000\.000002\.json; run the"):
        cache.commit_features(column("image"), 0, [row("image", n) for n in numbers], old, generation=2)
    assert cache.commit("image", 0, 2).keys == tuple(new)


def test_of_two_that_race_to_one_column_one_wins_with_its_own_null_features(
    tmp_path: Path, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache.create(tmp_path / "cache", shard_size=4, container=container)
    rival = Cache(cache.root)

    def rival_adds_first(name: str) -> None:
        monkeypatch.setattr(durable, "failpoint", lambda name: None)
        rival.add_column(column("image"), row("image", 20))

    monkeypatch.setattr(durable, "failpoint", rival_adds_first)
    # The same encoder on another GPU: equal fingerprints, and features that differ in their last bits.
    added = cache.add_column(column("image"), row("image", 21))
    assert_rows([dict(read_null(cache, added))], [row("image", 20)])


def test_another_encoder_for_the_same_column_is_refused(cache: Cache) -> None:
    with pytest.raises(CacheError, match="was encoded otherwise \\(class is 'one', not 'another'\\)"):
        cache.add_column(column("image", encoder="another"), None)


def test_the_plan_keeps_known_samples_in_their_places(cache: Cache) -> None:
    before = [cache.ids(shard) for shard in range(3)]
    cache.extend_plan(["new 1", "new 2", "new 3", "new 4", "new 5"])
    assert cache.shard_count == Cache(cache.root).shard_count == 5
    assert [cache.ids(shard) for shard in range(5)] == [*before, ["new 1", "new 2", "new 3", "new 4"], ["new 5"]]


# --- snapshots


def test_a_shard_without_a_commit_does_not_exist(cache: Cache) -> None:
    (cache.root / layout.commit("image", 1, 1)).unlink()
    with pytest.raises(CacheError, match=r"1 of 3 shards lack text or image; finish with 'kcache encode DATASET"):
        Snapshot(cache, ["text", "image"])
    partial = Snapshot(cache, ["text", "image"], partial=True)
    assert partial.missing_shards == 1
    assert partial.rows.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [2, 0], [2, 1]]
    reader = ColumnReader(partial, "image")
    assert reader.read(4, "image_embeds").tolist() == row("image", 8)["image_embeds"].tolist()
    reader.close()
    assert len(Snapshot(cache, ["text"])) == SAMPLES
    assert verify(cache).missing_shards == {"samples": 0, "image": 1, "text": 0}


def test_a_cache_with_no_shard_at_all_is_refused(tmp_path: Path) -> None:
    cache = Cache.create(tmp_path / "cache", shard_size=4, container="tar")
    cache.add_column(column("image"), None)
    with pytest.raises(CacheError, match="finish with 'kcache encode DATASET"):
        Snapshot(cache, ["image"], partial=True)


def test_the_digest_is_of_these_columns_and_no_others(cache: Cache, tmp_path: Path) -> None:
    image = Snapshot(cache, ["image"]).digest
    both = Snapshot(cache, ["text", "image"]).digest
    shutil.copytree(cache.root, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "commits" / "text")
    shutil.rmtree(tmp_path / "copy" / "index")
    moved = Cache(tmp_path / "copy")
    assert Snapshot(moved, ["image"]).digest == image != both
    assert Snapshot(cache, ["image", "text"]).digest == both
    moved.extend_plan(["one more"])
    commit_shard(moved, "image", 3, range(10, 11))
    assert Snapshot(moved, ["image"]).digest != image


def test_a_snapshot_does_not_see_what_is_committed_later(cache: Cache) -> None:
    snapshot = Snapshot(cache, ["image"])
    writer = Cache(cache.root)
    writer.extend_plan(["one more"])
    commit_shard(writer, "image", 3, range(10, 11))
    assert len(snapshot) == SAMPLES
    reader = ColumnReader(snapshot, "image")
    assert reader.read(9, "image_embeds").tolist() == row("image", 9)["image_embeds"].tolist()
    reader.close()
    assert len(Snapshot(Cache(cache.root), ["image"])) == SAMPLES + 1


def test_a_cache_that_was_opened_long_ago_shows_what_was_added_since(cache: Cache) -> None:
    assert cache.shard_count == 3
    writer = Cache(cache.root)
    writer.extend_plan([f"new {n}" for n in range(8)])
    for shard in (3, 4):
        commit_shard(writer, "image", shard, range(4 * shard - 2, 4 * shard + 2))
    snapshot = Snapshot(cache, ["image"])
    assert (len(snapshot), snapshot.missing_shards) == (SAMPLES + 8, 0)
    reader = ColumnReader(snapshot, "image")
    assert reader.read(17, "image_embeds").tolist() == row("image", 17)["image_embeds"].tolist()
    reader.close()


def test_the_highest_generation_of_a_commit_wins(cache: Cache) -> None:
    before = Snapshot(cache, ["image"]).digest
    commit = load_record(cache.root / layout.commit("image", 2, 1))
    newer = load_record(cache.root / layout.commit("image", 0, 1)) | {"shard": 1, "generation": 2}
    assert commit["rows"] != newer["rows"]
    (cache.root / layout.commit("image", 1, 2)).write_bytes(dump_record(newer))
    snapshot = Snapshot(cache, ["image"])
    assert snapshot.digest != before
    reader = ColumnReader(snapshot, "image")
    assert reader.read(4, "image_embeds").tolist() == row("image", 0)["image_embeds"].tolist()
    reader.close()


def test_samples_that_were_set_aside_are_not_in_a_snapshot(tmp_path: Path, container: str) -> None:
    cache = make_cache(tmp_path / "cache", container, aside=frozenset({0, 5, 8, 9}))
    snapshot = Snapshot(cache, ["text", "image"])
    numbers = [1, 2, 3, 4, 6, 7]
    assert [SHARD_SIZE * shard + i for shard, i in snapshot.rows] == numbers
    for name in FIELDS:
        reader = ColumnReader(snapshot, name)
        rows = [{f.name: reader.read(i, f.name) for f in FIELDS[name]} for i in range(len(snapshot))]
        assert_rows(rows, [row(name, n) for n in numbers])
        reader.close()
    assert len(Snapshot(cache, ["text"])) == SAMPLES
    assert not verify(cache, deep=True).faults


@pytest.mark.parametrize("harm", ["deleted", "cut", "flipped", "stale", "half new", "not JSON"])
def test_a_derived_index_that_is_not_whole_and_new_changes_nothing(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    Snapshot(cache, ["image"])  # writes index/
    shutil.copytree(cache.root / "index", tmp_path / "old")
    cache.extend_plan(["one more"])
    commit_shard(cache, "image", 3, range(10, 11))
    expected = Snapshot(cache, ["image"])
    json_file, index_file = cache.root / "index" / "image.json", cache.root / "index" / "image.idx"
    if harm == "deleted":
        shutil.rmtree(cache.root / "index")
    elif harm == "cut":
        index_file.write_bytes(index_file.read_bytes()[:-16])
    elif harm == "flipped":
        flip(index_file, 40)
    elif harm == "stale":
        shutil.copytree(tmp_path / "old", cache.root / "index", dirs_exist_ok=True)
    elif harm == "half new":
        shutil.copy(tmp_path / "old" / "image.idx", index_file)
    else:
        json_file.write_bytes(b"\xff{")
    monkeypatch.setattr("kcache.shards.snapshot._AT_ONCE", 3)  # of four commits
    again = Snapshot(Cache(cache.root), ["image"])
    assert again.digest == expected.digest
    assert again.rows.tolist() == expected.rows.tolist()
    assert_rows(read_all(cache, "image"), [row("image", n) for n in range(SAMPLES + 1)])


@pytest.fixture
def entries_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a cache of millions of rows."""
    monkeypatch.setattr(derived, "IN_MEMORY", 0)


@pytest.mark.usefixtures("entries_on_disk")
def test_entries_that_stay_on_the_disk_say_what_those_in_memory_do(tmp_path: Path, container: str) -> None:
    cache = make_cache(tmp_path / "cache", container, aside=frozenset({0, 5, 8, 9}))
    in_memory = Snapshot(cache, ["text", "image"])  # the first time they are gathered from the commits
    on_disk = Snapshot(cache, ["text", "image"])
    assert isinstance(on_disk.pinned["image"].stored, EntriesOnDisk)
    assert (on_disk.digest, on_disk.rows.tolist()) == (in_memory.digest, in_memory.rows.tolist())
    for name in FIELDS:
        readers = [ColumnReader(snapshot, name) for snapshot in (in_memory, on_disk)]
        for positions in ([0], [5, 0, 1, 2, 5], range(6)):
            one, other = (reader.rows(positions) for reader in readers)
            assert [one.nbytes(f.name).tolist() for f in FIELDS[name]] == [
                other.nbytes(f.name).tolist() for f in FIELDS[name]
            ]
        numbers = [1, 2, 3, 4, 6, 7]
        assert_rows(
            [{f.name: readers[1].read(i, f.name) for f in FIELDS[name]} for i in range(6)],
            [row(name, n) for n in numbers],
        )
        assert on_disk.pinned[name].entries.tolist() == in_memory.pinned[name].entries.tolist()
        for reader in readers:
            reader.close()


@pytest.mark.usefixtures("entries_on_disk")
def test_entries_on_the_disk_that_are_replaced_stay_and_that_are_cut_are_an_error(cache: Cache) -> None:
    Snapshot(cache, ["image"])
    reader = ColumnReader(Snapshot(cache, ["image"]), "image")
    index = cache.root / "index" / "image.idx"
    kept = index.read_bytes()
    index.unlink()
    index.write_bytes(bytes(len(kept)))
    assert reader.read(3, "image_embeds").tolist() == row("image", 3)["image_embeds"].tolist()
    reader.close()
    index.write_bytes(kept)
    reader = ColumnReader(Snapshot(cache, ["image"]), "image")
    os.truncate(index, len(kept) - 16)
    with pytest.raises(DamageError, match=r"image.idx was cut while in use; run the command again"):
        reader.read(SAMPLES - 1, "image_embeds")


def test_the_derived_index_spares_reading_the_commits(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Snapshot(cache, ["image"]).digest

    def unreadable(*_: object) -> None:
        raise AssertionError("a commit was read")

    monkeypatch.setattr(Cache, "commit", unreadable)
    assert Snapshot(cache, ["image"]).digest == expected
