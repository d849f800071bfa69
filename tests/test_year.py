"""A dataset's year: after every change the cache equals a fresh encode, and only what changed was encoded."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from commands import Encode, copy_old, counted, done, encode_with, kcache, make_old
from folders import picture
from PIL import Image
from support import Array, features, ids

from kcache.shards import Cache

COLUMNS = ("text", "image", "latents-32")


def encoded(result: Result) -> dict[str, int]:
    """How many samples of each column the command says that it encoded."""
    said = re.match(r"Encoded (.*) in \d", result.stdout)
    return {name: int(n) for name, n in re.findall(r"([\w-]+) (\d+)", said[1])} if said else {}


def changed_files(before: set[str], cache: Path) -> set[str]:
    """The folders of shard files that were not there before."""
    return {name.split("/")[0] for name in files(cache) - before}


def files(cache: Path) -> set[str]:
    names = {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith(("index/", "commits/", "columns/", "plan/"))}


@dataclass
class Year:
    """A dataset, the cache that follows it, and what is expected of both."""

    folder: Path
    encode: Encode
    container: str
    gone: set[str] = field(default_factory=set)
    aside: set[str] = field(default_factory=set)
    options: list[object] = field(default_factory=list)

    @property
    def dataset(self) -> Path:
        return self.folder / "pictures"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def rows(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change ``metadata.jsonl`` as a dict of captions by file name."""
        path = self.dataset / "metadata.jsonl"
        rows = {row["file_name"]: row["text"] for row in map(json.loads, path.read_text("utf-8").splitlines())}
        change(rows)
        lines = (json.dumps({"file_name": name, "text": text}) + "\n" for name, text in rows.items())
        path.write_text("".join(lines), "utf-8")

    def paint(self, name: str, data: bytes) -> None:
        """Put another picture there, with a time of change that may be believed."""
        (self.dataset / name).write_bytes(data)
        make_old(self.dataset / name)

    def passes(self, expected: dict[str, int], *options: object, code: int | None = None) -> Result:
        """Encode, and compare what was encoded with what is ``expected``, and the cache with a fresh one."""
        code = code if code is not None else 3 if self.aside else 0
        result = done(self.encode(self.dataset, self.cache, *self.options, *options), code=code)
        assert encoded(result) == expected, result.output
        self.equals_a_fresh_encode(*options)
        assert done(kcache("verify", self.cache, "--deep")).stdout.startswith("No fault")
        again = done(self.encode(self.dataset, self.cache, *self.options), code=3 if self.aside else 0)
        assert encoded(again) == {}, again.output
        return result

    def equals_a_fresh_encode(self, *options: object) -> None:
        fresh = self.folder / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        names = Cache(self.cache).column_names()
        again = [option for option in options if option not in ("--prune", "--rehash")]
        if "--replace-column" in again:
            again = again[: again.index("--replace-column")]
        for option in (["--columns", *names],):
            done(self.encode(self.dataset, fresh, *self.options, *again, *option), code=3 if self.aside else 0)
        for column in names:
            one, other = features(Cache(self.cache), column), features(Cache(fresh), column)
            assert one.keys() - self.gone == other.keys(), column
            for sample in other:
                assert_equal(one[sample], other[sample], f"{column} of {sample}")


def assert_equal(one: dict[str, Array], other: dict[str, Array], what: str) -> None:
    assert {name: array.tobytes() for name, array in one.items()} == {
        name: array.tobytes() for name, array in other.items()
    }, what


@pytest.fixture
def year(tmp_path: Path, pictures: Path, tiny_prior: Path, tiny_decoder: Path, container: str) -> Year:
    """The ten pictures, encoded. One at a time, so that features do not depend on who shares their batch."""
    copy_old(pictures, tmp_path / "pictures")
    shutil.copytree(tiny_prior, tmp_path / "prior")
    year = Year(tmp_path, encode_with(tmp_path / "prior", tiny_decoder), container)
    year.options = ["--batch-size=1"]
    done(year.encode(year.dataset, year.cache, *year.options, "--format", container))
    return year


