"""`kcache verify --repair` brings back what is damaged, from the disk or the dataset, and says what it cannot."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Encode, checkpoint_options, copy_old, counted, done, kcache, refused, tree
from support import features, flip
from toy_cache import FIELDS, column, make_cache, read_all, row, sample

from kcache.shards import Cache, Snapshot, durable, layout, verify
from kcache.shards.commits import samples_key
from kcache.shards.repair import repair
from kcache.shards.salvage import LOST


def sound(root: Path) -> dict[str, bytes]:
    """All of a cache but ``index/``, after a deep look that found no fault."""
    assert verify(Cache(root), deep=True).faults == []
    return tree(root, without=("index",))


# --- what the disk alone brings back


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_an_index_is_written_again_from_its_shard(cache: Cache, damage: str) -> None:
    before = sound(cache.root)
    for path in cache.root.glob("*/*.idx"):
        if path.parent.name in FIELDS:
            harm(path, damage)
    said = repair(cache.root)
    assert (len(said.mended), bool(said.lost)) == (6, False)
    assert sound(cache.root) == before


def harm(path: Path, damage: str) -> None:
    """Damage one file in one of the ways in which disks do."""
    if damage == "flip":
        flip(path, path.stat().st_size // 2)
    elif damage == "gone":
        path.unlink()
    else:
        os.truncate(path, 0 if damage == "empty" else path.stat().st_size - 1)


def test_bytes_between_the_samples_are_written_again(tar_cache: Cache) -> None:
    before = sound(tar_cache.root)
    flip(tar_cache.root / tar_cache.commit("image", 1, 1).file, -1)
    assert not repair(tar_cache.root).lost
    assert sound(tar_cache.root) == before


def test_damaged_rows_are_copied_from_an_older_generation_that_has_them(cache: Cache) -> None:
    samples = [sample(0), sample(1), sample(2), {**sample(3), "sha256": "1"}]
    keys = [column("image").key_of(one) for one in samples]
    cache.commit_samples(0, samples, [f"key {n}" for n in (0, 1, 2, 33)], 2)
    cache.commit_features(column("image"), 0, [row("image", n) for n in (0, 1, 2, 33)], keys, 2)
    before = sound(cache.root)
    entries = Snapshot(cache, ["image"]).pinned["image"].entries
    flip(cache.root / cache.commit("image", 0, 2).file, int(entries[1, 0]["offset"]))
    assert not repair(cache.root).lost
    assert sound(cache.root) == before
    flip(cache.root / cache.commit("image", 0, 2).file, int(entries[3, 0]["offset"]))
    (left,) = repair(cache.root).lost.commits.values()
    assert left.keys == (*keys[:3], LOST)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_plan_is_written_again_from_the_samples(tar_cache: Cache, damage: str) -> None:
    before = sound(tar_cache.root)
    for path in tar_cache.root.glob("plan/*"):
        harm(path, damage)
    assert len(repair(tar_cache.root).mended) == 3
    assert sound(tar_cache.root) == before


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_commit_of_samples_is_written_again_from_the_one_file_it_can_have_named(
    tar_cache: Cache, damage: str
) -> None:
    before = sound(tar_cache.root)
    path = tar_cache.commit_path("samples", 1, 1)
    harm(path, damage)
    assert not repair(tar_cache.root).lost
    after = sound(tar_cache.root)
    commit = layout.commit("samples", 1, 1)
    assert {**after, commit: b""} == {**before, commit: b""}
    assert tar_cache.commit("samples", 1, 1).keys == tuple(samples_key(sample(n), None) for n in range(4, 8))


def test_samples_whose_last_commit_is_missing_are_found_by_their_features(cache: Cache) -> None:
    samples = [{**sample(n), "captions": ["b"]} for n in range(4)]
    cache.commit_samples(0, samples, [f"key {n}" for n in range(4)], 2)
    keys = [column("text").key_of(one) for one in samples]
    cache.commit_features(column("text"), 0, [row("text", n) for n in range(4)], keys, 2)
    cache.commit_path("samples", 0, 2).unlink()
    assert not repair(cache.root).lost
    sound(cache.root)
    assert cache.samples(0) == samples


def test_a_whole_cache_is_left_as_it_is(cache: Cache) -> None:
    before = sound(cache.root)
    Snapshot(cache, list(FIELDS))
    said = repair(cache.root)
    assert (said.mended, bool(said.lost)) == ([], False)
    assert sound(cache.root) == before
    assert len(read_all(cache, "image")) == 10


def test_a_repair_that_is_killed_at_any_step_is_ended_by_a_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sound(make_cache(tmp_path / "whole").root)
    for step in range(100):
        cache = make_cache(tmp_path / f"killed-{step}")
        for path in [*cache.root.glob("text/000000*.idx"), cache.root / layout.plan(1)]:
            harm(path, "cut")
        left = iter(range(step, -1, -1))

        def die(name: str, left: Iterator[int] = left) -> None:
            if next(left, 1) == 0:  # not again for what is tidied up on the way out
                raise KeyboardInterrupt

        monkeypatch.setattr(durable, "failpoint", die)
        try:
            repair(cache.root)
            break
        except KeyboardInterrupt:
            monkeypatch.setattr(durable, "failpoint", lambda name: None)
        assert not repair(cache.root).lost
        assert whole_files(cache.root) == before
    monkeypatch.setattr(durable, "failpoint", lambda name: None)
    assert step > 6
    assert sound(cache.root) == before


def whole_files(root: Path) -> dict[str, bytes]:
    """What is `sound`, without the temp files of this process, which was not killed for good."""
    return {name: data for name, data in sound(root).items() if durable.TEMPORARY not in name}


# --- what the dataset brings back


@pytest.fixture
def start(pictures: Path, whole: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the ten pictures and of a cache of theirs."""
    return copy_old(pictures, tmp_path / "pictures"), Path(shutil.copytree(whole, tmp_path / "cache"))


