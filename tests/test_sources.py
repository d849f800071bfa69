"""Every kind of dataset: which samples it has, under which ids and captions, and what a second look costs."""

import hashlib
import logging
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import make_old, tree
from folders import write
from sources import (
    IMAGES,
    captions,
    faults,
    img2dataset,
    make_parquet,
    make_pictures,
    make_tar,
    opened,
    write_table,
)
from support import encode_tiny, features, ids

from kcache.encoding import parquet, saved_tables
from kcache.encoding import tars as tar_source
from kcache.encoding.memory import Memory, Scans
from kcache.shards.errors import KcacheError, UsageError

SHA = {name: hashlib.sha256(data).hexdigest() for name, data in IMAGES.items()}
ROWS: dict[str, dict[str, Any]] = {
    "0a": {"text": "red", "width": 512, "lang": "en", "captions": ["red", "rot"]},
    "0b": {"text": "blue", "width": 256, "lang": "de", "captions": "blue"},
    "0c": {"text": "green", "width": 1024, "lang": None, "captions": ["green"]},
}


# --- tars


def test_a_tar_of_img2dataset_has_its_captions_and_each_image_at_its_place(tmp_path: Path) -> None:
    dataset = opened(img2dataset(tmp_path / "00000.tar", ROWS))
    assert captions(dataset.samples) == {
        "00000.tar/0a.jpg": ["red"],
        "00000.tar/0b.jpg": ["blue"],
        "00000.tar/0c.jpg": ["green"],
    }
    for name in "abc":
        assert dataset.read(f"00000.tar/0{name}.jpg") == IMAGES[name]
        assert dataset.sha256(f"00000.tar/0{name}.jpg") == SHA[name]


def test_a_folder_and_a_pattern_of_tars_have_the_same_ids(tmp_path: Path) -> None:
    for number, key in enumerate(ROWS):
        img2dataset(tmp_path / "data" / f"{number:05}.tar", {key: ROWS[key]})
        write(tmp_path / "data" / f"{number:05}.parquet", b"what img2dataset writes beside each tar")
    expected = {"00000.tar/0a.jpg": ["red"], "00001.tar/0b.jpg": ["blue"], "00002.tar/0c.jpg": ["green"]}
    for name in ("data", "data/*.tar", "data/{00000..00002}.tar", "data/0000[0-9].tar"):
        assert captions(opened(tmp_path / name).samples) == expected
    assert len(opened(tmp_path / "data/{00000,00002}.tar").samples) == 2


def test_members_share_a_name_up_to_its_last_dot_and_lie_in_any_order(tmp_path: Path) -> None:
    members = {
        "./x/cat.1.txt": b"one",
        "./x/cat.2.jpg": IMAGES["b"],
        "./x/cat.1.jpg": IMAGES["a"],
        "x/cat.2.txt": b"two",
    }
    dataset = opened(make_tar(tmp_path / "t.tar", members))
    assert captions(dataset.samples) == {"t.tar/x/cat.2.jpg": ["two"], "t.tar/x/cat.1.jpg": ["one"]}
    assert dataset.read("t.tar/x/cat.1.jpg") == IMAGES["a"]


def test_long_and_foreign_names_in_a_tar_are_ids(tmp_path: Path) -> None:
    name = "ö" * 60 + "/" + "x" * 120
    members = {f"{name}.png": IMAGES["a"], f"{name}.txt": "ä\n".encode(), "._a.jpg": b"of a Mac"}
    dataset = opened(make_tar(tmp_path / "t.tar", members))
    assert captions(dataset.samples) == {f"t.tar/{name}.png": ["ä"]}
    assert dataset.read(f"t.tar/{name}.png") == IMAGES["a"]


