"""Several caches as one: the rows of the first, then those of the next, and no id that means two samples."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import done, kcache, refused, tree
from support import ids
from toy_cache import FIELDS, assert_rows, column, make_cache, read_all, row

from kcache.copies import CopyReport, MergeConfig, merge
from kcache.shards import Cache, KcacheError, Snapshot, durable, verify


def a_cache(
    root: Path, numbers: Sequence[int], *, caption: str = "a", aside: Sequence[int] = (), encoder: str = "one"
) -> Cache:
    """A cache of these samples in shards of three, whose keys are those that an encode gives."""
    cache = Cache.create(root, shard_size=3, container="tar")
    cache.extend_plan([f"sample {n}" for n in numbers])
    for name in FIELDS:
        cache.add_column(column(name, encoder), row(name, 99))
    for shard, start in enumerate(range(0, len(numbers), 3)):
        part = numbers[start : start + 3]
        samples: list[dict[str, Any]] = [{"id": f"sample {n}", "captions": [caption], "sha256": str(n)} for n in part]
        samples = [s | ({"set_aside": "bad"} if n in aside else {}) for s, n in zip(samples, part, strict=True)]
        cache.commit_samples(shard, samples, [f"key {n}" for n in part])
        for name in FIELDS:
            keys = [column(name, encoder).key_of(sample) for sample in samples]
            rows = [row(name, n) if key else None for n, key in zip(part, keys, strict=True)]
            cache.commit_features(column(name, encoder), shard, rows, keys)
    return cache


def merged(to: Path, *caches: Cache, **options: Any) -> CopyReport:
    return merge(MergeConfig(tuple(str(cache.root) for cache in caches), str(to), **options))


@pytest.mark.parametrize("options", [{}, {"format": "h5", "shard_size": 4}])
def test_the_rows_of_all_caches_stand_in_their_order(tmp_path: Path, options: dict[str, Any]) -> None:
    one, two, three = (a_cache(tmp_path / str(n), range(n, n + 5)) for n in (0, 10, 20))
    report = merged(tmp_path / "all", one, two, three, **options)
    both = Cache(tmp_path / "all")
    expected = [*range(5), *range(10, 15), *range(20, 25)]
    assert (report.samples, report.repeated) == (15, 0)
    assert ids(both) == [f"sample {n}" for n in expected]
    for name in FIELDS:
        assert_rows(read_all(both, name), [row(name, n) for n in expected])
        assert both.column(name).fingerprint == one.column(name).fingerprint
    assert not verify(both, deep=True).faults


def test_a_sample_that_is_in_two_caches_is_taken_once(tmp_path: Path) -> None:
    one, two = a_cache(tmp_path / "one", range(5)), a_cache(tmp_path / "two", range(3, 8))
    assert merged(tmp_path / "both", one, two).repeated == 2
    assert ids(Cache(tmp_path / "both")) == [f"sample {n}" for n in range(8)]


def test_a_row_without_features_gives_way_to_one_that_has_them(tmp_path: Path) -> None:
    one = a_cache(tmp_path / "one", range(4), aside=[1, 3])
    two = a_cache(tmp_path / "two", [1, 2, 3], aside=[2, 3])
    merged(tmp_path / "both", one, two)
    both = Cache(tmp_path / "both")
    assert ids(both) == ["sample 0", "sample 2", "sample 3", "sample 1"]
    assert_rows(read_all(both, "image"), [row("image", n) for n in (0, 2, 1)])


def test_an_id_that_means_two_samples_is_refused_unless_prefixes_tell_them_apart(tmp_path: Path) -> None:
    one, two = a_cache(tmp_path / "one", range(4)), a_cache(tmp_path / "two", range(2, 6), caption="b")
    with pytest.raises(KcacheError, match=r"2 ids name other pictures or .*: 'sample 2', 'sample 3'; give the ids of"):
        merged(tmp_path / "both", one, two)
    assert not (tmp_path / "both").exists()
    merged(tmp_path / "both", one, two, prefix=("one/", "two/"))
    assert ids(Cache(tmp_path / "both"))[3:5] == ["one/sample 3", "two/sample 2"]


def test_caches_of_other_encoders_or_columns_are_refused(tmp_path: Path) -> None:
    one, two = a_cache(tmp_path / "one", range(4)), a_cache(tmp_path / "two", range(4, 6), encoder="two")
    with pytest.raises(KcacheError, match=r"encoded otherwise than .* \(class is 'one', not 'two'\), so they cannot"):
        merged(tmp_path / "both", one, two)
    (two.root / "columns" / "image.json").unlink()
    shutil.rmtree(two.root / "commits" / "image")
    with pytest.raises(KcacheError, match=r"has the columns text and .* has image, text; add what is missing"):
        merged(tmp_path / "both", one, two)


def test_killed_before_any_step_and_run_again_it_ends_byte_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = a_cache(tmp_path / "one", range(4)), a_cache(tmp_path / "two", range(3, 8))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the process dies here and not the machine
    for cache in (one, two):
        Snapshot(cache, list(FIELDS))  # writes the derived index, which counts for no step
    steps: list[str] = []
    monkeypatch.setattr(durable, "failpoint", steps.append)
    merged(tmp_path / "undisturbed", one, two)
    for step in range(0, len(steps), 13):
        left = iter(range(step))

        def die(name: str, left: Any = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        monkeypatch.setattr(durable, "failpoint", die)
        with pytest.raises(KeyboardInterrupt):
            merged(tmp_path / f"killed-{step}", one, two)
        monkeypatch.setattr(durable, "failpoint", lambda name: None)
        merged(tmp_path / f"killed-{step}", one, two)
        again = {n: d for n, d in tree(tmp_path / f"killed-{step}").items() if durable.TEMPORARY not in n}
        assert again == tree(tmp_path / "undisturbed"), steps[step]


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    one, two = a_cache(tmp_path / "one", range(4)), a_cache(tmp_path / "two", range(3, 8))
    to = tmp_path / "both"
    said = done(kcache("merge", one.root, two.root, to)).stdout
    assert said.startswith(f"Wrote {to}: 8 samples, 1 more came again and were left out; image, text (9 files).\n")
    assert (
        done(kcache("merge", one.root, two.root, to)).stdout == f"{to} holds all of it already: nothing was written.\n"
    )
    done(kcache("merge", one.root, two.root, tmp_path / "apart", "--prefix", "a/", "b/"))
    assert len(ids(Cache(tmp_path / "apart"))) == 9


def test_wrong_usage_is_told_what_to_give(tmp_path: Path) -> None:
    one, two = make_cache(tmp_path / "one"), make_cache(tmp_path / "two")
    said = refused(kcache("merge", one.root, tmp_path / "both"), code=2)
    assert said == "name two caches or more, and then the folder of the new one"
    said = refused(kcache("merge", one.root, two.root, tmp_path / "both", "--prefix", "a/"), code=2)
    assert said == "--prefix has 1 of the 2 prefixes; give one for each cache, '' for none"
