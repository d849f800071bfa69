"""How the dataset is read is kept in the cache: a second run needs no options, and says which it takes."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Encode, counted, done, kcache, refused, tree
from sources import make_pictures, write_table
from support import ids

from kcache.encoding.config import EncodeConfig
from kcache.encoding.remembered import reading_options, to_remember, with_remembered
from kcache.shards import Cache, dataset_options, keep_dataset_options

ROWS = [
    {"file_name": f"{name}.png", "text": f"text {name}", "prompt": f"prompt {name}", "uid": f"id-{name}", "width": w}
    for name, w in zip("abcd", (100, 200, 300, 400), strict=True)
]
TEXT = ("--columns", "text")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Four pictures with more than one column of captions."""
    folder = make_pictures(tmp_path / "pictures", "a", "b", "c", "d")
    write_table(folder / "metadata.jsonl", ROWS)
    return folder


def captions(cache: Path) -> dict[str, list[str]]:
    opened = Cache(cache)
    rows = [row for shard in range(opened.shard_count) for row in opened.samples(shard)]
    return {row["id"]: row["captions"] for row in rows if "removed" not in row}


@pytest.mark.parametrize(
    "options", [["--caption-column", "prompt"], ["--id-column", "uid"], ["--where", "width > 200"]], ids=str
)
def test_an_option_that_is_left_out_is_as_the_cache_has_it(
    encode: Encode, rows: Path, tmp_path: Path, options: list[str]
) -> None:
    cache = tmp_path / "cache"
    done(encode(rows, cache, *TEXT, *options))
    before, known = tree(cache), captions(cache)
    result = done(encode(rows, cache, *TEXT))
    spelled = f"{options[0]} 'width > 200'" if options[0] == "--where" else " ".join(options)
    assert f"reading the dataset as before: {spelled}\n" in result.stderr
    assert counted(result)["text"] == {"hit": len(known), "changed": 0, "new": 0, "gone": 0, "set aside": 0}
    assert tree(cache) == before
    assert f"its dataset is read with {spelled}\n" in done(kcache("info", cache)).stdout
    assert json.loads(done(kcache("info", cache, "--json")).stdout)["dataset_options"] != {}


def test_an_option_that_is_given_wins_and_is_kept(encode: Encode, rows: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done(encode(rows, cache, *TEXT, "--caption-column", "prompt", "--where", "width > 200"))
    result = done(encode(rows, cache, "--caption-column", "text"))
    assert "reading the dataset as before: --where 'width > 200'\n" in result.stderr
    assert "reading the dataset otherwise than before: it was --caption-column prompt\n" in result.stderr
    done(encode(rows, cache))
    assert captions(cache) == {"c.png": ["text c"], "d.png": ["text d"]}
    done(kcache("verify", cache))


def test_an_empty_option_takes_back_what_the_cache_has(encode: Encode, rows: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done(encode(rows, cache, *TEXT, "--where", "width > 200"))
    done(encode(rows, cache, "--where", ""))
    assert sorted(ids(Cache(cache))) == ["a.png", "b.png", "c.png", "d.png"]
    assert "as before" not in done(encode(rows, cache)).stderr
    assert dataset_options(Cache(cache)) == {}


def test_a_cache_whose_dataset_is_read_by_the_defaults_has_no_record_of_it(
    encode: Encode, rows: Path, tmp_path: Path
) -> None:
    done(encode(rows, tmp_path / "cache", *TEXT, "--max-pixels", "268435456"))
    assert not (tmp_path / "cache" / "dataset").exists()


def test_a_dry_run_keeps_nothing(encode: Encode, rows: Path, tmp_path: Path) -> None:
    done(encode(rows, tmp_path / "cache", *TEXT))
    before = tree(tmp_path / "cache")
    done(encode(rows, tmp_path / "cache", "--caption-column", "prompt", "--dry-run"))
    assert tree(tmp_path / "cache") == before


def test_an_option_of_the_cache_that_another_kind_cannot_use_says_how_to_take_it_back(
    encode: Encode, rows: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    done(encode(rows, cache, *TEXT, "--caption-column", "prompt"))
    (rows / "metadata.jsonl").unlink()
    said = refused(encode(rows, cache), code=2)
    assert said.startswith("--caption-column has no meaning for dataset ")
    assert said.endswith("it is as an earlier run into the cache had it; take it back with --caption-column ''")
    assert set(captions(cache)) == {"a.png", "b.png", "c.png", "d.png"}


@pytest.mark.parametrize(
    ("first", "taken_back"),
    [
        ({"split": "test", "streaming": True}, {"split": "train", "streaming": False}),
        ({"image_column": "photo", "dataset_config_name": "x"}, {"image_column": "", "dataset_config_name": ""}),
    ],
)
def test_all_that_says_how_a_dataset_is_read_is_kept_and_can_be_taken_back(
    tmp_path: Path, first: dict[str, Any], taken_back: dict[str, Any]
) -> None:
    cache = Cache.create(tmp_path / "cache", shard_size=4, container="tar")
    plain = reading_options(EncodeConfig(dataset="d", cache="c"))
    given = with_remembered(EncodeConfig(dataset="d", cache="c", **first), cache)
    keep_dataset_options(cache, to_remember(given))
    again = reading_options(with_remembered(EncodeConfig(dataset="d", cache="c"), cache))
    assert {name.replace("dataset_", ""): getattr(again, name.replace("dataset_", "")) for name in first} == {
        name.replace("dataset_", ""): value for name, value in first.items()
    }
    assert reading_options(with_remembered(EncodeConfig(dataset="d", cache="c", **taken_back), cache)) == plain


def test_a_damaged_record_of_the_dataset_is_named(encode: Encode, rows: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done(encode(rows, cache, *TEXT, "--caption-column", "prompt"))
    (record,) = (cache / "dataset").iterdir()
    record.write_bytes(record.read_bytes()[:-9])
    assert "dataset/000001.json: " in done(kcache("verify", cache), code=1).stdout
    assert str(record) in refused(encode(rows, cache))
