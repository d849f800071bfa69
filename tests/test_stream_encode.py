"""A dataset that can only be read from its beginning to its end, encoded window by window from the command line."""

from pathlib import Path
from typing import Any

import pytest
from commands import Encode, counted, done
from folders import picture
from support import features, ids
from test_year import encoded

from kcache.encoding.dataset import DatasetOptions
from kcache.encoding.streams import Stream
from kcache.shards import Cache

COLUMNS = ("text", "image", "latents-32")


def rows(*captions: str) -> list[dict[str, Any]]:
    return [
        {"name": f"picture {i}", "image": {"bytes": picture((30 + i, 30)), "path": None}, "text": text}
        for i, text in enumerate(captions)
        if text
    ]


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch, encode: Encode, tmp_path: Path) -> Any:
    """``streamed(rows, *options)``: what `--streaming` does once the hub has answered."""
    from datasets import Dataset, Features, Image, Value

    monkeypatch.setattr("kcache.encoding.encode.STREAM_SHARDS", 1)

    def run(table: list[dict[str, Any]], *options: str) -> Any:
        kinds = Features({"name": Value("string"), "image": Image(decode=False), "text": Value("string")})
        stream = Dataset.from_list(table, features=kinds).to_iterable_dataset()
        opened = Stream(stream, "streamed", DatasetOptions(id_column="name"))
        monkeypatch.setattr("kcache.encoding.encode.open_dataset", lambda *_: opened)
        return encode("user/streamed", tmp_path / "cache", *options)

    return run


def test_a_dry_run_of_a_stream_counts_all_its_windows(streamed: Any, tmp_path: Path) -> None:
    result = done(streamed(rows("a", "b", "c", "d", "e", "f"), "--dry-run"))
    assert "text         would encode 6 samples, about " in result.stdout
    assert "latents-32   would encode 6 samples, about " in result.stdout
    assert not (tmp_path / "cache").exists()


def test_a_stream_is_followed_as_a_dataset_that_can_be_listed(streamed: Any, tmp_path: Path) -> None:
    first = rows("a", "b", "c", "d", "e", "f")
    assert encoded(done(streamed(first))) == dict.fromkeys(COLUMNS, 6)
    cache = Cache(tmp_path / "cache")
    assert ids(cache) == [f"picture {i}" for i in range(6)]
    assert encoded(done(streamed(first))) == {}
    # One caption is edited, one picture is gone, one is new; the counts are of the whole stream.
    result = done(streamed(rows("a", "another b", "", "d", "e", "f", "g")))
    assert counted(result)["text"] == {"hit": 4, "changed": 1, "new": 1, "gone": 1, "set aside": 0}
    assert encoded(result) == {"text": 2, "image": 1, "latents-32": 1}
    assert "picture 2" in features(Cache(cache.root), "image")
    done(streamed(rows("a", "another b", "", "d", "e", "f", "g"), "--prune"))
    for column in COLUMNS:
        assert set(features(Cache(cache.root), column)) == {f"picture {i}" for i in (0, 1, 3, 4, 5, 6)}
