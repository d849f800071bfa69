"""`kcache encode`, `info` and `verify` as they are typed: what is encoded, what is not, and what is said."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import (
    Encode,
    checkpoint_options,
    copy_old,
    counted,
    done,
    encode_with,
    kcache,
    make_old,
    refused,
    stamps,
    tree,
)
from PIL import Image
from sources import img2dataset
from support import features, flip, ids

from kcache.checkpoints import Component
from kcache.cli.sizes import size
from kcache.encoding import imagefolder
from kcache.shards import Cache, Snapshot
from kcache.shards.verify import committed_bytes, verify

COLUMNS = ("text", "image", "latents-32")
ALL_HIT = {"hit": 10, "changed": 0, "new": 0, "gone": 0, "set aside": 0}


def everywhere(counts: dict[str, int]) -> dict[str, dict[str, int]]:
    """The same counts in all three columns."""
    return dict.fromkeys(COLUMNS, counts)


@pytest.fixture(scope="module")
def first(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, tiny_prior: Path, tiny_decoder: Path
) -> tuple[Path, Path, Any]:
    """A dataset, the cache that a first run made of it, and what that run said; `start` copies the two."""
    folder = tmp_path_factory.mktemp("first")
    dataset = copy_old(pictures, folder / "pictures")
    result = encode_with(tiny_prior, tiny_decoder)(dataset, folder / "cache")
    return dataset, folder / "cache", result


@pytest.fixture
def start(first: tuple[Path, Path, Any], tmp_path: Path) -> tuple[Path, Path]:
    """A dataset that was just encoded, and its cache, to change at will."""
    shutil.copytree(first[0], tmp_path / "pictures")
    shutil.copytree(first[1], tmp_path / "cache")
    return tmp_path / "pictures", tmp_path / "cache"


def add_picture(dataset: Path, name: str, caption: str, colour: str = "teal") -> None:
    """One more picture, with its row."""
    Image.new("RGB", (40, 50), colour).save(dataset / name)
    with open(dataset / "metadata.jsonl", "a") as file:
        file.write(json.dumps({"file_name": name, "text": caption}) + "\n")


def edit_rows(dataset: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the rows of ``metadata.jsonl`` in place."""
    path = dataset / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def feature_bytes(cache: Path, column: str) -> int:
    """The bytes of all features that a column holds."""
    return int(Snapshot(Cache(cache), [column]).pinned[column].entries["nbytes"].sum())


# --- the first run and the second


def test_a_first_run_encodes_everything_and_says_what_comes_next(first: tuple[Path, Path, Any]) -> None:
    _, cache, result = first
    done(result)
    assert "Encoded text 10, image 10, latents-32 10 in " in result.stdout
    assert f"Next: kcache train prior {cache} --output-dir my-prior" in result.stdout
    assert f"kcache train decoder {cache} --output-dir my-decoder --resolution 32" in result.stdout
    assert counted(result) == everywhere({**ALL_HIT, "hit": 0, "new": 10})
    assert (
        "1 caption longer than 77 tokens, cut as in the reference:\n  long-caption.webp: 171 tokens\n" in result.stderr
    )
    assert "1 empty caption, encoded as the empty prompt." in result.stderr


def test_what_comes_next_names_the_checkpoints_of_the_cache_also_when_they_were_not_typed_again(
    start: tuple[Path, Path], tiny_prior: Path, tiny_decoder: Path
) -> None:
    dataset, cache = start
    said = done(kcache("encode", dataset, cache, "--device=cpu")).stdout
    prior, decoder = checkpoint_options(tiny_prior, tiny_decoder)
    assert f"kcache train prior {cache} --output-dir my-prior {prior.replace('=', ' ')}\n" in said
    assert f"--output-dir my-decoder --resolution 32 {decoder.replace('=', ' ')}\n" in said


def test_the_list_of_cut_captions_says_so_where_there_are_none(encode: Encode, start: tuple[Path, Path]) -> None:
    dataset, cache = start
    assert "long-caption.webp" in done(kcache("info", cache, "--cut-captions")).stdout
    metadata = dataset / "metadata.jsonl"
    lines = metadata.read_text("utf-8").splitlines(keepends=True)
    metadata.write_text("".join(line for line in lines if "long-caption.webp" not in line), "utf-8")
    (dataset / "long-caption.webp").unlink()
    done(encode(dataset, cache, "--prune"))
    result = done(kcache("info", cache, "--cut-captions"))
    assert (result.stdout, result.stderr[:5]) == ("", "none:")