Repaired = Callable[[], Any]


@pytest.fixture
def repaired(start: tuple[Path, Path], tiny_prior: Path, tiny_decoder: Path) -> Repaired:
    """Run the repair with the dataset; its result, after a look whether the cache is sound and has all its features."""
    dataset, cache = start
    values = {name: features(Cache(cache), name) for name in Cache(cache).column_names()}

    def run() -> Any:
        options = [*checkpoint_options(tiny_prior, tiny_decoder), "--device=cpu", "--batch-size=3"]
        result = done(kcache("verify", cache, "--repair", "--dataset", dataset, *options))
        assert result.stdout.splitlines()[-1].startswith("No fault in ")
        sound(cache)
        for name, samples in values.items():
            now = features(Cache(cache), name)
            assert list(now) == list(samples)
            for sample_id, fields in samples.items():
                for field, array in fields.items():  # a batch of other rows moves the last bit
                    np.testing.assert_allclose(now[sample_id][field], array, rtol=2e-3, atol=2e-3)
        return result

    return run


@pytest.mark.parametrize("name", ["text", "image", "latents-32"])
def test_one_damaged_row_is_encoded_again_and_its_neighbours_keep_their_bytes(
    start: tuple[Path, Path], repaired: Repaired, name: str
) -> None:
    _, root = start
    cache = Cache(root)
    entries, commit = Snapshot(cache, [name]).pinned[name].entries, cache.commit(name, 1, 1)
    before = features(cache, name)
    flip(root / commit.file, int(entries[6, 0]["offset"]) + 1)
    said = done(kcache("verify", root, "--repair"), code=1).stdout
    assert f"Lost: 1 row of '{name}'; 'kcache verify {root} --repair --dataset DATASET' makes them again" in said
    result = repaired()
    assert f"{name}: 1 row encoded again" in result.stdout
    assert sum(" encoded again" in line for line in result.stdout.splitlines()) == 1
    damaged, now = cache.ids(1)[2], features(cache, name)
    assert str({**now, damaged: 0}) == str({**before, damaged: 0})
    assert cache.commit(name, 1, 2).keys == commit.keys
    done(kcache("gc", root, "--yes", "--min-age=0"))
    sound(root)


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_shard_that_is_gone_or_cut_is_encoded_again(
    start: tuple[Path, Path], repaired: Repaired, damage: str
) -> None:
    root = start[1]
    path = root / Cache(root).commit("image", 2, 1).file
    harm(path, damage)
    assert "--repair --dataset DATASET" in done(kcache("verify", root), code=1).stdout
    result = repaired()
    assert "image: 2 rows encoded again" in result.stdout or damage == "cut"
    assert "text:" not in result.stdout


