"""A cache made by a stranger: nothing in it executes, leads out of it, hangs, or takes all memory."""

import gzip
import json
import os
import pickle
import shutil
import socket
import tarfile
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import Encode, kcache, refused, tree
from lived_cache import current_files, lived_cache, read_parts, within
from strangers import exercise, fields_of, with_column, with_index, with_rows, write_index
from toy_cache import column, make_cache, row, with_record

from kcache.shards import Cache, CacheError, DamageError, KcacheError, Snapshot, verify
from kcache.shards.commits import digests
from kcache.shards.index import Entries
from kcache.shards.records import MAX_BYTES, digest, dump_lines, load_record, sealed
from kcache.shards.repair import repair

ABSURD = [
    -1,
    0,
    2**31,
    2**63,
    2**64,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    True,
    None,
    "4",
    "",
    [],
    {},
    [[]],
    {"a": 1},
]


@pytest.fixture
def lived(tmp_path: Path, container: str) -> Cache:
    return lived_cache(tmp_path / "cache", container)


@pytest.fixture(autouse=True)
def _nothing_hangs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    with within(240):
        yield


# --- names that lead out of the cache

OUTSIDE = [
    "../outside.tar",
    "/etc/passwd",
    "image/../../outside.tar",
    "image/..",
    "..",
    ".",
    "",
    "a\\..\\b",
    "C:/windows/x.tar",
    "image/deep/er.tar",
    "image/a\0b.tar",
    "image/ä.tar",
    "image/" + "a" * 300 + ".tar",
    "kcache.json",
]


@pytest.mark.parametrize("file", [*OUTSIDE, 5, None, ["a"]], ids=repr)
def test_a_record_that_names_a_file_elsewhere_is_refused(lived: Cache, file: object) -> None:
    shutil.rmtree(lived.root / "index")
    path = lived.commit_path("image", 1, 1)
    record = lived.root / "columns" / "image.2.json"
    for change in (
        lambda: with_record(path, file=file),
        lambda: with_record(path, index={**load_record(path)["index"], "file": file}),
        lambda: with_record(record, null={**load_record(record)["null"], "file": file}),
        lambda: with_record(record, null={**load_record(record)["null"], "index": {"file": file}}),
    ):
        whole = path.read_bytes(), record.read_bytes()
        change()
        assert any("kcache" in said or str(lived.root) in said for said in exercise(lived.root))
        with pytest.raises(CacheError):
            Snapshot(lived, ["image"])
        path.write_bytes(whole[0])
        record.write_bytes(whole[1])
    assert exercise(lived.root) == []


@pytest.mark.parametrize("file", OUTSIDE)
def test_a_derived_index_that_names_a_file_elsewhere_is_not_believed(lived: Cache, file: str) -> None:
    right = read_parts(lived.root)
    path = lived.root / "index" / "image.json"
    with_record(path, names={"0": file})
    assert read_parts(lived.root) == right


@pytest.mark.parametrize(
    "change",
    [{"files": 2**40}, {"rows": 2**62}, {"absent": -1}, {"absent": 3}, {"stale": True}, {"names": []}, {"state": None}],
    ids=str,
)
def test_a_derived_index_of_absurd_numbers_is_not_believed(lived: Cache, change: dict[str, object]) -> None:
    right = read_parts(lived.root)
    with_record(lived.root / "index" / "image.json", **change)
    assert read_parts(lived.root) == right


@pytest.mark.parametrize(
    "folder", ["plan", "columns", "commits", "commits/text", "text", "samples", "index", "dataset"]
)
def test_a_folder_that_is_a_link_is_refused_by_every_command(
    lived: Cache, tmp_path: Path, folder: str, pictures: Path, encode: Encode
) -> None:
    (lived.root / folder).rename(tmp_path / "elsewhere")
    (lived.root / folder).symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path / "elsewhere")
    sentence = f"{lived.root / folder} is a link: a cache has plain files and folders only; copy it with"
    for command in (["info", lived.root], ["verify", lived.root], ["train", "prior", lived.root, "--output-dir=out"]):
        assert refused(kcache(*command)).startswith(sentence)
    assert refused(encode(pictures, lived.root)).startswith(sentence)
    assert tree(tmp_path / "elsewhere") == before


