"""A cache written anew in other files: the same rows, values, keys and fingerprints, wherever it was killed."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import Encode, copy_old, done, encode_with, kcache, refused, tree
from folders import write_rows
from support import flip, ids
from toy_cache import SAMPLES, assert_rows, make_cache, read_all, row, shard_file

from kcache.copies import ConvertConfig, convert
from kcache.shards import Cache, CacheError, DamageError, KcacheError, Snapshot, durable, layout, read_null, verify
from kcache.shards.diff import diff

OTHER = {"tar": "h5", "h5": "tar"}


def converted(cache: Cache, to: Path, **options: Any) -> Cache:
    convert(ConvertConfig(str(cache.root), str(to), **options))
    return Cache(to)


def stored(cache: Cache) -> dict[str, bytes]:
    """All but what is derived, and files half made by this process, which only another one may remove."""
    files = tree(cache.root, without=("index/", layout.CARD))
    return {name: data for name, data in files.items() if durable.TEMPORARY not in name}


def test_values_keys_and_fingerprints_are_the_same(cache: Cache, tmp_path: Path) -> None:
    other = converted(cache, tmp_path / "other", format=OTHER[cache.container])
    assert other.container == OTHER[cache.container]
    assert ids(other) == ids(cache)
    for name in ("text", "image"):
        assert other.column(name).fingerprint == cache.column(name).fingerprint
        assert_rows(read_all(other, name), [row(name, n) for n in range(SAMPLES)])
        assert_rows([dict(read_null(other, other.column(name)))], [row(name, 99)])
        for shard in range(3):
            assert other.commit(name, shard, 1).keys == cache.commit(name, shard, 1).keys
    assert not verify(other, deep=True).faults
    assert not diff(cache, other, deep=True).differs


def test_there_and_back_again_every_byte_is_the_same(cache: Cache, tmp_path: Path) -> None:
    there = converted(cache, tmp_path / "there", format=OTHER[cache.container])
    back = converted(there, tmp_path / "back", format=cache.container)
    assert stored(back) == stored(cache)


@pytest.mark.parametrize("shard_size", [3, 100])
def test_shards_are_cut_anew(cache: Cache, tmp_path: Path, shard_size: int) -> None:
    other = converted(cache, tmp_path / "other", shard_size=shard_size)
    assert other.shard_count == -(-SAMPLES // shard_size)
    assert ids(other) == ids(cache)
    for name in ("text", "image"):
        assert_rows(read_all(other, name), [row(name, n) for n in range(SAMPLES)])
    assert not diff(cache, other, deep=True).differs
    assert stored(converted(other, tmp_path / "back", shard_size=cache.shard_size)) == stored(cache)


@pytest.mark.parametrize("options", [{"format": "h5"}, {"shard_size": 3}])
def test_rows_that_were_set_aside_stay_so(tmp_path: Path, options: dict[str, Any]) -> None:
    cache = make_cache(tmp_path / "cache", aside=frozenset({2, 7}))
    other = converted(cache, tmp_path / "other", **options)
    assert [row[0] * other.shard_size + row[1] for row in Snapshot(other, ["image"]).rows.tolist()] == [
        n for n in range(SAMPLES) if n not in (2, 7)
    ]
    assert not diff(cache, other, deep=True).differs


@pytest.mark.parametrize("options", [{"format": "h5"}, {"shard_size": 3}])
def test_killed_before_any_step_and_run_again_it_ends_byte_identical(
    tar_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the process dies here and not the machine
    Snapshot(tar_cache, ["image", "text"])  # writes the source's derived index, which counts for no step
    steps: list[str] = []
    monkeypatch.setattr(durable, "failpoint", steps.append)
    undisturbed = stored(converted(tar_cache, tmp_path / "undisturbed", **options))
    assert len(steps) > 100
    for step in range(0, len(steps), 11):
        left = iter(range(step))

        def die(name: str, left: Any = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        to = tmp_path / f"killed-{step}"
        monkeypatch.setattr(durable, "failpoint", die)
        with pytest.raises(KeyboardInterrupt):
            converted(tar_cache, to, **options)
        monkeypatch.setattr(durable, "failpoint", lambda name: None)
        if (to / "kcache.json").exists():
            assert not verify(Cache(to), deep=True).faults
        assert stored(converted(tar_cache, to, **options)) == undisturbed, steps[step]


def test_run_again_it_writes_nothing(tar_cache: Cache, tmp_path: Path) -> None:
    converted(tar_cache, tmp_path / "other")
    assert convert(ConvertConfig(str(tar_cache.root), str(tmp_path / "other"))).written == 0


def test_a_damaged_row_is_not_copied(tar_cache: Cache, tmp_path: Path) -> None:
    entries = Snapshot(tar_cache, ["image"]).pinned["image"].entries
    flip(shard_file(tar_cache, "image", 1), int(entries[5, 0]["offset"]))
    with pytest.raises(DamageError, match=r"field 'image_embeds' of sample 'sample 5' is damaged; run 'kcache verify"):
        converted(tar_cache, tmp_path / "other")


def test_a_cache_that_holds_something_else_is_not_written_to(tar_cache: Cache, tmp_path: Path) -> None:
    other = Cache.create(tmp_path / "other", shard_size=4, container="tar")
    other.extend_plan(["another sample"])
    before = tree(other.root)
    with pytest.raises(CacheError, match=r"holds something else than this copy \(plan/000000.jsonl has other samples"):
        converted(tar_cache, other.root)
    assert tree(other.root) == before
    with pytest.raises(KcacheError, match=r"has \.tar shards of 4 samples and not \.h5 shards of 4; name another"):
        converted(tar_cache, other.root, format="h5")


def test_it_is_not_converted_into_itself(tar_cache: Cache) -> None:
    assert refused(kcache("convert", tar_cache.root, tar_cache.root, "--format=h5"), code=2).endswith(
        "itself or lies in it; name another folder for the new cache"
    )


def test_an_unfinished_cache_keeps_what_it_lacks_or_is_to_be_finished(tar_cache: Cache, tmp_path: Path) -> None:
    (tar_cache.root / layout.commit("image", 1, 1)).unlink()
    other = converted(tar_cache, tmp_path / "other", format="h5")
    assert list(other.commits("image")) == [0, 2]
    assert list(other.commits("text")) == [0, 1, 2]
    with pytest.raises(CacheError, match="1 of 3 shards lack image or text; finish with 'kcache encode DATASET"):
        converted(tar_cache, tmp_path / "cut", shard_size=3)
    assert not (tmp_path / "cut").exists()


# --- caches with a history, through the command line


@pytest.fixture(scope="module")
def lived(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, pictures: Path, tiny_prior: Path, tiny_decoder: Path
) -> tuple[Path, Path]:
    """A dataset and its cache after edits, removals, a mistake and a replaced column."""
    folder, encode = tmp_path_factory.mktemp("lived"), encode_with(tiny_prior, tiny_decoder)
    dataset, cache = copy_old(pictures, folder / "dataset"), folder / "cache"
    shutil.copytree(whole, cache)
    shutil.copy(dataset / "apple.webp", dataset / "another.webp")
    (dataset / "flat.png").rename(dataset / "renamed.png")
    (dataset / "grey.png").unlink()
    captions = {path.relative_to(dataset).as_posix(): "edited" for path in dataset.rglob("*.*p*g")}
    write_rows(dataset, captions | {"apple.webp": "red apple", "another.webp": ["another", "apple"]})
    done(encode(dataset, cache, "--prune"), code=3)
    done(encode(dataset, cache, "--replace-column=text", "--store-dtype=fp32", "--columns", "text"), code=3)
    return dataset, cache


@pytest.mark.parametrize("options", [["--format=h5"], ["--format=h5", "--shard-size=3"]])
def test_an_encode_goes_on_with_the_copy_as_with_the_cache(
    encode: Encode, lived: tuple[Path, Path], tmp_path: Path, options: list[str]
) -> None:
    dataset, cache = lived
    other = tmp_path / "other"
    done(kcache("convert", cache, other, *options))
    assert done(kcache("diff", cache, other, "--deep", "--exit-code")).stdout.startswith("No difference in ")
    columns = ["--columns", "image", "latents"]
    said = [done(encode(dataset, root, *columns), code=3).stderr.splitlines() for root in (cache, other)]
    assert said[0][:2] == said[1][:2]
    assert all("changed 0 / new 0" in line for line in said[1][:2])
    assert done(kcache("info", other)).stdout.splitlines()[1:2] == done(kcache("info", cache)).stdout.splitlines()[1:2]


def test_rows_that_lag_behind_their_samples_lag_behind_in_the_copy(
    encode: Encode, pictures: Path, whole: Path, tmp_path: Path
) -> None:
    dataset, cache = copy_old(pictures, tmp_path / "dataset"), tmp_path / "behind"
    shutil.copytree(whole, cache)
    shutil.copy(dataset / "apple.webp", dataset / "grey.png")
    done(encode(dataset, cache, "--columns", "image"))
    done(kcache("convert", cache, tmp_path / "other", "--format=h5"))
    for folder in (cache, tmp_path / "other"):
        assert "behind their samples: 1 in 'latents-32'" in done(kcache("info", folder)).stdout
        with pytest.raises(CacheError, match=r"features of samples that have changed since \(1 in 'latents-32'\)"):
            Snapshot(Cache(folder), ["latents-32"])


def test_the_command_says_what_it_wrote_and_what_comes_next(tar_cache: Cache, tmp_path: Path) -> None:
    to = tmp_path / "other"
    said = done(kcache("convert", tar_cache.root, to, "--format=h5")).stdout
    assert said == f"Wrote {to}: 10 samples, image, text (9 files).\nNext: kcache diff {tar_cache.root} {to}\n"
    again = done(kcache("convert", tar_cache.root, to, "--format=h5")).stdout
    assert again == f"{to} holds all of it already: nothing was written.\n"