@pytest.mark.parametrize("kind", ["text", "image", "latents-32", "samples"])
@pytest.mark.parametrize("damage", ["flip", "empty"])
def test_a_commit_that_is_damaged_is_written_again_from_what_it_named(
    start: tuple[Path, Path], repaired: Repaired, kind: str, damage: str
) -> None:
    root = start[1]
    before = sound(root)
    harm(Cache(root).commit_path(kind, 1, 1), damage)
    said = repaired().stdout
    assert f"commits/{kind}/000001.000001.json: written again from {kind}/000001-" in said
    assert "encoded again" not in said
    assert sound(root) == before


def test_a_commit_of_an_edited_shard_is_never_guessed(
    start: tuple[Path, Path], repaired: Repaired, encode: Encode
) -> None:
    dataset, root = start
    edit(dataset, "turtle", "tortoise")
    done(encode(dataset, root))
    (shard,) = [shard for shard, generation in Cache(root).commits("text").items() if generation == 2]
    harm(Cache(root).commit_path("text", shard, 2), "flip")
    result = done(kcache("verify", root, "--repair", "--dataset", dataset, "--device=cpu", "--batch-size=3"))
    assert "text: 1 row encoded again" in result.stdout
    assert Cache(root).commits("text")[shard] == 3
    assert counted(done(encode(dataset, root)))["text"]["hit"] == 10


def edit(dataset: Path, old: str, new: str) -> None:
    metadata = dataset / "metadata.jsonl"
    text = metadata.read_text("utf-8")
    assert old in text
    metadata.write_text(text.replace(old, new), "utf-8")


@pytest.mark.parametrize("damage", ["flip", "gone"])
def test_samples_that_are_lost_are_read_again_and_no_feature_is_encoded(
    start: tuple[Path, Path], repaired: Repaired, damage: str
) -> None:
    root = start[1]
    before = sound(root)
    harm(root / Cache(root).commit("samples", 0, 1).file, damage)
    said = done(kcache("verify", root, "--repair"), code=1).stdout
    assert "Lost: the samples of 1 shard;" in said
    assert "encoded again" not in repaired().stdout
    assert sound(root) == before


@pytest.mark.parametrize("damage", ["flip", "gone"])
@pytest.mark.parametrize("name", ["text", "image", "latents-32"])
def test_the_record_of_a_column_is_written_again(
    start: tuple[Path, Path], repaired: Repaired, name: str, damage: str
) -> None:
    root = start[1]
    before = sound(root)
    harm(root / layout.column(name), damage)
    said = done(kcache("verify", root, "--repair"), code=1).stdout
    assert f"Lost: the record of '{name}';" in said
    assert "encoded again" not in repaired().stdout
    assert sound(root) == before


@pytest.mark.parametrize("suffix", ["tar", "idx"])
def test_null_features_are_encoded_again(start: tuple[Path, Path], repaired: Repaired, suffix: str) -> None:
    root = start[1]
    before = sound(root)
    (path,) = root.glob(f"columns/text.null-*.{suffix}")
    harm(path, "flip")
    assert "Lost: the null features of 'text';" in done(kcache("verify", root, "--repair"), code=1).stdout
    repaired()
    assert sound(root) == before


REPAIR = ("--repair", "--device=cpu", "--batch-size=3", "--dataset")


def take_out(dataset: Path, name: str, *, picture: bool = True) -> None:
    """Remove a sample's row from the metadata, and its picture."""
    metadata = dataset / "metadata.jsonl"
    lines = metadata.read_text("utf-8").splitlines(keepends=True)
    metadata.write_text("".join(line for line in lines if f'"{name}"' not in line), "utf-8")
    if picture:
        (dataset / name).unlink()


