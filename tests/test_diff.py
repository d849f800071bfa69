"""Two caches beside each other: what differs, and why; the same dataset encoded twice does not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import Encode, copy_old, done, kcache, refused
from support import encode_tiny, flip
from toy_cache import SHARD_SIZE, column, commit_shard, make_cache, row, sample, shard_file, shards

from kcache.shards import Cache, DamageError
from kcache.shards.diff import Difference, diff


def test_equal_caches_do_not_differ(tmp_path: Path) -> None:
    one, other = make_cache(tmp_path / "one"), make_cache(tmp_path / "other", "h5")
    for deep in (False, True):
        found = diff(one, other, deep=deep)
        assert not found.differs
        assert (found.samples_in_both, found.columns["text"].same, found.columns["image"].same) == (10, 10, 10)


def test_the_same_pictures_encoded_twice_do_not_differ(
    encoded: Callable[..., Cache], pictures: Path, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    other = encode_tiny(tmp_path / "other", pictures, tiny_prior, tiny_decoder, format="h5")
    assert not diff(encoded(), other, deep=True).differs


def test_no_shard_is_read_unless_deep(tar_cache: Cache, tmp_path: Path) -> None:
    other = make_cache(tmp_path / "other")
    for path in [*other.root.glob("text/*.tar"), *other.root.glob("image/*.tar")]:
        path.unlink()
    assert not diff(tar_cache, other).differs
    with pytest.raises(DamageError, match="is missing; run 'kcache verify"):
        diff(tar_cache, other, deep=True)


def test_rows_that_are_in_one_alone_are_named(tmp_path: Path) -> None:
    one, other = make_cache(tmp_path / "one"), make_cache(tmp_path / "other", aside=frozenset({3}))
    one.extend_plan(["more"])
    one.commit_samples(3, [{**sample(10), "id": "more"}], ["key"])
    found = diff(one, other)
    assert (found.only_in_first, found.only_in_second) == (["more"], [])
    assert found.columns["image"].only_in_first == ["sample 3"]
    assert diff(other, one).only_in_second == ["more"]
    assert diff(other, one).columns["image"].only_in_second == ["sample 3"]


def test_features_that_differ_though_they_were_made_from_the_same_are_named(tmp_path: Path) -> None:
    one, other = make_cache(tmp_path / "one"), Cache.create(tmp_path / "other", shard_size=4, container="tar")
    shutil.copytree(one.root, other.root, dirs_exist_ok=True)
    moved = [{"image_embeds": row("image", n)["image_embeds"] + np.float32(n == 6)} for n in range(4, 8)]
    other.commit_features(column("image"), 1, moved, one.commit("image", 1, 1).keys, generation=2)
    for deep in (False, True):
        found = diff(one, other, deep=deep)
        assert found.columns["image"].other_bytes == ["sample 6"]
        assert found.columns["image"].same == 9
        assert not found.columns["text"].differs


def test_a_column_that_was_encoded_otherwise_says_how_and_is_not_compared(tmp_path: Path) -> None:
    one, other = make_cache(tmp_path / "one"), Cache.create(tmp_path / "other", shard_size=4, container="tar")
    other.extend_plan([f"sample {n}" for n in range(10)])
    other.add_column(column("image", "two"), None)
    for shard, numbers in shards():
        other.commit_samples(shard, [sample(n) for n in numbers], [f"key {n}" for n in numbers])
        commit_shard(other, "image", shard, numbers)
    found = diff(one, other)
    assert found.columns["image"].made_otherwise == ["class is 'one', not 'two'"]
    assert found.columns["image"].same == 0
    assert found.columns_only_in_first == ["text"]


def test_damage_is_no_difference_but_an_error(tar_cache: Cache, tmp_path: Path) -> None:
    other = make_cache(tmp_path / "other")
    flip(shard_file(other, "image", 9 // SHARD_SIZE).with_suffix(".idx"), 40)
    with pytest.raises(DamageError, match=r"\.idx does not match its sha256; run 'kcache verify"):
        diff(tar_cache, other)


# --- the command


@pytest.fixture(scope="module")
def edited(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, pictures: Path, tiny_prior: Path, tiny_decoder: Path
) -> tuple[Path, Path]:
    """A cache, and the same after a caption was edited, a picture replaced, one added and one pruned."""
    from commands import encode_with

    folder = tmp_path_factory.mktemp("edited")
    dataset, after = copy_old(pictures, folder / "dataset"), folder / "after"
    shutil.copytree(whole, after)
    text = (dataset / "metadata.jsonl").read_text("utf-8").replace("red apple", "green apple")
    lines = [line for line in text.splitlines() if "grey.png" not in line]
    new = json.dumps({"file_name": "new.webp", "text": "new"})
    (dataset / "metadata.jsonl").write_text("\n".join([*lines, new]) + "\n", "utf-8")
    shutil.copy(dataset / "two-captions.webp", dataset / "long-caption.webp")
    shutil.copy(dataset / "turned.jpg", dataset / "new.webp")
    (dataset / "grey.png").unlink()
    done(encode_with(tiny_prior, tiny_decoder)(dataset, after, "--prune"))
    return whole, after


def test_the_command_says_what_differs_and_why(edited: tuple[Path, Path]) -> None:
    before, after = edited
    assert done(kcache("diff", before, after)).stdout.splitlines() == [
        f"1 sample only in {before}: grey.png",
        f"1 sample only in {after}: new.webp",
        "1 sample with other captions: apple.webp",
        "1 sample with another picture: long-caption.webp",
        "image: features of 1 sample made from another picture or other captions: long-caption.webp",
        "latents-32: features of 1 sample made from another picture or other captions: long-caption.webp",
        "text: features of 1 sample made from another picture or other captions: apple.webp",
        "They differ; 9 samples in both.",
    ]


def test_the_exit_code_tells_when_it_is_asked_to(edited: tuple[Path, Path]) -> None:
    before, after = edited
    done(kcache("diff", before, after))
    done(kcache("diff", before, after, "--exit-code"), code=1)
    said = done(kcache("diff", before, before, "--exit-code", "--deep")).stdout
    assert said == "No difference in 10 samples (features: image 10, latents-32 10, text 10).\n"


def test_json_has_everything(edited: tuple[Path, Path]) -> None:
    before, after = edited
    found = json.loads(done(kcache("diff", before, after, "--json")).stdout)
    assert found.keys() == {"differs", *Difference.__dataclass_fields__}
    assert (found["differs"], found["captions"], found["only_in_second"]) == (True, ["apple.webp"], ["new.webp"])
    assert found["columns"]["image"]["same"] == 8


def test_options_that_shape_a_column_are_named(encode: Encode, pictures: Path, whole: Path, tmp_path: Path) -> None:
    done(encode(pictures, tmp_path / "other", "--columns", "image", "--alpha=drop", "--store-dtype=fp32"))
    lines = done(kcache("diff", whole, tmp_path / "other")).stdout.splitlines()
    assert lines[0] == f"columns only in {whole}: latents-32, text"
    assert lines[1] == (
        f"image: encoded otherwise in {whole} than in {tmp_path / 'other'}: alpha is 'white', not 'drop'; store dtype"
        " is fp16, not fp32; features are not compared"
    )


def test_what_is_no_cache_is_refused(tar_cache: Cache, tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'} is not a kcache cache" in refused(kcache("diff", tar_cache.root, tmp_path / "none"))