def test_captions_ids_and_conditions_may_come_from_the_json(tmp_path: Path) -> None:
    tar = img2dataset(tmp_path / "t.tar", ROWS)
    dataset = opened(tar, caption_column="captions", id_column="key", where="width >= 512 and status == 'success'")
    assert captions(dataset.samples) == {"0a": ["red", "rot"], "0c": ["green"]}
    assert dataset.read("0c") == IMAGES["c"]
    assert captions(opened(tar, where="'ee' in text").samples) == {"t.tar/0c.jpg": ["green"]}


def test_what_a_tar_lacks_beside_an_image_sets_that_image_aside(tmp_path: Path) -> None:
    members = {"a.jpg": IMAGES["a"], "b.jpg": IMAGES["b"], "b.txt": b"caf\xe9", "c.jpg": IMAGES["c"], "c.txt": b"see"}
    tar = make_tar(tmp_path / "t.tar", {**members, "c.json": b"{}", "b.json": b"{oops"})
    assert faults(opened(tar).samples) == {
        "t.tar/a.jpg": "it has no .txt beside it in its tar",
        "t.tar/b.jpg": "its .txt is not UTF-8 text",
    }
    with pytest.raises(KcacheError, match=r"has no column 'words' \(it has: 'file_name', 'text'\)"):
        opened(tar, caption_column="words")


# --- tables of paths


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_names_pictures_relative_to_itself_and_keeps_its_order(tmp_path: Path, suffix: str) -> None:
    make_pictures(tmp_path / "pictures", "a", "b")
    absolute = str(make_pictures(tmp_path / "elsewhere", "c") / "c.png")
    names = ["../pictures/b.png", absolute, "../pictures/a.png"]
    path, rows = tmp_path / "tables" / f"t.{suffix}", [{"image": name, "text": name[-5]} for name in names]
    if suffix == "parquet":
        make_parquet(path, image=names, text=["b", "c", "a"])
    else:
        write_table(path, rows)
    dataset = opened(path)
    assert captions(dataset.samples) == {"../pictures/b.png": ["b"], absolute: ["c"], "../pictures/a.png": ["a"]}
    assert list(captions(dataset.samples)) == names
    assert dataset.read(absolute) == IMAGES["c"]
    assert dataset.sha256("../pictures/a.png") == SHA["a"]
    assert dataset.stat(absolute) == (len(IMAGES["c"]), os.stat(absolute).st_mtime_ns)


def test_a_row_of_a_table_without_its_picture_or_caption_is_set_aside(tmp_path: Path) -> None:
    make_pictures(tmp_path, "a", "b")
    (tmp_path / "folder.png").mkdir()
    named = {"a.png": "x", "b.png": None, "lost.png": "x", "folder.png": "x", None: "x"}
    table = write_table(tmp_path / "t.jsonl", [{"file_name": name, "text": text} for name, text in named.items()])
    assert faults(opened(table).samples) == {
        "b.png": "it has no caption: its 'text' is empty",
        "lost.png": "the file does not exist",
        "folder.png": "it is a folder, not a file",
        "t.jsonl:5": "it names no image",
    }


def test_cells_of_csv_compare_as_numbers_where_they_are_written_as_such(tmp_path: Path) -> None:
    make_pictures(tmp_path, "a", "b", "c")
    rows = [("a.png", "512", "007"), ("b.png", "", "7"), ("c.png", "99.5", "x")]
    table = write_table(tmp_path / "t.csv", [{"image": i, "text": i, "width": w, "n": n} for i, w, n in rows])
    assert list(captions(opened(table, where="width > 100").samples)) == ["a.png"]
    assert list(captions(opened(table, where="width < 100").samples)) == ["c.png"]
    assert list(captions(opened(table, where="width is None and n == 7").samples)) == ["b.png"]
    assert list(captions(opened(table, where='n == "007"').samples)) == ["a.png"]


# --- tables with images