def test_what_an_encode_keeps_of_its_scans_never_goes_through_a_link(
    lived: Cache, tmp_path: Path, pictures: Path, encode: Encode
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.json").write_text("{}")
    (lived.root / "index" / "scans").symlink_to(tmp_path / "mine")
    assert "index/scans is a link" in refused(encode(pictures, lived.root))
    assert (tmp_path / "mine" / "precious.json").exists()


@pytest.mark.parametrize("harms_of_each", [1, pytest.param(3, marks=pytest.mark.torture)])
def test_a_file_that_is_a_link_or_no_file_is_refused_and_nothing_waits_for_it(
    lived: Cache, tmp_path: Path, harms_of_each: int
) -> None:
    right = read_parts(lived.root)
    for number, file in enumerate(sorted(current_files(lived))):
        path, kept = lived.root / file, tmp_path / "kept"
        path.rename(kept)
        harms = [partial(path.symlink_to, kept), partial(os.mkfifo, path), path.mkdir]
        for harm in (harms * 2)[number % 3 :][:harms_of_each]:
            shutil.rmtree(lived.root / "index", ignore_errors=True)
            harm()
            parts = read_parts(lived.root)
            assert any(isinstance(part, KcacheError) for part in parts.values()), file
            assert all(isinstance(part, KcacheError) or part == right[name] for name, part in parts.items()), file
            assert exercise(lived.root), file
            (path.rmdir if path.is_dir() and not path.is_symlink() else path.unlink)()
        kept.rename(path)
    assert read_parts(lived.root) == right


def test_a_repair_follows_no_link_and_waits_for_no_pipe(
    lived: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    shutil.copytree(lived.root, tmp_path / "whole")
    for file in sorted(current_files(lived) - {"kcache.json"}):
        path, kept = lived.root / file, tmp_path / "kept"
        path.rename(kept)
        before = kept.read_bytes()
        for harm in (partial(path.symlink_to, kept), partial(os.mkfifo, path)):
            harm()
            with within(20):
                said = repair_all_there_is(lived.root)
            assert kept.read_bytes() == before
            if said is None:  # all of it could be brought back from other files
                assert not path.is_symlink(), file
                assert verify(Cache(lived.root), deep=True).faults == [], file
            shutil.rmtree(lived.root)
            shutil.copytree(tmp_path / "whole", lived.root)
            path.unlink()


def repair_all_there_is(root: Path) -> str | None:
    """What a repair could not bring back, or the sentence with which it was refused; None where all is well."""
    try:
        lost = repair(root).lost
    except KcacheError as error:
        return str(error)
    return str(lost) if lost else None


@pytest.mark.parametrize("name", ["reader-00000000-1-1-1", "writer-00000000-99999999999999999999-1-1", "gc-0-0-0-0"])
def test_a_lease_that_is_a_pipe_or_of_no_process_holds_up_nothing(lived: Cache, name: str) -> None:
    right = read_parts(lived.root)
    os.mkfifo(lived.root / "index" / "leases" / name)
    assert read_parts(lived.root) == right
    assert kcache("gc", lived.root, "--yes").exit_code in (0, 1)


def test_a_pipe_or_a_socket_among_what_is_derived_changes_nothing(
    lived: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = read_parts(lived.root)
    monkeypatch.chdir(lived.root / "index")  # the path of a socket is short
    for file in ("image.json", "image.idx"):
        Path(file).unlink()
        os.mkfifo(file)
        assert read_parts(lived.root) == right
        Path(file).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(file)
            assert read_parts(lived.root) == right
        Path(file).unlink(missing_ok=True)


# --- numbers that cannot be


@pytest.mark.parametrize("value", ABSURD, ids=repr)
def test_absurd_values_in_records_are_refused(lived: Cache, value: object) -> None:
    shutil.rmtree(lived.root / "index")
    commit = lived.commit_path("text", 1, 1)
    targets = {
        lived.root / "kcache.json": ("shard_size", "container", "format_version"),
        commit: ("column", "shard", "generation", "file", "bytes", "sha256", "rows", "keys", "index"),
        lived.root / "columns" / "text.json": ("name", "reads", "fields", "encoder", "encode_dtype", "edition"),
    }
    for path, names in targets.items():
        whole = path.read_bytes()
        for name in names:
            if load_record(path)[name] == value and type(value) is not bool:
                continue
            with_record(path, **{name: value})
            said = exercise(lived.root)
            assert said, (path.name, name, value)
            path.write_bytes(whole)
    assert exercise(lived.root) == []


@pytest.mark.parametrize(
    "shape", [[2**31], [2**31 - 1, 2**31 - 1], [-3], [0], [3, None], ["3"], [3.0], [True], [3] * 40, None, 3], ids=str
)
def test_an_absurd_shape_is_refused_before_anything_is_made_of_it(lived: Cache, shape: object) -> None:
    path = lived.root / "columns" / "image.2.json"
    with_column(path, fields=fields_of(lived.column("image"), shape=shape))
    with pytest.raises(CacheError):
        lived.column("image")
    assert exercise(lived.root)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "A", "x" * 99, "a.b"])
def test_an_absurd_name_of_a_field_is_refused(lived: Cache, name: str) -> None:
    with_column(lived.root / "columns" / "image.2.json", fields=fields_of(lived.column("image"), name=name))
    with pytest.raises(CacheError, match="a field is called"):
        lived.column("image")


def test_a_column_in_the_place_of_another_is_refused(lived: Cache) -> None:
    shutil.copy(lived.root / "columns" / "text.json", lived.root / "columns" / "image.2.json")
    with pytest.raises(DamageError, match=r"image\.2\.json is the record of another column"):
        Snapshot(lived, ["image"])


def test_an_edition_whose_record_is_lost_does_not_fall_back_to_the_one_before(lived: Cache) -> None:
    (lived.root / "columns" / "image.2.json").unlink()
    with pytest.raises(DamageError, match=r"image\.2\.json is missing, though shards of it were committed"):
        Snapshot(lived, ["image"])
    assert "columns/image.2.json" in {fault.path for fault in verify(lived).faults}


@pytest.mark.parametrize("name", ["999999999999.jsonl", "²²²²²².jsonl", "٠٠٠٠٠٧.jsonl", "-00001.jsonl", "1e9999.jsonl"])
def test_a_plan_with_a_number_that_cannot_be_costs_nothing(lived: Cache, name: str) -> None:
    shutil.copy(lived.root / "plan" / "000000.jsonl", lived.root / "plan" / name)
    said = exercise(lived.root)
    assert said == [] if not name.startswith("9") else "lacks plan/000003.jsonl" in said[0]


@pytest.mark.parametrize("shard", [3, 999_999_999_999])
def test_a_commit_of_a_shard_that_is_not_planned_is_refused(lived: Cache, shard: int) -> None:
    shutil.copy(lived.commit_path("text", 2, 1), lived.root / f"commits/text/{shard:06d}.000001.json")
    with_record(lived.root / f"commits/text/{shard:06d}.000001.json", shard=shard)
    with pytest.raises(DamageError, match=rf"has shard {shard}, and plan/{shard:06d}\.jsonl is missing"):
        Snapshot(lived, ["text"])
    assert any("which the plan does not have" in said for said in exercise(lived.root))


ROWS: list[Any] = [
    5, None, [], "row", {}, {"id": 5}, {"id": "a"}, {"id": "a", "captions": "text", "sha256": "0"},
    {"id": "a", "captions": [5], "sha256": "0"}, {"id": "a", "captions": [], "sha256": 7},
    {"id": "a", "captions": [], "sha256": "0", "width": -1}, {"id": "a", "captions": [], "sha256": "0", "height": 1e9},
    {"id": "a", "captions": [], "sha256": None, "set_aside": ["why"]},
]  # fmt: skip


@pytest.mark.parametrize("bad", ROWS, ids=repr)
def test_a_row_of_samples_that_cannot_be_is_refused(lived: Cache, bad: object) -> None:
    with_rows(lived, 0, [*lived.samples(0)[:3], bad])
    with pytest.raises(DamageError, match=r"samples/000000-\w+\.jsonl has a row that kcache never writes"):
        lived.samples(0)
    assert exercise(lived.root)


@pytest.mark.parametrize(
    "options", [{"where": 5}, {"streaming": "yes"}, {"max_pixels": -1.5}, {"split": ["a"]}], ids=str
)
def test_absurd_options_of_the_dataset_are_refused(
    tar_cache: Cache, pictures: Path, encode: Encode, options: dict[str, object]
) -> None:
    (tar_cache.root / "dataset").mkdir()
    (tar_cache.root / "dataset" / "000001.json").write_bytes(b"{}")
    shutil.copy(tar_cache.root / "kcache.json", tar_cache.root / "dataset" / "000001.json")
    with_record(tar_cache.root / "dataset" / "000001.json", **options)
    assert "what kcache never writes" in refused(encode(pictures, tar_cache.root))


# --- indexes


def put(at: tuple[int, int], **values: int) -> Any:
    """A change of one entry of an index."""

    def change(entries: Entries) -> None:
        for name, value in values.items():
            entries[name][at] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        put((0, 0), offset=2**64 - 1),
        put((0, 0), offset=2**63),
        put((0, 0), nbytes=2**32 - 1),
        put((0, 0), offset=10**6),
        put((0, 0), offset=0),
        put((0, 1), nbytes=7),
        put((3, 1), offset=2**64 - 4, nbytes=10),
    ],
)
def test_an_index_that_points_elsewhere_is_refused_before_anything_is_read(lived: Cache, change: Any) -> None:
    with_index(lived, "text", 0, change)
    tracemalloc.start()
    with pytest.raises(DamageError, match=r"text/000000-\w+\.idx (points outside|has 4 rows or gaps)|4 rows or gaps"):
        Snapshot(lived, ["text"])
    assert any(".idx" in said for said in exercise(lived.root))
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    tracemalloc.stop()