@pytest.mark.parametrize("container", ["tar", pytest.param("h5", marks=pytest.mark.torture)])
def test_a_year(year: Year) -> None:
    # January: a caption is edited, and one picture gets a second caption.
    year.rows(lambda rows: rows.update({"apple.webp": "a shiny red apple", "grey.png": ["an elephant", "it is grey"]}))
    before = files(year.cache)
    year.passes({"text": 2})
    assert changed_files(before, year.cache) == {"samples", "text"}

    # February: a picture is replaced, under its old name and caption.
    year.paint("flat.png", picture((90, 40)))
    before = files(year.cache)
    year.passes({"image": 1, "latents-32": 1})
    assert changed_files(before, year.cache) == {"samples", "image", "latents-32"}

    # March: two pictures are added.
    year.paint("zebra.png", picture((50, 60)))
    year.paint("aardvark.png", picture((60, 50)))
    year.rows(lambda rows: rows.update({"zebra.png": "a zebra", "aardvark.png": "an aardvark"}))
    year.passes({"text": 2, "image": 2, "latents-32": 2})

    # April: one is renamed, and one is renamed and captioned anew.
    for old, new in (("turned.jpg", "upright.jpg"), ("zebra.png", "more/zebra-1.png")):
        (year.dataset / old).rename(year.dataset / new)
    year.rows(lambda rows: rows.update({"upright.jpg": rows.pop("turned.jpg")}))
    year.rows(lambda rows: rows.update({"more/zebra-1.png": "a zebra that moved", "zebra.png": None}))
    year.rows(lambda rows: rows.pop("zebra.png"))
    before = files(year.cache)
    result = year.passes({"text": 1})
    assert "2 pictures renamed: known by the new name, nothing encoded." in result.stdout
    assert changed_files(before, year.cache) == {"samples", "text"}

    # May: one vanishes. It is kept, until it is pruned; and when it comes back, it takes its old place again.
    removed = (year.dataset / "see-through.png").read_bytes()
    (year.dataset / "see-through.png").unlink()
    year.rows(lambda rows: rows.pop("see-through.png"))
    year.gone = {"see-through.png"}
    assert counted(year.passes({}))["text"]["gone"] == 1
    order = ids(Cache(year.cache))
    year.gone = set()
    year.passes({}, "--prune")
    year.paint("see-through.png", removed)
    year.rows(lambda rows: rows.update({"see-through.png": "a ghost"}))
    year.passes({"text": 1, "image": 1, "latents-32": 1})
    assert ids(Cache(year.cache)) == order

    # June: every caption is written anew.
    year.rows(lambda rows: rows.update({name: f"picture {n}" for n, name in enumerate(sorted(rows))}))
    year.passes({"text": 12})

    # July: a new resolution.
    year.passes({"latents-16": 12}, "--resolution", "32", "16")

    # August: a download breaks one picture and loses the caption of another; a text file calls itself a picture.
    whole = (year.dataset / "apple.webp").read_bytes()
    year.paint("apple.webp", whole[: len(whole) // 2])
    year.paint("notes.png", b"buy milk")
    year.rows(lambda rows: rows.update({"notes.png": "notes", "grey.png": []}))
    year.aside, year.gone = {"apple.webp", "notes.png"}, {"grey.png"}
    result = year.passes({})
    assert "  grey.png: lost its caption (it has no caption: its 'text' is empty)\n" in result.stderr
    listed = done(kcache("info", year.cache, "--set-aside")).stdout.splitlines()
    assert {line.split("\t")[0] for line in listed} == year.aside

    # September: all are mended, one of them with the very bytes that it had.
    year.paint("apple.webp", whole)
    year.paint("notes.png", picture((33, 44)))
    year.rows(lambda rows: rows.update({"grey.png": "grey again"}))
    year.aside, year.gone = set(), set()
    year.passes({"text": 3, "image": 2, "latents-32": 2, "latents-16": 2})

    # October: a new text encoder.
    weights = year.folder / "prior" / "text_encoder" / "model.safetensors"
    weights.write_bytes(nudged(weights))
    done(year.encode(year.dataset, year.cache, *year.options), code=1)
    year.passes({"text": 13}, "--replace-column", "text")

    # November: two pictures exchange their names; nothing may be taken for the other.
    one, other = year.dataset / "apple.webp", year.dataset / "long-caption.webp"
    one.rename(year.dataset / "apple"), other.rename(one), (year.dataset / "apple").rename(other)
    year.passes({"image": 2, "latents-32": 2, "latents-16": 2})

    # December: all of it at once.
    year.rows(lambda rows: rows.update({"upright.jpg": "the last caption"}))
    year.paint("flat.png", picture((41, 90)))
    year.paint("new.png", picture((42, 42)))
    (year.dataset / "notes.png").rename(year.dataset / "renamed.png")
    (year.dataset / "empty-caption.webp").unlink()
    year.rows(lambda rows: rows.update({"new.png": "new", "renamed.png": rows.pop("notes.png")}))
    year.rows(lambda rows: rows.pop("empty-caption.webp"))
    year.gone = {"empty-caption.webp"}
    result = year.passes({"text": 2, "image": 2, "latents-16": 2, "latents-32": 2})
    assert counted(result)["image"] == {"hit": 11, "changed": 1, "new": 1, "gone": 1, "set aside": 0}


def nudged(weights: Path) -> bytes:
    from safetensors.torch import load, save

    tensors = load(weights.read_bytes())
    tensors["text_projection.weight"] *= 1.1
    return save(tensors, metadata={"format": "pt"})


def test_neighbours_of_a_changed_row_keep_their_bytes_whatever_the_batch(
    encode: Encode, pictures: Path, tmp_path: Path, container: str
) -> None:
    dataset, cache = copy_old(pictures, tmp_path / "pictures"), tmp_path / "cache"
    done(encode(dataset, cache, "--format", container))
    before = features(Cache(cache), "latents-32")
    Image.new("RGB", (40, 40), "teal").save(dataset / "flat.png")
    done(encode(dataset, cache))
    after = features(Cache(cache), "latents-32")
    assert after.keys() == before.keys()
    for sample in before:
        if sample != "flat.png":
            assert_equal(after[sample], before[sample], sample)
    assert after["flat.png"]["latents"].tobytes() != before["flat.png"]["latents"].tobytes()