def test_parquet_with_images_is_known_by_their_hash_and_occurrence(tmp_path: Path) -> None:
    first = [{"bytes": IMAGES[name], "path": "x.png"} for name in "aba"]
    make_parquet(tmp_path / "data" / "0.parquet", image=first, text=["one", "two", "three"])
    make_parquet(tmp_path / "data" / "1.parquet", image=[first[0], None], text=["four", "five"])
    dataset = opened(tmp_path / "data")
    expected = {SHA["a"]: ["one"], SHA["b"]: ["two"], f"{SHA['a']}-2": ["three"], f"{SHA['a']}-3": ["four"]}
    assert captions(dataset.samples) == expected
    assert list(faults(dataset.samples).values()) == ["1.parquet, row 1 has no image: it is empty"]
    assert dataset.read(f"{SHA['a']}-3") == IMAGES["a"]
    last = opened(tmp_path / "data" / "*.parquet", where="'four' in text")
    assert captions(last.samples) == {f"{SHA['a']}-3": ["four"]}, "an id does not depend on --where"


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_images_of_parquet_are_found_in_any_order(tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "IMAGES_AT_ONCE", batch)
    data = [bytes([i]) * 50 for i in range(40)]
    make_parquet(tmp_path / "0.parquet", 13, image=data[:25], text=["x"] * 25)
    make_parquet(tmp_path / "1.parquet", 13, image=data[25:], text=["x"] * 15)
    dataset = opened(tmp_path)
    names = [sample.id for sample in dataset.samples]
    for row in [*range(40), 39, 0, 38, 1, 20, 19, 21, 2, *range(39, -1, -1)]:
        assert dataset.read(names[row]) == data[row]


def test_a_path_in_a_parquet_of_images_is_read_and_followed_when_it_changes(tmp_path: Path) -> None:
    make_pictures(tmp_path, "a", "b")
    cells = [{"bytes": None, "path": "a.png"}, {"bytes": IMAGES["c"], "path": "c.png"}]
    table = make_parquet(tmp_path / "t.parquet", image=cells, text=["one", "two"], id=[1, 2])
    scans = Scans(tmp_path)
    assert list(captions(opened(table, scans).samples)) == [SHA["a"], SHA["c"]]
    scans.store(tmp_path)
    make_old(write(tmp_path / "a.png", IMAGES["b"]))
    assert list(captions(opened(table, Scans(tmp_path)).samples)) == [SHA["b"], SHA["c"]]
    dataset = opened(table, id_column="id")
    assert dataset.stat("1") == (len(IMAGES["b"]), (tmp_path / "a.png").stat().st_mtime_ns)
    assert dataset.stat("2") == (table.stat().st_size, table.stat().st_mtime_ns)


# --- caption files


def test_numbered_caption_files_are_further_captions_in_numeric_order(tmp_path: Path) -> None:
    make_pictures(tmp_path, "a", "b")
    for name, text in (("a.txt", "0"), ("a.1.txt", "1"), ("a.2.txt", "2"), ("a.10.txt", "10"), ("b.png.txt", "b")):
        write(tmp_path / name, text.encode())
    write(tmp_path / "b.png.3.txt", b"b 3")
    write(tmp_path / "b.txt", b"meant for b.jpg")
    write(tmp_path / "a.x.txt", b"of nothing")
    assert captions(opened(tmp_path).samples) == {"a.png": ["0", "1", "2", "10"], "b.png": ["b", "b 3"]}


def test_a_caption_file_belongs_to_the_picture_of_its_own_name_alone(tmp_path: Path) -> None:
    for name in ("a.png", "a.1.png", "a.3.jpg"):
        write(tmp_path / name, IMAGES["a"])
    for name in ("a.txt", "a.1.txt", "a.1.1.txt", "a.2.txt", "a.3.jpg.txt"):
        write(tmp_path / name, name.encode())
    assert captions(opened(tmp_path).samples) == {
        "a.1.png": ["a.1.txt", "a.1.1.txt"],
        "a.3.jpg": ["a.3.jpg.txt"],
        "a.png": ["a.txt", "a.2.txt"],
    }


# --- ids and conditions