def test_entries_that_overlap_give_the_bytes_that_they_point_to(tar_cache: Cache) -> None:
    def overlap(entries: Entries) -> None:
        entries[1] = entries[0]

    with_index(tar_cache, "image", 0, overlap)
    rows = read_parts(tar_cache.root)["image: rows"]
    assert isinstance(rows, dict)
    assert rows["rows"][(0, 1)] == rows["rows"][(0, 0)]


@pytest.mark.parametrize(
    "make", [lambda data: gzip.compress(data), lambda data: data * 2, lambda data: data[:24], lambda _: b""]
)
def test_an_index_of_another_kind_is_refused(lived: Cache, make: Any) -> None:
    path = lived.commit_path("text", 1, 1)
    write_index(lived, path, make((lived.root / load_record(path)["index"]["file"]).read_bytes()))
    with pytest.raises(DamageError, match="is cut or damaged, or no index that kcache wrote"):
        Snapshot(lived, ["text"])


# --- JSON


def record_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


HOSTILE_JSON = {
    "deep": b"[" * 200_000 + b"]" * 200_000,
    "deep record": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "twice the same key": b'{"shard_size": 4, "shard_size": 5, "checksum": ""}',
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "a lone surrogate": b'{"a": "\\ud800"}',
    "a mark of byte order": b"\xef\xbb\xbf{}",
    "a number of a million digits": b'{"a": ' + b"9" * 1_000_000 + b"}",
    "an exponent": b'{"shard_size": 1e999999999}',
    "nothing": b"",
    "zeros": bytes(4096),
    "a list": b"[1, 2]\n",
}