def test_a_row_whose_picture_is_gone_is_called_lost_until_a_dataset_has_it_again(
    start: tuple[Path, Path], pictures: Path, encode: Encode
) -> None:
    dataset, root = start
    (root / Cache(root).commit("image", 1, 1).file).unlink()
    gone = Cache(root).ids(1)[2]
    (dataset / gone).unlink()
    said = done(kcache("verify", root, *REPAIR, dataset), 1).stdout
    assert "image: 3 rows encoded again" in said
    assert f"image: 1 row could not be encoded again, for {dataset} lacks what it was made from: {gone}" in said
    assert len(Snapshot(Cache(root), ["image"])) == 9
    still = f"image: 1 row without features, which training leaves out: {gone}; lost and not brought back"
    assert still in said
    assert still in done(kcache("verify", root), 1).stdout
    assert f"1 sample without features in 'image' ({gone})" in done(kcache("info", root)).stdout
    told = done(encode(dataset, root)).stderr
    assert f"Gone, and without features in image: 1 sample\n  {gone}: " in told
    assert "Training uses them" not in told
    done(kcache("gc", root, "--yes", "--min-age=0"))
    assert "Lost: 1 row of 'image';" in done(kcache("verify", root, "--repair"), 1).stdout
    assert "image: 1 row encoded again" in done(kcache("verify", root, *REPAIR, pictures)).stdout
    assert len(Snapshot(Cache(root), ["image", "text", "latents-32"])) == 10


def test_a_lost_row_that_is_pruned_is_called_lost_no_more(start: tuple[Path, Path], encode: Encode) -> None:
    dataset, root = start
    (root / Cache(root).commit("image", 1, 1).file).unlink()
    take_out(dataset, Cache(root).ids(1)[2])
    done(kcache("verify", root, *REPAIR, dataset), 1)
    done(encode(dataset, root, "--prune"))
    assert done(kcache("verify", root)).stdout.startswith("No fault in ")


def test_a_lost_row_comes_back_from_an_older_generation_without_any_dataset(start: tuple[Path, Path]) -> None:
    dataset, root = start
    cache, before = Cache(root), features(Cache(root), "image")
    path = root / cache.commit("image", 1, 1).file
    data, gone = path.read_bytes(), cache.ids(1)[2]
    path.unlink()
    (dataset / gone).unlink()
    done(kcache("verify", root, *REPAIR, dataset), 1)
    path.write_bytes(data)  # somebody found a copy
    said = done(kcache("verify", root, "--repair")).stdout
    assert "rows that it lacks are in a new file of generation 3" in said
    assert str(features(cache, "image")[gone]) == str(before[gone])


@pytest.mark.parametrize("name", ["text", "image", "latents-32"])
def test_a_repair_from_a_dataset_that_was_edited_meanwhile_changes_no_row_that_is_not_lost(
    start: tuple[Path, Path], name: str
) -> None:
    dataset, root = start
    cache, before = Cache(root), sound(root)
    values = {kind: features(cache, kind) for kind in cache.column_names()}
    broken, repainted, gone, lost = cache.ids(1)
    (dataset / broken).write_bytes(b"no picture")
    shutil.copy(dataset / cache.ids(0)[0], dataset / repainted)
    (dataset / gone).unlink()
    edit(dataset, cache.samples(1)[3]["captions"][0], "another caption")
    entries = Snapshot(cache, [name]).pinned[name].entries
    flip(root / cache.commit(name, 1, 1).file, int(entries[7, 0]["offset"]) + 1)
    said = done(kcache("verify", root, *REPAIR, dataset)).stdout
    assert f"{name}: 1 row encoded again" in said
    assert sum(" encoded again" in line for line in said.splitlines()) == 1
    after = sound(root)
    for file in {file for file in after if after[file] != before.get(file)} - {layout.CARD}:
        assert file.startswith((f"{name}/000001-", f"commits/{name}/000001.000002"))
    for kind, rows in values.items():
        now = features(cache, kind)
        assert str({**now, lost: 0}) == str({**rows, lost: 0})
        for field, array in rows[lost].items():  # a batch of other rows moves the last bit
            np.testing.assert_allclose(now[lost][field], array, rtol=2e-3, atol=2e-3)
    assert cache.commit(name, 1, 2).keys == cache.commit(name, 1, 1).keys