def saved(folder: Path, **columns: Any) -> Path:
    from datasets import Dataset

    Dataset.from_dict(columns).cast_column("image", image_feature()).save_to_disk(str(folder))
    for path in folder.iterdir():
        make_old(path)
    return folder


def image_feature() -> Any:
    from datasets import Image

    return Image()


def make_every_kind(folder: Path, uids: tuple[str | None, ...] = ("id-a", "id-b", "id-c")) -> dict[str, Path]:
    """The same three rows in each kind of dataset that has metadata."""
    rows = [
        {"text": row["text"], "uid": uid, "width": row["width"]} for row, uid in zip(ROWS.values(), uids, strict=True)
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    cells = [{"bytes": IMAGES[name], "path": None} for name in "abc"]
    made = make_pictures(folder / "pictures", "a", "b", "c")
    write_table(made / "metadata.jsonl", [{"file_name": f"{n}.png", **row} for n, row in zip("abc", rows, strict=True)])
    named = [{"image": f"pictures/{name}.png", **row} for name, row in zip("abc", rows, strict=True)]
    return {
        "folder": made,
        "csv": write_table(folder / "t.csv", named),
        "parquet of paths": make_parquet(folder / "p.parquet", **columns, image=[row["image"] for row in named]),
        "parquet of images": make_parquet(folder / "data/i.parquet", **columns, image=cells),
        "tar": img2dataset(folder / "t.tar", dict(zip(ROWS, rows, strict=True))),
        "saved": saved(folder / "saved", **columns, image=cells),
    }


KINDS = ("folder", "csv", "parquet of paths", "parquet of images", "tar", "saved")


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_every_kind(tmp_path_factory.mktemp("kinds"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_column_and_a_condition_work_with_every_kind(
    every_kind: dict[str, Path], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kcache")
    dataset = opened(every_kind[kind], id_column="uid", where="width > 300")
    assert captions(dataset.samples) == {"id-a": ["red"], "id-c": ["green"]}
    assert [dataset.sha256(name) for name in ("id-a", "id-c")] == [SHA["a"], SHA["c"]]
    assert "--where keeps 2 of 3 samples" in caplog.messages


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_in_a_condition_is_answered_with_the_nearest(every_kind: dict[str, Path], kind: str) -> None:
    with pytest.raises(UsageError, match=r"--where names 'widht', .*width.*; did you mean 'width'\?$"):
        opened(every_kind[kind], where="widht > 300")


@pytest.mark.parametrize("kind", KINDS)
def test_a_condition_that_keeps_nothing_is_an_error(every_kind: dict[str, Path], kind: str) -> None:
    with pytest.raises(KcacheError, match=r"--where 'width > 5000' keeps 0 of the 3 samples of dataset "):
        opened(every_kind[kind], where="width > 5000")


@pytest.mark.parametrize(
    ("uids", "reason", "row"),
    [
        (("same", "other", "same"), "it is 'same', as a row before it is; give that one a list of captions", 2),
        (("a", None, "c"), r"it has (nothing|'') in column 'uid', which is to be its id; give every row .*", 1),
        (("a", "", "c"), "it has '' in column 'uid', which is to be its id; give every row .*", 1),
    ],
    ids=["repeated", "missing", "empty"],
)
def test_a_row_whose_id_is_no_id_is_set_aside_under_its_place(
    tmp_path: Path, uids: tuple[str | None, ...], reason: str, row: int
) -> None:
    places = {
        "folder": f"metadata.jsonl:{row + 1}",
        "csv": f"t.csv:{row + 2}",
        "parquet of paths": f"p.parquet, row {row}",
        "parquet of images": f"i.parquet, row {row}",
        "tar": f"t.tar/0{'abc'[row]}.jpg",
        "saved": f"row {row}",
    }
    for kind, path in make_every_kind(tmp_path, uids).items():
        samples = opened(path, id_column="uid").samples
        (place, said), *others = faults(samples).items()
        assert (place, others) == (places[kind], []), kind
        assert re.fullmatch(reason, said), kind
        assert set(captions(samples)) == {uid for uid in uids if uid}, kind


def test_rows_none_of_which_can_be_used_are_an_error_and_not_all_set_aside(tmp_path: Path) -> None:
    for kind, path in make_every_kind(tmp_path, (None, None, None)).items():
        with pytest.raises(KcacheError, match=r"has no row that can be used; the first is .*: it has (nothing|'') in"):
            opened(path, id_column="uid")
        if kind in ("folder", "parquet of images", "saved"):
            with pytest.raises(KcacheError, match=r": its 'width' is neither a caption nor a list of captions: 512"):
                opened(path, caption_column="width")


def test_a_picture_with_an_id_of_its_own_may_be_renamed(tmp_path: Path) -> None:
    make_pictures(tmp_path, "a")
    for name in ("a.png", "b.png"):
        write_table(tmp_path / "metadata.jsonl", [{"file_name": name, "text": "x", "number": 7}])
        dataset = opened(tmp_path, id_column="number")
        assert captions(dataset.samples) == {"7": ["x"]}
        assert dataset.read("7") == IMAGES["a"]
        (tmp_path / "a.png").rename(tmp_path / "b.png") if name == "a.png" else None


def test_caption_files_offer_their_text_and_name_to_a_condition(tmp_path: Path) -> None:
    make_pictures(tmp_path, "a", "b", "c")
    for name, text in (("a.txt", "a cat"), ("a.1.txt", "a pet"), ("b.txt", "a dog"), ("c.txt", "a pet")):
        write(tmp_path / name, text.encode())
    assert list(captions(opened(tmp_path, where='"pet" in text').samples)) == ["a.png", "c.png"]
    assert list(captions(opened(tmp_path, where='file_name < "c" and text != "a dog"').samples)) == ["a.png"]


def test_a_picture_without_a_row_has_null_in_every_field(tmp_path: Path) -> None:
    make_pictures(tmp_path, "a", "b")
    write_table(tmp_path / "metadata.jsonl", [{"file_name": "a.png", "text": "x", "width": 5}])
    assert [sample.id for sample in opened(tmp_path, where="width > 1").samples] == ["a.png"]
    assert faults(opened(tmp_path, where="width != 9").samples) == {"b.png": "it has no row in the metadata"}


# --- options that would have to be ignored


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("tar", {"image_column": "jpg"}, "--image-column has no meaning for dataset "),
        ("tar", {"split": "test"}, "--split has no meaning for dataset "),
        ("csv", {"config_name": "x"}, "--dataset-config-name has no meaning for dataset "),
        ("folder", {"streaming": True}, "--streaming has no meaning for dataset "),
        ("parquet of images", {"split": "test"}, "--split has no meaning for dataset "),
        ("saved", {"config_name": "x"}, "--dataset-config-name has no meaning for dataset "),
    ],
)
def test_an_option_without_a_meaning_is_refused(
    every_kind: dict[str, Path], kind: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as error:
        opened(every_kind[kind], **options)
    assert str(error.value).startswith(f"{said}{every_kind[kind]}, ")


@pytest.mark.parametrize("option", ["id_column", "caption_column", "image_column"])
def test_a_column_of_a_folder_without_metadata_is_refused(tmp_path: Path, option: str) -> None:
    write(make_pictures(tmp_path, "a") / "a.txt", b"x")
    with pytest.raises(UsageError, match=r"folder of pictures without metadata\.jsonl or metadata\.csv; leave"):
        opened(tmp_path, **{option: "x"})


# --- what a second look costs


def test_tables_and_tars_that_did_not_change_are_not_read_again(
    every_kind: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, first = Scans(None), {}
    for kind in ("tar", "parquet of images", "saved"):
        first[kind] = opened(every_kind[kind], scans).samples
    scans.store(tmp_path)
    monkeypatch.setattr(tar_source, "scan_tar", lambda *_: pytest.fail("the tar was read"))
    monkeypatch.setattr(parquet.ParquetImages, "cell", lambda *_: pytest.fail("an image was read"))
    monkeypatch.setattr(saved_tables.SavedImages, "cell", lambda *_: pytest.fail("an image was read"))
    for kind, samples in first.items():
        assert opened(every_kind[kind], Scans(tmp_path)).samples == samples
        with pytest.raises(pytest.fail.Exception, match="was read"):
            opened(every_kind[kind], Scans(tmp_path, rehash=True))


def test_a_tar_that_changed_is_read_again(tmp_path: Path) -> None:
    scans = Scans(None)
    opened(img2dataset(tmp_path / "t.tar", {"0a": ROWS["0a"]}), scans)
    scans.store(tmp_path)
    img2dataset(tmp_path / "t.tar", {"0a": {"text": "another, and as long as nothing before it"}, "0b": ROWS["0b"]})
    assert len(opened(tmp_path / "t.tar", Scans(tmp_path)).samples) == 2


def test_what_was_read_within_two_seconds_of_a_change_is_not_believed(tmp_path: Path) -> None:
    scans, now = Scans(None), time.time_ns()
    scans.put("fresh", (1, now), "x")
    scans.put("old", (1, now - 10**10), ["x", None])
    scans.put("of no file", None, "x")
    scans.store(tmp_path)
    later = Scans(tmp_path)
    assert later.get("old", (1, now - 10**10)) == ["x", None]
    assert later.get("old", (2, now - 10**10)) is None
    assert later.get("fresh", (1, now)) is None
    assert later.get("of no file", None) is None
    assert Scans(tmp_path, rehash=True).get("old", (1, now - 10**10)) is None


def test_scans_that_are_damaged_or_of_files_no_longer_asked_for_are_dropped(tmp_path: Path) -> None:
    scans, stat = Scans(None), (1, 0)
    for key in "abc":
        scans.get(key, stat)
        scans.put(key, stat, key)
    scans.store(tmp_path)
    first, *_ = files = sorted((tmp_path / "index/scans").iterdir())
    assert len(files) == 3
    first.write_bytes(first.read_bytes()[:-5])
    later = Scans(tmp_path)
    assert sorted(str(later.get(key, stat)) for key in "ab") != ["None", "None"]
    later.store(tmp_path)
    assert len(list((tmp_path / "index/scans").iterdir())) == 2


def test_rehash_opens_every_picture(tmp_path: Path) -> None:
    write(make_pictures(tmp_path / "d", "a") / "a.txt", b"x")
    dataset = opened(tmp_path / "d")
    memory = Memory(dataset, None)
    assert memory.sha256("a.png") == SHA["a"]
    memory.store(tmp_path)
    stat = (tmp_path / "d/a.png").stat()
    write(tmp_path / "d/a.png", IMAGES["a"][::-1])
    os.utime(tmp_path / "d/a.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert Memory(dataset, tmp_path).sha256("a.png") == SHA["a"]
    assert Memory(dataset, tmp_path, rehash=True).sha256("a.png") == hashlib.sha256(IMAGES["a"][::-1]).hexdigest()


# --- from the source to the cache


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_encoded_to_the_same_features_and_hit_by_a_second_run(
    every_kind: dict[str, Path], kind: str, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"columns": ("text", "image"), "id_column": "uid"}
    first = encode_tiny(tmp_path / "first", every_kind["folder"], tiny_prior, tiny_decoder, **options)
    cache = encode_tiny(tmp_path / "cache", every_kind[kind], tiny_prior, tiny_decoder, **options)
    assert ids(cache) == ["id-a", "id-b", "id-c"]
    expected, found = features(first, "image"), features(cache, "image")
    assert all(np.array_equal(found[name]["image_embeds"], expected[name]["image_embeds"]) for name in expected)
    before = tree(tmp_path / "cache")
    encode_tiny(tmp_path / "cache", every_kind[kind], tiny_prior, tiny_decoder, **options)
    assert tree(tmp_path / "cache") == before