def test_a_second_run_encodes_nothing_and_changes_no_file(encode: Encode, start: tuple[Path, Path]) -> None:
    dataset, cache = start
    before = tree(cache), stamps(cache)
    result = done(encode(dataset, cache))
    assert counted(result) == everywhere(ALL_HIT)
    assert f"{cache} is up to date: nothing to encode." in result.stdout
    assert (tree(cache), stamps(cache)) == before


def test_a_second_run_loads_no_model_and_opens_no_picture(
    encode: Encode, first: tuple[Path, Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, cache, _ = first
    opened = spy_on_pictures(monkeypatch)
    monkeypatch.setattr(Component, "load", lambda self, *_: pytest.fail(f"{self.subfolder} was loaded"))
    assert counted(done(encode(dataset, cache))) == everywhere(ALL_HIT)
    assert opened == []


def spy_on_pictures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that are opened from now on."""
    opened: list[str] = []
    for method in ("read", "sha256"):
        original = getattr(imagefolder.ImageFolder, method)
        spied = lambda self, name, original=original: opened.append(name) or original(self, name)  # noqa: E731
        monkeypatch.setattr(imagefolder.ImageFolder, method, spied)
    return opened


def test_a_picture_that_was_touched_is_hashed_once_more_and_no_other(
    encode: Encode, start: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, cache = start
    (dataset / "flat.png").touch()
    opened = spy_on_pictures(monkeypatch)
    assert counted(done(encode(dataset, cache))) == everywhere(ALL_HIT)
    assert opened == ["flat.png"]
    make_old(dataset / "flat.png")  # too old by then to have been changed while it was looked at
    done(encode(dataset, cache))
    done(encode(dataset, cache))
    assert opened == ["flat.png"] * 2


def test_each_picture_is_opened_once_for_all_its_columns(
    encode: Encode, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = spy_on_pictures(monkeypatch)
    done(encode(pictures, tmp_path / "cache", "--resolution", "16", "32"))
    assert len(opened) == len(set(opened)) == 10


def test_a_cache_without_its_index_folder_is_still_up_to_date(encode: Encode, start: tuple[Path, Path]) -> None:
    dataset, cache = start
    shutil.rmtree(cache / "index")
    assert counted(done(encode(dataset, cache))) == everywhere(ALL_HIT)


# --- more columns


def test_a_new_resolution_adds_its_column_alone(
    encode: Encode, start: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, cache = start
    before = tree(cache, without=("README.md",)), {k: v for k, v in stamps(cache).items() if k != "README.md"}
    loaded: list[str] = []
    original = Component.load
    monkeypatch.setattr(Component, "load", lambda self, *args: loaded.append(self.subfolder) or original(self, *args))
    result = done(encode(dataset, cache, "--resolution", "32", "16"))
    assert counted(result)["latents-16"] == {**ALL_HIT, "hit": 0, "new": 10}
    assert counted(result)["latents-32"] == ALL_HIT
    assert "Encoded latents-16 10 in " in result.stdout
    assert loaded == ["movq"]
    assert {name: tree(cache)[name] for name in before[0]} == before[0]
    assert {name: stamps(cache)[name] for name in before[1]} == before[1]
    added = {name for name in tree(cache, without=("README.md",)) if name not in before[0]}
    assert added
    assert all(name.startswith(("latents-16/", "columns/latents-16", "commits/latents-16")) for name in added), added


def test_columns_encoded_one_after_the_other_are_the_same_bytes_as_all_at_once(
    encode: Encode, start: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset, whole = start
    cache = tmp_path / "piecemeal"
    result = done(encode(dataset, cache, "--columns", "text"))
    assert Cache(cache).column_names() == ["text"]
    assert "Encoded text 10 in " in result.stdout
    assert counted(done(encode(dataset, cache, "--columns", "latents")))["latents-32"]["new"] == 10
    assert Cache(cache).column_names() == ["latents-32", "text"]
    last = done(encode(dataset, cache, "--columns", "image"))
    assert "Encoded image 10 in " in last.stdout
    assert tree(cache, without=("index",)) == tree(whole, without=("index",))


@pytest.mark.parametrize(
    "spelling",
    [
        ["--resolution", "16", "32"],
        ["--resolution", "16", "--resolution", "32"],
        ["--resolution=16", "--resolution=32"],
        ["--resolution", "16", "32", "16"],
    ],
)
def test_a_list_of_resolutions_may_be_spelt_in_every_way(
    encode: Encode, first: tuple[Path, Path, Any], tmp_path: Path, spelling: list[str]
) -> None:
    result = done(encode(first[0], tmp_path / "cache", *spelling, "--dry-run"))
    assert list(counted(result)) == ["text", "image", "latents-16", "latents-32"]


@pytest.mark.parametrize(
    "spelling",
    [["--columns", "image", "text"], ["--columns=image", "--columns=text"], ["--columns", "image", "text", "-q"]],
)
def test_a_list_of_columns_may_be_spelt_in_every_way(
    encode: Encode, first: tuple[Path, Path, Any], tmp_path: Path, spelling: list[str]
) -> None:
    result = done(encode(first[0], tmp_path / "cache", *spelling, "--dry-run"))
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["text", "image", "total"]


def test_options_may_be_spelt_with_underscores(
    pictures: Path, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    line = [
        "--pretrained_prior_model_name_or_path",
        tiny_prior,
        "--pretrained_decoder_model_name_or_path",
        tiny_decoder,
    ]
    result = kcache("encode", "--resolution", 32, pictures, tmp_path / "my_cache", *line, "--shard_size=7", "--dry_run")
    assert done(result).stdout.endswith("nothing was written\n")


def test_a_column_that_does_not_exist_is_answered_with_those_that_do(
    encode: Encode, pictures: Path, tmp_path: Path
) -> None:
    said = refused(encode(pictures, tmp_path / "cache", "--columns", "txt"), code=2)
    assert said.startswith("there is no column 'txt'; columns are text, image and latents-N, with N a resolution in ")


def test_a_resolution_that_is_no_number_is_called_so(encode: Encode, pictures: Path, tmp_path: Path) -> None:
    said = done(encode(pictures, tmp_path / "cache", "--resolution", "abc"), code=2).stderr
    assert said.endswith("Error: Invalid value for '--resolution': 'abc' is not a valid whole number.\n")


def test_a_resolution_that_movq_cannot_halve_is_refused(encode: Encode, pictures: Path, tmp_path: Path) -> None:
    said = refused(encode(pictures, tmp_path / "cache", "--resolution", "30"))
    assert said.startswith("resolution 30 is not a multiple of 4")
    assert not (tmp_path / "cache").exists()


# --- the dataset grew, shrank or changed


def test_added_pictures_go_into_new_shards_and_leave_the_old_ones(encode: Encode, start: tuple[Path, Path]) -> None:
    dataset, cache = start
    before, order = tree(cache, without=("index", "README.md")), ids(Cache(cache))
    add_picture(dataset, "a-new-one.png", "a picture of one colour")
    add_picture(dataset, "zebra.png", "another")
    result = done(encode(dataset, cache))
    assert counted(result) == everywhere({**ALL_HIT, "new": 2})
    assert "Encoded text 2, image 2, latents-32 2 in " in result.stdout
    assert ids(Cache(cache)) == [*order, "a-new-one.png", "zebra.png"]
    assert {name: tree(cache)[name] for name in before} == before
    assert len(features(Cache(cache), "latents-32")) == 12
    assert done(kcache("verify", cache, "--deep")).stdout.startswith("No fault")


def test_what_was_encoded_in_two_runs_holds_the_same_features_as_in_one(
    encode: Encode, start: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset, cache = start
    add_picture(dataset, "zebra.png", "a picture of one colour")
    done(encode(dataset, cache))
    done(encode(dataset, tmp_path / "at-once"))
    for column in COLUMNS:
        one, other = features(Cache(cache), column), features(Cache(tmp_path / "at-once"), column)
        assert one.keys() == other.keys()
        for sample in one:
            assert all(abs(one[sample][f] - other[sample][f]).max() < 1e-2 for f in one[sample]), sample


def test_pictures_that_are_gone_are_reported_and_kept(encode: Encode, start: tuple[Path, Path]) -> None:
    dataset, cache = start
    before = tree(cache, without=("index",))
    (dataset / "flat.png").unlink()
    edit_rows(dataset, lambda rows: rows.pop(2))
    result = done(encode(dataset, cache))
    assert counted(result) == everywhere({**ALL_HIT, "hit": 9, "gone": 1})
    assert "Gone, and kept with their features: 1 sample\n  flat.png: gone from the dataset\n" in result.stderr
    assert "  Training uses them; --prune takes them out.\n" in result.stderr
    assert tree(cache, without=("index",)) == before
    assert "flat.png" in features(Cache(cache), "image")


# --- --dry-run


def test_a_dry_run_writes_nothing_and_estimates_every_byte(encode: Encode, pictures: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    result = done(encode(pictures, cache, "--dry-run"))
    assert not cache.exists()
    done(encode(pictures, cache))
    total = 0
    for line, column in zip(result.stdout.splitlines(), COLUMNS, strict=False):
        total += (real := feature_bytes(cache, column))
        said = (
            rf"{column:12} would encode 10 samples, about [\d.]+ KB on disk \({size(real)} of features\), in about 0 s"
        )
        assert re.fullmatch(said + ": 10 not in the cache yet", line)
    *_, last = result.stdout.splitlines()
    said = rf"{'total':12} about [\d.]+ KB on disk \({size(total)} of features\), in about \d+ s here, \d+ s of it to "
    assert re.fullmatch(said + r"begin and \d+ s to read pictures; nothing was written", last)


def test_the_estimate_of_a_dry_run_is_exact_for_every_dtype(
    tiny_prior: Path, tiny_decoder: Path, pictures: Path, tmp_path: Path
) -> None:
    from kcache.encoding.config import EncodeConfig
    from kcache.encoding.encode import encode

    for store_dtype in ("fp16", "fp32"):
        options: dict[str, Any] = {"resolution": (16, 32), "store_dtype": store_dtype, "device": "cpu", "dry_run": True}
        names = {
            "pretrained_prior_model_name_or_path": str(tiny_prior),
            "pretrained_decoder_model_name_or_path": str(tiny_decoder),
        }
        cache = tmp_path / store_dtype
        estimates = encode(EncodeConfig(dataset=str(pictures), cache=str(cache), **names, **options)).estimates
        encode(EncodeConfig(dataset=str(pictures), cache=str(cache), **names, **{**options, "dry_run": False}))
        assert {n: e.bytes for n, e in estimates.items()} == {n: feature_bytes(cache, n) for n in estimates}
        assert all(estimate.seconds > 0 for estimate in estimates.values())


@pytest.mark.parametrize("container", ["tar", "h5"])
def test_the_bytes_on_disk_that_a_dry_run_says_are_those_of_the_files(
    tiny_prior: Path, tiny_decoder: Path, start: tuple[Path, Path], tmp_path: Path, container: str
) -> None:
    from kcache.encoding.config import EncodeConfig
    from kcache.encoding.encode import encode

    dataset, cache = start[0], tmp_path / container
    plain: dict[str, Any] = {
        "format": container,
        "shard_size": 4,
        "device": "cpu",
        "resolution": (32,),
        "buckets": True,
    }
    plain |= {"dataset": str(dataset), "cache": str(cache), "bucket_step": 8}
    plain |= {"pretrained_prior_model_name_or_path": str(tiny_prior)}
    plain |= {"pretrained_decoder_model_name_or_path": str(tiny_decoder)}

    def added() -> dict[str, int]:
        said = encode(EncodeConfig(**plain, dry_run=True)).estimates
        before = stamps(cache) if cache.exists() else {}
        encode(EncodeConfig(**plain))
        new = {name: (cache / name).stat().st_size for name in stamps(cache) if name not in before}
        for column, estimate in said.items():
            real = sum(n for name, n in new.items() if name.startswith((f"{column}/", f"commits/{column}/")))
            assert abs(estimate.disk - real) <= 0.1 * real + 2000, (column, estimate.disk, real)
        return {column: estimate.disk for column, estimate in said.items()}

    assert all(added().values())
    edit_rows(dataset, lambda rows: rows[0].update(text="edited"))
    assert {column for column, disk in added().items() if disk} == {"text"}


def test_a_dry_run_leaves_out_what_cannot_be_encoded(encode: Encode, start: tuple[Path, Path]) -> None:
    dataset, cache = start
    add_picture(dataset, "zebra.png", "here")
    edit_rows(dataset, lambda rows: rows.append({"file_name": "nowhere.png", "text": "not here"}))
    result = done(encode(dataset, cache, "--dry-run"), code=3)
    one = size(feature_bytes(cache, "image") // 10)
    assert re.search(
        rf"{'image':12} would encode 1 sample, about .* \({one} of features\), in .*: 1 not in", result.stdout
    )
    assert "nowhere.png: the file does not exist" in result.stderr


def test_a_dry_run_says_what_would_be_encoded_and_why(encode: Encode, start: tuple[Path, Path]) -> None:
    dataset, cache = start
    add_picture(dataset, "zebra.png", "one more")
    before = tree(cache), stamps(cache)
    lines = done(encode(dataset, cache, "--dry-run", "--resolution", "32", "16")).stdout.splitlines()
    assert lines[1].endswith(": 1 not in the cache yet")
    assert lines[2].startswith(f"{'latents-16':12} would encode 11 samples")
    assert lines[2].endswith(": 1 not in the cache yet, 10 lacking this column")
    assert lines[3].endswith(": 1 not in the cache yet")
    assert (tree(cache), stamps(cache)) == before


def test_a_dry_run_of_what_is_up_to_date_has_nothing_to_do(encode: Encode, start: tuple[Path, Path]) -> None:
    dataset, cache = start
    before = tree(cache), stamps(cache)
    *columns, total = done(encode(dataset, cache, "--dry-run")).stdout.splitlines()
    assert re.fullmatch(r"total +nothing to encode, which takes about .* here to find out; nothing was written", total)
    for line in columns:
        assert line.endswith(
            "would encode 0 samples, about 0 bytes on disk (0 bytes of features), in about 0 s: nothing to do"
        )
    assert (tree(cache), stamps(cache)) == before


# --- a cache that was made otherwise


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--format", "h5"], "holds .tar shards; name another cache folder for --format h5"),
        (["--shard-size", "8"], "has 4 samples a shard; leave --shard-size out, or name another folder"),
        (["--encode-dtype", "bf16"], "column 'text' of {} was encoded otherwise (encode dtype is fp32, not bf16)"),
        (["--store-dtype", "fp32"], "column 'text' of {} was encoded otherwise (store dtype is fp16, not fp32)"),
        (["--alpha", "drop"], "column 'image' of {} was encoded otherwise (alpha is 'white', not 'drop')"),
    ],
)
def test_options_other_than_those_of_the_cache_are_refused_with_the_difference(
    encode: Encode, first: tuple[Path, Path, Any], options: list[str], difference: str
) -> None:
    dataset, cache, _ = first
    before = tree(cache), stamps(cache)
    assert difference.format(cache) in refused(encode(dataset, cache, *options))
    assert (tree(cache), stamps(cache)) == before


def test_another_encoder_than_the_one_of_the_cache_is_refused(
    first: tuple[Path, Path, Any], tiny_prior: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    dataset, cache, _ = first
    other = shutil.copytree(tiny_prior, tmp_path / "other-prior")
    weights = other / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    tensors["text_projection.weight"] += torch.tensor(1e-3)
    save_file(tensors, weights, metadata={"format": "pt"})
    before = tree(cache)
    said = refused(encode_with(other, tiny_decoder)(dataset, cache))
    assert f"column 'text' of {cache} was encoded otherwise (encoder weights differ)" in said
    assert "encode with the same options, or make the column anew with --replace-column text" in said
    assert tree(cache) == before


def test_a_dtype_that_is_not_given_is_the_one_of_the_cache(encode: Encode, pictures: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done(encode(pictures, cache, "--columns", "text", "--encode-dtype", "bf16", "--store-dtype", "fp32"))
    assert counted(done(encode(pictures, cache, "--columns", "text")))["text"] == ALL_HIT


# --- every kind of dataset


def test_a_folder_with_a_text_file_beside_each_picture(encode: Encode, pictures: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "sidecar"
    (dataset / "more").mkdir(parents=True)
    for name, caption in (("a.png", "red"), ("more/b.png", " blue\n"), ("c.v2.png", "\ufeffgreen")):
        Image.new("RGB", (20, 20)).save(dataset / name)
        (dataset / name).with_suffix(".txt").write_text(caption, "utf-8")
    done(encode(dataset, tmp_path / "cache"))
    assert captions(tmp_path / "cache") == {"a.png": ["red"], "c.v2.png": ["green"], "more/b.png": ["blue"]}


def captions(cache: Path) -> dict[str, list[str]]:
    opened = Cache(cache)
    rows = [row for shard in range(opened.shard_count) for row in opened.samples(shard)]
    return {row["id"]: row["captions"] for row in rows}


def test_a_folder_with_metadata_in_csv(encode: Encode, tmp_path: Path) -> None:
    dataset = tmp_path / "csv"
    dataset.mkdir()
    Image.new("RGB", (20, 20)).save(dataset / "a, b.png")
    Image.new("L", (30, 20)).save(dataset / "c.png")
    table = 'file_name,prompt\r\n"a, b.png","a ""quoted"" caption,\nin two lines"\r\nc.png,grey\r\n'
    (dataset / "metadata.csv").write_text(table, "utf-8-sig")
    done(encode(dataset, tmp_path / "cache", "--caption-column", "prompt"))
    assert captions(tmp_path / "cache") == {"a, b.png": ['a "quoted" caption,\nin two lines'], "c.png": ["grey"]}


def test_folders_with_metadata_of_their_own(encode: Encode, tmp_path: Path) -> None:
    dataset = tmp_path / "nested"
    for folder, rows in (("cats", "a.png,one cat\n"), ("dogs/small", "a.png,one dog\n")):
        (dataset / folder).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(dataset / folder / "a.png")
        (dataset / folder / "metadata.csv").write_text("file_name,text\n" + rows)
    done(encode(dataset, tmp_path / "cache"))
    assert captions(tmp_path / "cache") == {"cats/a.png": ["one cat"], "dogs/small/a.png": ["one dog"]}


def test_a_row_may_name_a_picture_with_any_ending(encode: Encode, tmp_path: Path) -> None:
    dataset = tmp_path / "odd"
    dataset.mkdir()
    for name in ("picture", "photo.dat"):
        Image.new("RGB", (20, 20)).save(dataset / name, format="PNG")
    (dataset / "metadata.csv").write_text("file_name,text\npicture,one\nphoto.dat,two\n")
    done(encode(dataset, tmp_path / "cache"))
    assert set(features(Cache(tmp_path / "cache"), "image")) == {"picture", "photo.dat"}


def test_a_cache_in_the_folder_of_its_dataset_is_never_taken_for_a_part_of_it(
    encode: Encode, pictures: Path, tmp_path: Path
) -> None:
    dataset = copy_old(pictures, tmp_path / "pictures")
    cache = dataset / "cache"
    said = f"{cache} lies in the folder of its own dataset: nothing in it is taken for a picture\n"
    assert said in done(encode(dataset, cache)).stderr
    Image.new("RGB", (9, 9)).save(cache / "index" / "preview.png")
    assert counted(done(encode(dataset, cache))) == everywhere(ALL_HIT)
    assert len(ids(Cache(cache))) == 10


@pytest.mark.parametrize("pattern", ["", "**/*.tar", "*/*.tar"])
def test_the_shards_of_a_cache_are_not_taken_for_tars_of_pictures(encode: Encode, tmp_path: Path, pattern: str) -> None:
    img2dataset(tmp_path / "data" / "tars" / "0.tar", {"0a": {"text": "red"}, "0b": {"text": "blue"}})
    dataset, cache = tmp_path / "data" / pattern if pattern else tmp_path / "data", tmp_path / "data" / "cache"
    for _ in range(2):
        done(encode(dataset, cache, "--columns", "text"))
        assert ids(Cache(cache)) == ["tars/0.tar/0a.jpg", "tars/0.tar/0b.jpg"]
    assert "is a cache of kcache; name the dataset that it was encoded from" in refused(encode(cache, tmp_path / "x"))
    names = refused(encode(cache / "*" / "*.tar", tmp_path / "x"))
    assert names.endswith("names nothing but files of caches of kcache; name those of a dataset")


@pytest.fixture(scope="module")
def table(pictures: Path) -> Any:
    """The ten pictures as a table of the ``datasets`` library."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    rows = [json.loads(line) for line in (pictures / "metadata.jsonl").read_text("utf-8").splitlines()]
    texts = [row["text"] if isinstance(row["text"], list) else [row["text"]] for row in rows]
    columns = {
        "photo": [{"bytes": (pictures / row["file_name"]).read_bytes(), "path": None} for row in rows],
        "caption": [text[0] for text in texts],
        "captions": texts,
    }
    kinds = Features({"photo": ImageFeature(), "caption": Value("string"), "captions": [Value("string")]})
    return Dataset.from_dict(columns, features=kinds)


@pytest.mark.parametrize("caption_column", ["caption", "captions"])
def test_a_saved_table_is_encoded_as_the_folder_it_was_made_from(
    encode: Encode, table: Any, first: tuple[Path, Path, Any], tmp_path: Path, caption_column: str
) -> None:
    saved, cache = tmp_path / "saved", tmp_path / "cache"
    table.save_to_disk(str(saved))
    names = ["--image-column", "photo", "--caption_column", caption_column]
    done(encode(saved, cache, *names))
    assert counted(done(encode(saved, cache, *names))) == everywhere(ALL_HIT)
    folder = {row["sha256"]: row for shard in range(3) for row in Cache(first[1]).samples(shard)}
    for row in (row for shard in range(3) for row in Cache(cache).samples(shard)):
        expected = folder[row["sha256"]]["captions"]
        assert row["captions"] == (expected if caption_column == "captions" else expected[:1])
        assert row["id"] == row["sha256"]


def test_a_split_of_several_saved_tables_is_chosen_by_name(encode: Encode, table: Any, tmp_path: Path) -> None:
    from datasets import DatasetDict

    saved, names = tmp_path / "saved", ["--image-column", "photo", "--caption-column", "caption"]
    DatasetDict({"train": table.select(range(6)), "test": table.select(range(6, 10))}).save_to_disk(str(saved))
    assert "Encoded text 6, " in done(encode(saved, tmp_path / "train", *names)).stdout
    assert "Encoded text 4, " in done(encode(saved, tmp_path / "test", *names, "--split", "test")).stdout
    said = refused(encode(saved, tmp_path / "none", *names, "--split", "validation"))
    assert said == f"dataset {saved} has no split 'validation' (it has: train, test)"


def test_equal_images_in_a_table_are_samples_of_their_own(encode: Encode, table: Any, tmp_path: Path) -> None:
    from datasets import concatenate_datasets

    saved = tmp_path / "saved"
    concatenate_datasets([table.select([0]), table.select([0, 1])]).save_to_disk(str(saved))
    done(encode(saved, tmp_path / "cache", "--image-column", "photo", "--caption-column", "caption"))
    names = ids(Cache(tmp_path / "cache"))
    assert len(names) == 3
    assert sum(f"{name}-2" in names for name in names) == 1


# --- info and verify


def test_info_shows_columns_samples_sizes_and_what_made_them(first: tuple[Path, Path, Any], tiny_prior: Path) -> None:
    said = done(kcache("info", first[1])).stdout
    assert f"{first[1]}: 10 samples with 11 captions in 3 shards of up to 4 (.tar, format 1)" in said
    for column in COLUMNS:
        assert f"\n{column}: 10 samples, " in said
    assert f"CLIPTextModelWithProjection in fp32 from {tiny_prior}" in said
    assert "latents          float16 [4, 8, 8]" in said


def test_info_as_json_holds_the_same_and_nothing_else(first: tuple[Path, Path, Any]) -> None:
    result = done(kcache("info", first[1], "--json"))
    told = json.loads(result.stdout)
    assert result.stderr == ""
    assert (told["samples"], told["captions"], told["shards"], told["container"]) == (10, 11, 3, "tar")
    assert (told["shard_size"], told["format_version"], told["set_aside"]) == (4, 1, {})
    columns = {column["name"]: column for column in told["columns"]}
    assert set(columns) == set(COLUMNS)
    for name, column in columns.items():
        assert (column["rows"], column["shards"], column["encode_dtype"]) == (10, 3, "fp32")
        assert column["fingerprint"] == Cache(first[1]).column(name).fingerprint
        assert column["bytes"] == sum(path.stat().st_size for path in (first[1] / name).glob("*.tar"))


def test_info_names_what_an_unfinished_encode_lacks(start: tuple[Path, Path]) -> None:
    (start[1] / "commits" / "image" / "000001.000001.json").unlink()
    said = done(kcache("info", start[1])).stdout
    assert "image: 6 samples" in said
    assert ", 2 of 3 shards" in said
    assert f"unfinished: image; run 'kcache encode DATASET {start[1]}' to go on" in said
    assert "image: 1 shard is not encoded yet" in done(kcache("verify", start[1])).stdout


def test_info_says_how_transparent_pixels_were_taken(encode: Encode, pictures: Path, tmp_path: Path) -> None:
    done(encode(pictures, tmp_path / "cache", "--alpha", "drop", "--columns", "image"))
    assert "  transparency     --alpha drop\n" in done(kcache("info", tmp_path / "cache")).stdout


def test_info_and_training_name_the_columns_that_an_edit_left_behind(
    encode: Encode, start: tuple[Path, Path], train: Callable[..., Any]
) -> None:
    dataset, cache = start
    edit_rows(dataset, lambda rows: rows[2].update(text="edited"))
    Image.new("RGB", (40, 50), "teal").save(dataset / "flat.png")
    add_picture(dataset, "zebra.png", "one more")
    done(encode(dataset, cache, "--columns", "text"))
    said = done(kcache("info", cache)).stdout
    assert "\ntext: 11 samples, " in said
    assert ", 3 of 4 shards, 1 behind\n" in said
    behind = (
        "behind their samples: 1 in 'image', 1 in 'latents-32'; an encode was cut off, or left these columns out by"
    )
    assert f"{behind} --columns: run 'kcache encode DATASET {cache}' to bring them up to date" in said
    told = {
        column["name"]: column["behind"] for column in json.loads(kcache("info", cache, "--json").stdout)["columns"]
    }
    assert told == {"text": 0, "image": 1, "latents-32": 1}
    dry = done(encode(dataset, cache, "--dry-run")).stdout
    assert "an earlier run left 'image' behind (it was cut off, or --columns named others): 1 sample: flat.png" in dry
    edit_rows(dataset, lambda rows: rows.pop())
    (dataset / "zebra.png").unlink()
    done(encode(dataset, cache))
    assert "behind" not in done(kcache("info", cache)).stdout
    Image.new("RGB", (40, 50), "red").save(dataset / "flat.png")
    done(encode(dataset, cache, "--columns", "image"))
    assert "the last encode was cut off, or left these columns out by --columns; bring them up to date with" in refused(
        train("decoder", cache)
    )


def test_the_bar_of_verify_ends_where_all_is_read(encode: Encode, start: tuple[Path, Path]) -> None:
    dataset, cache = start
    edit_rows(dataset, lambda rows: rows[0].update(text="edited"))
    done(encode(dataset, cache))
    read: list[int] = []
    verify(Cache(cache), deep=True, progress=read.append)
    assert sum(read) == committed_bytes(Cache(cache))


@pytest.mark.parametrize("options", [[], ["--deep"]])
def test_verify_finds_no_fault_in_a_whole_cache(first: tuple[Path, Path, Any], options: list[str]) -> None:
    assert done(kcache("verify", first[1], *options)).stdout.startswith("No fault in 12 files, ")


@pytest.mark.parametrize("container", ["tar", "h5"])
def test_verify_deep_names_the_file_and_the_sample_of_one_changed_byte(
    encode: Encode, pictures: Path, tmp_path: Path, container: str
) -> None:
    cache = tmp_path / "cache"
    done(encode(pictures, cache, "--format", container))
    pinned = Snapshot(Cache(cache), ["latents-32"]).pinned["latents-32"]
    path, sample = cache / list(pinned.files)[1].file, Cache(cache).ids(1)[2]
    flip(path, int(pinned.entries[4 + 2, 0]["offset"]) + 7)
    done(kcache("verify", cache))  # of the same size: only a look at every byte can tell
    result = done(kcache("verify", cache, "--deep"), code=1)
    name = path.relative_to(cache)
    assert f"{name}: does not match its sha256: samples '{sample}' are damaged" in result.stdout
    assert "1 fault in 12 files" in result.stdout
    assert "copy those files again, or run 'kcache verify" in result.stdout


def test_verify_names_files_that_are_cut_or_missing(start: tuple[Path, Path]) -> None:
    _, cache = start
    (cut,), (lost,) = (cache / "text").glob("000001*.tar"), (cache / "image").glob("000002*.idx")
    nbytes = cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[:-1])
    lost.unlink()
    said = done(kcache("verify", cache), code=1).stdout
    assert f"text/{cut.name}: has {nbytes - 1:,} bytes, its commit says {nbytes:,}" in said
    assert re.search(rf"image/{lost.name}: is missing", said)
    assert "2 faults" in said


@pytest.mark.parametrize("lost", ["plan/000000.jsonl", "plan/000002.jsonl", "plan", "columns/text.json", "samples"])
def test_verify_names_records_that_are_lost(start: tuple[Path, Path], lost: str) -> None:
    path = start[1] / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    result = done(kcache("verify", start[1]), code=1)
    assert lost.split("/")[0] in result.stdout


# --- as real processes


def test_the_installed_command_encodes_and_exits_with_0(
    first: tuple[Path, Path, Any], tiny_prior: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    options = [*checkpoint_options(tiny_prior, tiny_decoder), "--resolution=32", "--shard-size=4", "--batch-size=3"]
    line = [sys.executable, "-m", "kcache", "encode", str(first[0]), str(tmp_path / "cache"), "-q", "--device=cpu"]
    ran = subprocess.run([*line, *options], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "Encoded text 10, image 10, latents-32 10 in " in ran.stdout
    assert "Traceback" not in ran.stderr
    assert tree(tmp_path / "cache", without=("index",)) == tree(first[1], without=("index",))
