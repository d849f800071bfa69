"""A stream of the ``datasets`` library: read once from its beginning, a window in memory, ids as in a table."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import Encode, refused
from sources import IMAGES, captions, faults, make_parquet, make_pictures, opened

from kcache.encoding.dataset import DatasetOptions, StreamedDataset
from kcache.encoding.memory import Scans
from kcache.encoding.open_dataset import open_dataset
from kcache.encoding.streams import Stream
from kcache.shards.errors import KcacheError, UsageError

SHA = {name: hashlib.sha256(data).hexdigest() for name, data in IMAGES.items()}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Six rows; the second and the fifth have the same image, the fourth has none."""
    cells = [{"bytes": IMAGES[name], "path": None} if name in IMAGES else None for name in "abc-bd"]
    texts = [["one", "uno"], ["two"], None, ["four"], ["five"], ["six"]]
    return make_parquet(tmp_path / "data" / "t.parquet", image=cells, text=texts, n=[1, 2, 3, 4, 5, 6])


def streamed(table: Path, **options: Any) -> Stream:
    """The rows of a parquet file, streamed as ``datasets`` streams those of the hub."""
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=str(table), split="train", streaming=True)
    return Stream(rows, "user/data", replace(DatasetOptions(), **options))


def test_windows_hold_the_samples_in_order_with_the_ids_of_a_table(table: Path) -> None:
    stream = streamed(table)
    assert isinstance(stream, StreamedDataset)
    windows = list(stream.windows(4))
    assert [len(window.samples) for window in windows] == [4, 2]
    expected = opened(table).samples
    assert captions([sample for window in windows for sample in window.samples]) == captions(expected)
    assert captions(windows[1].samples) == {f"{SHA['b']}-2": ["five"], SHA["d"]: ["six"]}
    assert windows[1].read(f"{SHA['b']}-2") == IMAGES["b"]
    assert windows[1].sha256(f"{SHA['b']}-2") == SHA["b"]
    assert windows[1].stat(SHA["d"]) is None
    with pytest.raises(OSError, match="it is empty"):
        windows[1].read(SHA["a"])


def test_rows_without_image_or_caption_have_a_fault(table: Path) -> None:
    (window,) = streamed(table).windows(100)
    assert list(faults(window.samples).values()) == [
        "row 2: it has no caption: its 'text' is empty",
        "row 3 has no image: it is empty",
    ]


def test_ids_and_conditions_work_on_a_stream(table: Path) -> None:
    windows = list(streamed(table, id_column="n", where='n > 1 and "i" in text').windows(1))
    assert [captions(window.samples) for window in windows] == [{"5": ["five"]}, {"6": ["six"]}]
    assert windows[0].read("5") == IMAGES["b"]
    (window,) = streamed(table, where='"five" in text').windows(9)
    assert list(captions(window.samples)) == [f"{SHA['b']}-2"], "occurrences are counted in all rows"


def test_pictures_that_a_stream_names_are_read(tmp_path: Path) -> None:
    from datasets import IterableDataset

    make_pictures(tmp_path, "a")
    paths = [str(tmp_path / "a.png"), str(tmp_path / "lost.png")]
    rows = IterableDataset.from_generator(lambda: ({"image": {"bytes": None, "path": p}, "text": "x"} for p in paths))
    (window,) = Stream(rows, "user/data", DatasetOptions()).windows(10)
    assert captions(window.samples) == {SHA["a"]: ["x"]}
    assert list(faults(window.samples).values()) == ["row 1 has no image: No such file or directory"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"image_column": "photo"},
            "dataset user/data has no column 'photo' (it has: 'image', 'text', 'n')",
        ),
        ({"caption_column": "words"}, "dataset user/data has no column 'words' (it has: "),
        ({"image_column": "n"}, "column 'n' of dataset user/data holds no images but "),
        ({"where": "m > 1"}, "--where names 'm', which dataset user/data does not have"),
        ({"where": "n > 10"}, "--where 'n > 10' keeps 0 of the 6 samples of dataset user/data"),
        (
            {"id_column": "text"},
            "dataset user/data has no row that can be used; the first is row 0: it has ['one', 'uno'] in",
        ),
    ],
)
def test_what_a_stream_lacks_is_named(table: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(KcacheError) as error:
        list(streamed(table, **options).windows(10))
    assert str(error.value).startswith(said)


def test_a_stream_that_breaks_says_how_far_it_came() -> None:
    from datasets import IterableDataset

    def rows() -> Iterator[dict[str, Any]]:
        yield {"image": IMAGES["a"], "text": "one"}
        yield {"image": IMAGES["b"], "text": "two"}
        raise ConnectionError("the line is dead.\nand more")

    windows = Stream(IterableDataset.from_generator(rows), "user/data", DatasetOptions()).windows(1)
    assert captions(next(windows).samples) == {SHA["a"]: ["one"]}
    with pytest.raises(KcacheError) as error:
        list(windows)
    said = "the stream of dataset user/data broke after 2 samples (the line is dead); what was committed is safe: "
    assert str(error.value) == said + "run the same command again"


def test_streaming_is_for_the_hub_alone(table: Path) -> None:
    for name in (str(table), str(table.parent), f"{table.parent}/*.parquet"):
        with pytest.raises(UsageError, match=r"^--streaming has no meaning for dataset .*, which lies on this machine"):
            open_dataset(name, DatasetOptions(streaming=True), Scans(None))


def test_a_stream_from_the_hub_that_cannot_be_reached_is_one_sentence(encode: Encode, tmp_path: Path) -> None:
    with pytest.raises(KcacheError, match=r"^dataset nobody/nothing is not a folder, and could not be had from"):
        open_dataset("nobody/nothing", DatasetOptions(streaming=True), Scans(None))
    assert refused(encode("nobody/nothing", tmp_path / "cache")).startswith("dataset nobody/nothing is not a folder")