@pytest.mark.parametrize("data", HOSTILE_JSON.values(), ids=HOSTILE_JSON)
def test_hostile_json_is_refused_wherever_it_stands(lived: Cache, data: bytes) -> None:
    right = read_parts(lived.root)
    for file in sorted(f for f in current_files(lived) if f.endswith((".json", ".jsonl"))):
        path = lived.root / file
        whole = path.read_bytes()
        for harm in (data, sealed(data + b"\n")):
            path.write_bytes(harm)
            parts = read_parts(lived.root)
            assert any(isinstance(part, KcacheError) for part in parts.values()), file
        path.write_bytes(whole)
    assert read_parts(lived.root) == right


def test_the_same_key_twice_is_refused_also_where_checksums_are_right(lived: Cache) -> None:
    path = lived.commit_path("samples", 1, 1)
    line = b'{"id": "sample 4", "id": "other", "captions": ["a"], "sha256": "0", "width": 1, "height": 1}\n'
    data = sealed(line * 4)
    (lived.root / load_record(path)["file"]).write_bytes(data)
    with_record(path, **digests(data))
    with pytest.raises(DamageError, match="does not match its own checksum"):
        lived.samples(1)


def test_a_record_that_is_too_large_is_refused_unread(lived: Cache) -> None:
    shutil.rmtree(lived.root / "index")
    for file in ("kcache.json", "plan/000000.jsonl", "commits/text/000001.000001.json", "columns/text.json"):
        path = lived.root / file
        whole = path.read_bytes()
        os.truncate(path, MAX_BYTES + 1)
        tracemalloc.start()
        said = exercise(lived.root)
        refused = "is damaged: " if file == "kcache.json" else f"has {MAX_BYTES + 1:,} bytes, which is more than"
        assert any(file in one and refused in one for one in said)
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
        tracemalloc.stop()
        path.write_bytes(whole)