def test_a_picture_that_lost_its_caption_still_gives_back_its_lost_features(start: tuple[Path, Path]) -> None:
    dataset, root = start
    (root / Cache(root).commit("image", 1, 1).file).unlink()
    take_out(dataset, Cache(root).ids(1)[2], picture=False)
    assert "image: 4 rows encoded again" in done(kcache("verify", root, *REPAIR, dataset)).stdout
    assert len(Snapshot(Cache(root), ["image", "text"])) == 10


def test_a_repair_encodes_no_shard_that_was_not_encoded_yet(start: tuple[Path, Path]) -> None:
    dataset, root = start
    (root / Cache(root).commit("text", 1, 1).file).unlink()
    Cache(root).commit_path("image", 1, 1).unlink()
    assert "text: 4 rows encoded again" in done(kcache("verify", root, *REPAIR, dataset)).stdout
    assert Cache(root).commits("image") == {0: 1, 2: 1}


def test_lost_samples_that_the_dataset_has_no_more_are_named_and_set_aside(start: tuple[Path, Path]) -> None:
    dataset, root = start
    gone = Cache(root).ids(1)[2]
    (root / Cache(root).commit("samples", 1, 1).file).unlink()
    take_out(dataset, gone)
    said = done(kcache("verify", root, *REPAIR, dataset), 1).stdout
    assert f"samples: 1 row lost and not in {dataset}, set aside until an encode finds them: {gone}" in said
    assert len(Snapshot(Cache(root), ["image", "text"])) == 9


def test_edits_of_other_shards_are_not_taken_up(start: tuple[Path, Path]) -> None:
    dataset, root = start
    before = sound(root)
    path = root / Cache(root).commit("latents-32", 2, 1).file
    path.unlink()
    edit(dataset, Cache(root).samples(0)[0]["captions"][0], "another caption")
    shutil.copy(dataset / Cache(root).ids(2)[0], dataset / "new.png")
    done(kcache("verify", root, "--repair", "--dataset", dataset, "--device=cpu", "--batch-size=3"))
    after = sound(root)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed - {layout.CARD} == {"commits/latents-32/000002.000002.json"}


def test_other_encoders_than_those_of_a_lost_record_are_refused(start: tuple[Path, Path], tmp_path: Path) -> None:
    import tiny

    dataset, root = start
    other = tiny.make_prior(tmp_path / "other")
    weights = other / "text_encoder" / "model.safetensors"
    flip(weights, weights.stat().st_size - 2)
    (root / "columns/text.json").unlink()
    before = tree(root, without=("index",))
    said = refused(
        kcache("verify", root, "--repair", "--dataset", dataset, "--pretrained-prior-model-name-or-path", other)
    )
    assert said.startswith(
        f"the record of column 'text' of {root} is lost, and its features were made by other options"
    )
    assert tree(root, without=("index",)) == before


@pytest.mark.torture
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_whatever_file_is_damaged_is_brought_back(
    start: tuple[Path, Path], repaired: Repaired, encode: Encode, tmp_path: Path, damage: str
) -> None:
    dataset, root = start
    shutil.copytree(root, tmp_path / "whole")
    for file in sorted(sound(root)):
        if file == layout.ROOT_RECORD:
            continue  # nothing else says how a cache is laid out
        harm(root / file, damage)
        if file.startswith("commits/") and not file.startswith("commits/samples") and damage == "gone":
            done(encode(dataset, root))  # work that is to be done again, and no damage
        repaired()
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "whole", root)


@pytest.mark.parametrize("options", [["--dataset", "x"], ["--repair", "--batch-size=2"], ["--device=cpu"]])
def test_options_of_the_repair_have_no_effect_without_it(start: tuple[Path, Path], options: list[str]) -> None:
    assert "has no effect without --repair" in refused(kcache("verify", start[1], *options), 2)
