"""Arbitrary bytes and arbitrary records in the place of a cache's own: whatever they are, the answer is a sentence."""

import contextlib
import json
import os
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lived_cache import current_files, lived_cache, read_parts, within
from strangers import as_record, exercise, with_index
from toy_cache import with_record

from kcache.shards import Cache, KcacheError, layout
from kcache.shards.columns import Column
from kcache.shards.commits import Commit, digests
from kcache.shards.index import ENTRY, load_index
from kcache.shards.records import digest, load_lines, load_record, sealed

FEW = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(FEW, max_examples=1_000, phases=[Phase.generate])
HOSTILE: list[Any] = [
    -1, 0, 1, 2**31, 2**32, 2**63, 2**64, 10**40, 1e308, float("nan"), float("inf"), True, None, "", "..", "/",
    "x" * 5000, "../../x", "text/000000-aaaaaaaa.tar", "image.2/000000-00000000.idx", "\0", "é", [], {},
    [None], [[[]]], {"": {}}, [{}], ["a"] * 500,
]  # fmt: skip


NAMES = st.text(max_size=40) | st.from_regex(r"[a-z0-9./-]{1,30}", fullmatch=True)


@pytest.fixture(scope="module")
def _unicode_tables() -> None:
    """Hypothesis builds tables of all characters for the first text it draws in a fresh clone: 200 MB of its own."""
    settings(max_examples=1, database=None)(given(NAMES)(lambda name: None))()


@pytest.fixture(autouse=True)
def _bounded(_unicode_tables: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing hangs, and nothing takes more memory than the cache could explain."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    tracemalloc.start()
    with within(3000):
        yield
    assert tracemalloc.get_traced_memory()[1] < 128 * 2**20
    tracemalloc.stop()


@pytest.fixture(scope="module", params=["tar", "h5"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return lived_cache(tmp_path_factory.mktemp("whole") / "cache", request.param)


def changed(whole: Cache) -> Cache:
    """A copy to change."""
    root = whole.root.with_name("changed")
    shutil.rmtree(root, ignore_errors=True)
    return Cache(shutil.copytree(whole.root, root, ignore=shutil.ignore_patterns("index")))


# --- bytes


def mangle(data: bytes, draw: st.DataObject) -> bytes:
    """Bytes put in, taken out or replaced at one to three places."""
    for _ in range(draw.draw(st.integers(1, 3))):
        start = draw.draw(st.integers(0, len(data)))
        end = draw.draw(st.integers(start, min(len(data), start + 600)))
        data = data[:start] + draw.draw(st.binary(max_size=40)) + data[end:]
    return data


def check_bytes(whole: Cache, draw: st.DataObject) -> None:
    right, cache = read_parts(whole.root), changed(whole)
    file = draw.draw(st.sampled_from(sorted(current_files(cache))))
    data = (cache.root / file).read_bytes()
    new = draw.draw(st.binary(max_size=2000)) if draw.draw(st.booleans()) else mangle(data, draw)
    (cache.root / file).write_bytes(new)
    parts = read_parts(cache.root)
    wrong = [name for name, part in parts.items() if not isinstance(part, KcacheError) and part != right[name]]
    assert wrong == []
    if new != data:
        assert exercise(cache.root)


@FEW
@given(draw=st.data())
def test_other_bytes_in_any_file_give_what_was_written_or_a_sentence(whole: Cache, draw: st.DataObject) -> None:
    check_bytes(whole, draw)


@pytest.mark.torture
@MANY
@given(draw=st.data())
def test_many_other_bytes_in_any_file_give_what_was_written_or_a_sentence(whole: Cache, draw: st.DataObject) -> None:
    check_bytes(whole, draw)


# --- records whose checksums are right


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a JSON value, itself the first."""
    yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths(part, (*path, key))


def changed_value(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a JSON value with another one at the end of a way."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed_value(value[path[0]], path[1:], new)
    return copy


def check_records(whole: Cache, draw: st.DataObject) -> None:
    cache = changed(whole)
    records = sorted(file for file in current_files(cache) if file.endswith((".json", ".jsonl")))
    path = cache.root / draw.draw(st.sampled_from(records))
    value: Any = load_lines(path, **plan_of(path)) if path.suffix == ".jsonl" else load_record(path)
    place = draw.draw(st.sampled_from(list(paths(value))))
    value = changed_value(value, place, draw.draw(st.sampled_from(HOSTILE)))
    if path.suffix == ".jsonl":
        body = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in value) if type(value) is list else "{}\n"
        path.write_bytes(sealed(body.encode(), **plan_of(path)))
    else:
        if path.parent.name == "columns" and isinstance(value, dict):
            parts = ("fields", "encoder", "preprocessing", "encode_dtype")
            value["fingerprint"] = digest({part: value[part] for part in parts})
        path.write_bytes(as_record(value))
    if path.suffix == ".jsonl" and path.parent.name == "samples":
        commit = cache.commit_path("samples", int(path.name[:6]), cache.commits("samples")[int(path.name[:6])])
        with_record(commit, **digests(path.read_bytes()))
    exercise(cache.root)


def plan_of(path: Path) -> dict[str, int]:
    return {"shard": int(path.stem)} if path.parent.name == "plan" else {}


@FEW
@given(draw=st.data())
def test_any_value_in_any_record_is_read_or_refused_with_a_sentence(whole: Cache, draw: st.DataObject) -> None:
    check_records(whole, draw)


@pytest.mark.torture
@MANY
@given(draw=st.data())
def test_many_values_in_any_record_are_read_or_refused_with_a_sentence(whole: Cache, draw: st.DataObject) -> None:
    check_records(whole, draw)


# --- indexes, names and the parsers alone


@FEW
@given(draw=st.data())
def test_any_index_is_read_or_refused_with_a_sentence(whole: Cache, draw: st.DataObject) -> None:
    cache = changed(whole)
    numbers = st.sampled_from([0, 1, 12, 512, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
    new = st.tuples(st.sampled_from([0, 2**63, 2**64 - 1]) | numbers, numbers, numbers)

    def change(entries: Any) -> None:
        for _ in range(draw.draw(st.integers(1, 4))):
            at = (draw.draw(st.integers(0, len(entries) - 1)), draw.draw(st.integers(0, entries.shape[1] - 1)))
            entries[at] = np.array(draw.draw(new), ENTRY)

    with_index(cache, draw.draw(st.sampled_from(["text", "image"])), draw.draw(st.integers(0, 2)), change)
    exercise(cache.root)


@settings(FEW, max_examples=80)
@given(data=st.binary(max_size=300))
def test_the_parsers_take_any_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    for written in (data, sealed(data), b"KCACHEIX" + data):
        path.write_bytes(written)
        for read in (load_record, load_lines, Commit.load, lambda path: Column.from_record(load_record(path))):
            with contextlib.suppress(KcacheError):
                assert read(path) == []  # no bytes, sealed
        with pytest.raises(KcacheError):
            load_index(written, "x.idx")


@settings(FEW, max_examples=100)
@given(name=NAMES)
def test_names_are_parsed_or_not_and_never_lead_out(name: str) -> None:
    for parse in (layout.parse_commit, layout.parse_column, layout.parse_stem, layout.parse_number):
        parse(name)
    if layout.is_inside(name):
        assert (Path("/cache") / name).resolve().is_relative_to("/cache")
        assert len(Path(name).parts) == 2
