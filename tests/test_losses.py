"""A commit or a record of a column that is gone is called a loss by everyone who could make it one for good."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Encode, checkpoint_options, done, kcache, refused, tree
from toy_cache import FIELDS, column, make_cache, read_all, row, sample

from kcache.copies import ConvertConfig, MergeConfig, compact, convert, merge
from kcache.shards import Cache, DamageError, Snapshot, layout, verify
from kcache.shards.cache import NO_ROOT_RECORD
from kcache.shards.clearing import clear
from kcache.shards.diff import diff
from kcache.shards.joined import export_joined
from kcache.shards.leftovers import find_leftovers
from kcache.shards.losses import lost_samples
from kcache.shards.repair import repair
from kcache.shards.summary import summarize

LOST = {
    "samples": "commits/samples/000001.000001.json",
    "record": "columns/image.json",
}


@pytest.fixture(params=LOST)
def lossy(request: pytest.FixtureRequest, tar_cache: Cache) -> tuple[Cache, str]:
    """A toy cache without one small file, and what that is called."""
    (tar_cache.root / LOST[request.param]).unlink()
    return Cache(tar_cache.root), LOST[request.param]


def test_verify_calls_it_a_fault(lossy: tuple[Cache, str]) -> None:
    cache, lost = lossy
    result = verify(cache)
    assert [fault.path for fault in result.faults] == [lost]
    assert result.faults[0].problem.startswith("is missing, though ")
    assert not any(result.missing_shards.values())


USES: dict[str, Callable[[Cache, Path], object]] = {
    "compact": lambda cache, to: compact(str(cache.root), str(to)),
    "convert": lambda cache, to: convert(ConvertConfig(str(cache.root), str(to))),
    "merge": lambda cache, to: merge(
        MergeConfig((str(make_cache(to.with_name("whole")).root), str(cache.root)), str(to), ("a/", "b/"))
    ),
    "export": export_joined,
    "info": lambda cache, to: summarize(cache),
    "diff": lambda cache, to: diff(cache, make_cache(to.with_name("whole"))),
    "gc": lambda cache, to: find_leftovers(cache, 0),
}


@pytest.mark.parametrize("use", USES)
def test_who_would_do_without_it_refuses_with_what_brings_it_back(
    lossy: tuple[Cache, str], tmp_path: Path, use: str
) -> None:
    cache, lost = lossy
    before = tree(cache.root, without=("index",))
    with pytest.raises(DamageError) as refusal:
        USES[use](cache, tmp_path / "to")
    said = str(refusal.value)
    assert said.startswith(f"{cache.name}/{lost} is missing, though ")
    assert said.endswith(f"; to bring it back, run 'kcache verify {cache.name} --repair --dataset DATASET'")
    assert not (tmp_path / "to").exists()
    assert tree(cache.root, without=("index",)) == before


@pytest.mark.parametrize("lost", LOST.values())
def test_the_commands_refuse_it_with_one_sentence_and_the_repair_brings_back_every_byte(
    whole: Path, pictures: Path, encode: Encode, tmp_path: Path, tiny_prior: Path, tiny_decoder: Path, lost: str
) -> None:
    root = Path(shutil.copytree(whole, tmp_path / "cache"))
    before = tree(root, without=("index",))
    (root / lost).unlink()
    for result in (
        encode(pictures, root),
        kcache("gc", root, "--yes", "--min-age=0"),
        kcache("info", root),
        kcache("gc", root, "--compact", tmp_path / "to"),
    ):
        assert refused(result).startswith(f"{root}/{lost} is missing, though ")
    assert f"{lost}: is missing, though " in done(kcache("verify", root), code=1).stdout
    options = [*checkpoint_options(tiny_prior, tiny_decoder), "--device=cpu", "--batch-size=3"]
    said = done(kcache("verify", root, "--repair", "--dataset", pictures, *options)).stdout
    assert "encoded again" not in said
    assert tree(root, without=("index",)) == before


def test_a_samples_commit_is_written_from_the_one_file_that_no_other_names_without_the_dataset(cache: Cache) -> None:
    before = read_all(cache, "text")
    cache.commit_path("samples", 1, 1).unlink()
    said = repair(cache.root)
    assert (said.mended, bool(said.lost)) == (
        [f"{LOST['samples']}: written again from {cache.commit('samples', 1, 1).file}"],
        False,
    )
    assert verify(Cache(cache.root), deep=True).faults == []
    assert str(read_all(cache, "text")) == str(before)


def test_samples_that_are_newer_than_features_get_a_generation_that_says_so(tar_cache: Cache) -> None:
    newer = [{**sample(n), "captions": ["b"]} for n in range(4, 8)]
    tar_cache.commit_samples(1, newer, [f"key {n}" for n in range(4, 8)], 2)
    clear(tar_cache, find_leftovers(tar_cache, 0), 0)
    tar_cache.commit_path("samples", 1, 2).unlink()
    repair(tar_cache.root)
    assert tar_cache.samples(1, 2) == newer
    assert Snapshot(tar_cache, ["text"], partial=True).stale_rows == 4


def test_samples_of_which_nothing_is_left_are_read_from_the_dataset(
    whole: Path, pictures: Path, tmp_path: Path, tiny_prior: Path, tiny_decoder: Path
) -> None:
    root = Path(shutil.copytree(whole, tmp_path / "cache"))
    before = tree(root, without=("index",))
    (root / Cache(root).commit("samples", 1, 1).file).unlink()
    (root / LOST["samples"]).unlink()
    assert "Lost: the samples of 1 shard;" in done(kcache("verify", root, "--repair"), code=1).stdout
    options = [*checkpoint_options(tiny_prior, tiny_decoder), "--device=cpu", "--batch-size=3"]
    said = done(kcache("verify", root, "--repair", "--dataset", pictures, *options)).stdout
    assert "encoded again" not in said
    assert tree(root, without=("index",)) == before


def test_shards_that_a_kill_left_without_features_or_anything_are_no_loss(tar_cache: Cache) -> None:
    for name in FIELDS:
        tar_cache.commit_path(name, 2, 1).unlink()
    tar_cache.commit_path("text", 1, 1).unlink()
    assert lost_samples(tar_cache) == {}
    result = verify(tar_cache)
    assert (result.faults, result.missing_shards) == ([], {"samples": 0, "image": 1, "text": 2})
    tar_cache.commit_path("samples", 2, 1).unlink()
    assert verify(tar_cache).faults == []
    assert verify(tar_cache).missing_shards["samples"] == 1


def test_gc_keeps_the_files_of_shards_without_a_commit_however_old(cache: Cache) -> None:
    expected = tree(cache.root, without=("commits", "index"))
    for name, shard in (("text", 1), ("samples", 2), ("image", 2), ("text", 2)):
        cache.commit_path(name, shard, 1).unlink()
    for path in cache.root.rglob("*"):
        os.utime(path, (1, 1))
    found = find_leftovers(cache, 0)
    assert {one.path.split("-")[0] for one in found.unfinished} == {
        "text/000001",
        "text/000002",
        "image/000002",
        "samples/000002",
    }
    assert found.found == []
    clear(cache, found, 0)
    assert tree(cache.root, without=("commits", "index")) == expected
    said = done(kcache("gc", cache.root, "--yes", "--min-age=0")).stdout
    assert "Kept, of shards that are not encoded yet: 7 files" in said
    cache.commit_features(
        column("text"), 1, [row("text", 50 + n) for n in range(4)], [column("text").key_of(sample(n)) for n in range(4)]
    )
    assert {one.path.split("-")[0] for one in find_leftovers(cache, 0).found} == {"text/000001"}


def test_an_encode_after_a_rename_does_not_take_lost_samples_for_new_ones(
    whole: Path, pictures: Path, encode: Encode, tmp_path: Path
) -> None:
    root, dataset = Path(shutil.copytree(whole, tmp_path / "cache")), Path(shutil.copytree(pictures, tmp_path / "data"))
    (root / LOST["samples"]).unlink()
    name = Cache(root).planned_ids(1)[0]
    (dataset / name).rename(dataset / "renamed.png")
    before = tree(root)
    assert "000001.000001.json is missing, though features" in refused(encode(dataset, root))
    assert tree(root) == before


# --- what verify and others say


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("samples/000001-*.jsonl", "is missing"),
        ("image/000001-*.idx", "is missing"),
        ("columns/text.json", "is missing, though shards of its column were committed"),
        ("plan/000001.jsonl", "is missing"),
        ("commits/text/000001.000001.json", None),
    ],
)
def test_verify_names_a_missing_file_once_and_does_not_advise_itself(
    tar_cache: Cache, file: str, problem: str | None
) -> None:
    (path,) = tar_cache.root.glob(file)
    path.unlink()
    name = path.relative_to(tar_cache.root).as_posix()
    faults = verify(Cache(tar_cache.root)).faults
    assert [(fault.path, fault.problem) for fault in faults] == ([(name, problem)] if problem else [])


def test_verify_says_of_a_damaged_file_what_it_is_and_not_to_verify(tar_cache: Cache) -> None:
    for path in [path for pattern in ("*/0000*", "commits/*/*", "columns/*") for path in tar_cache.root.glob(pattern)]:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        faults = verify(Cache(tar_cache.root)).faults
        assert faults, path
        for fault in faults:
            assert "kcache verify" not in fault.problem
            assert fault.path not in fault.problem
            assert str(tar_cache.root) not in fault.problem
        path.write_bytes(data)


def test_a_missing_plan_does_not_hide_other_damage(tar_cache: Cache) -> None:
    (tar_cache.root / layout.plan(0)).unlink()
    index = tar_cache.commit("text", 2, 1).files[1]
    (tar_cache.root / index).unlink()
    result = verify(Cache(tar_cache.root))
    assert {fault.path for fault in result.faults} == {layout.plan(0), index}
    assert (result.files, result.rows["samples"]) == (9, 10)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_lost_root_record_is_told_what_brings_it_back(
    tar_cache: Cache, pictures: Path, encode: Encode, damage: str
) -> None:
    root, path = tar_cache.root, tar_cache.root / layout.ROOT_RECORD
    whole = path.read_bytes()
    path.write_bytes(whole[:20]) if damage == "cut" else path.unlink()
    what = "is damaged" if damage == "cut" else "is missing"
    for result in (
        kcache("verify", root),
        kcache("verify", root, "--repair"),
        kcache("info", root),
        encode(pictures, root),
    ):
        assert refused(result) == f"{root}/kcache.json {what}: {NO_ROOT_RECORD}"
    shutil.copy(make_cache(root.with_name("another")).root / layout.ROOT_RECORD, path)
    assert path.read_bytes() == whole
    assert verify(Cache(root), deep=True).faults == []