def test_what_could_not_be_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kcache.shards.records.MAX_BYTES", 1000)
    with pytest.raises(
        CacheError, match="more than the 1,000 that are read; encode into another folder with a smaller"
    ):
        dump_lines({"id": "x" * 100} for _ in range(10))


# --- what could execute


def test_no_reader_opens_a_tar_an_hdf5_file_or_a_pickle(lived: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    right = read_parts(lived.root)
    shutil.rmtree(lived.root / "index")

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a container was opened")

    for place, name in ((tarfile, "open"), (h5py, "File"), (pickle, "loads"), (pickle, "load"), (np, "load")):
        monkeypatch.setattr(place, name, opened)
    assert read_parts(lived.root) == right
    assert exercise(lived.root) == []


class Bomb:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_in_the_place_of_an_array_is_numbers_and_nothing_else(tmp_path: Path, container: str) -> None:
    cache = make_cache(tmp_path / "cache", container)
    bomb = pickle.dumps(Bomb(tmp_path / "executed"))
    wide = np.frombuffer(bomb + bytes(-len(bomb) % 20), np.float32).reshape(-1)
    cache.extend_plan(["one more"])
    embeds = np.resize(wide, (len(wide) // 3 + 1, 3))
    features = {"text_embeds": embeds, "hidden_states": row("text", 1)["hidden_states"]}
    cache.commit_features(column("text"), 3, [features], ["key"])
    rows = read_parts(cache.root)["text: rows"]
    assert isinstance(rows, dict)
    assert rows["rows"][(3, 0)]["text_embeds"][2] == embeds.tobytes()
    assert not (tmp_path / "executed").exists()


def test_unknown_files_and_fields_change_nothing(lived: Cache) -> None:
    right = read_parts(lived.root)
    for file in (
        "README.md",
        "card.json",
        "text/notes.txt",
        "commits/text/notes",
        "plan/.DS_Store",
        "columns/text.jpg",
    ):
        (lived.root / file).write_bytes(b"from another program")
    assert read_parts(lived.root) == right
    for file in ("kcache.json", "columns/image.2.json", "commits/text/000001.000001.json", "dataset/000002.json"):
        with_record(lived.root / file, note={"of": "a later version"})
    parts = read_parts(lived.root)
    assert {name for name, part in parts.items() if part != right[name]} == {"dataset"}
    assert exercise(lived.root) == []


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (99, "has cache format 99 and this kcache reads format 1; a newer kcache made it: install that, or encode"),
        (0, "has cache format 0, which no kcache has written; encode into another folder"),
        (None, "has cache format None, which no kcache has written; encode into another folder"),
        (True, "has cache format True, which no kcache has written; encode into another folder"),
        ("1", "has cache format '1', which no kcache has written; encode into another folder"),
    ],
)
def test_a_cache_of_another_version_is_refused_by_every_command(
    tar_cache: Cache, pictures: Path, encode: Encode, version: object, sentence: str
) -> None:
    with_record(tar_cache.root / "kcache.json", format_version=version)
    before = tree(tar_cache.root)
    for command in (
        ["info", tar_cache.root],
        ["verify", tar_cache.root],
        ["train", "prior", tar_cache.root, "--output-dir=o"],
    ):
        assert sentence in refused(kcache(*command))
    assert sentence in refused(encode(pictures, tar_cache.root))
    assert tree(tar_cache.root) == before


def test_records_are_told_apart_by_their_digest_alone(tar_cache: Cache) -> None:
    record = json.loads((tar_cache.root / "kcache.json").read_text())
    checksum = record.pop("checksum")
    assert checksum == digest(record)
