"""A dataset that is wrong in some way gets a sentence, and what can be encoded is."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Encode, counted, done, kcache, refused
from folders import picture, set_aside, write, write_rows
from PIL import Image
from support import features, ids
from tiny import LONG_CAPTION

from kcache.shards import Cache

NAMES = (
    "a b.png",
    "a.b..c.png",
    'it\'s a "quote".png',
    "日本語 ärger 🦊.png",
    "-dash.png",
    "#hash?&*[1].png",
    "two\nlines\u2028three.png",
    "tab\there.png",
    "UPPER.PNG",
    "per%20cent.png",
    "back\\slash.png",
    "folder with space/ü.png",
    "x.tar.png",
    "000000000.text_embeds.npy.png",
)


# --- datasets that are not there, or hold nothing


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "no/such/folder"])
def test_a_dataset_that_does_not_exist_is_named(encode: Encode, tmp_path: Path, name: str) -> None:
    said = refused(encode(name, tmp_path / "cache"))
    assert said == f"dataset {name} does not exist; name a folder of pictures, or a dataset on the hub"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["no-such-dataset", "nobody/no-such-dataset"])
def test_a_dataset_on_the_hub_that_cannot_be_reached_is_one_sentence(encode: Encode, tmp_path: Path, name: str) -> None:
    said = refused(encode(name, tmp_path / "cache"))
    assert said.startswith(f"dataset {name} is not a folder, and could not be had from the hub (")
    assert said.endswith("; check the name and the connection, or name a folder of pictures")
    assert not (tmp_path / "cache").exists()


def test_a_dataset_whose_name_is_empty_is_not_the_current_folder(encode: Encode, tmp_path: Path) -> None:
    assert refused(encode("", tmp_path / "cache"), code=2).startswith("the dataset's name is empty")


def test_an_empty_dataset_is_refused(encode: Encode, tmp_path: Path) -> None:
    write(tmp_path / "empty" / "notes.txt", b"no picture here")
    said = refused(encode(tmp_path / "empty", tmp_path / "cache"))
    assert said == f"dataset {tmp_path / 'empty'} is empty: it has no picture that kcache can see; name another"
    assert not (tmp_path / "cache").exists()


def test_a_dataset_that_is_a_file_is_refused(encode: Encode, tmp_path: Path) -> None:
    file = write(tmp_path / "a.png", picture())
    assert refused(encode(file, tmp_path / "cache")).startswith(f"dataset {file} is a file; name a folder of pictures")


# --- rows and files that do not belong together


def test_a_row_without_its_file_and_a_file_without_its_row_are_set_aside(
    encode: Encode, dataset: Path, tmp_path: Path
) -> None:
    write_rows(dataset, {"a.png": "one", "b.png": "two", "lost.png": "three"})
    result = done(encode(dataset, tmp_path / "cache"), code=3)
    reasons = {"c.png": "it has no row in the metadata", "lost.png": "the file does not exist"}
    assert "Encoded text 2, image 2, latents-32 2 in " in result.stdout
    assert "Set aside 2 samples (exit code 3):" in result.stderr
    for name, reason in reasons.items():
        assert f"  {name}: {reason}\n" in result.stderr
    assert set_aside(tmp_path / "cache") == reasons
    assert set(features(Cache(tmp_path / "cache"), "image")) == {"a.png", "b.png"}


def test_what_was_set_aside_is_said_again_by_the_next_run(encode: Encode, dataset: Path, tmp_path: Path) -> None:
    write_rows(dataset, {"a.png": "one", "b.png": None, "c.png": [], "lost.png": "three"})
    done(encode(dataset, tmp_path / "cache"), code=3)
    result = done(encode(dataset, tmp_path / "cache"), code=3)
    assert counted(result)["image"] == {"hit": 1, "changed": 0, "new": 0, "gone": 0, "set aside": 3}
    assert "  it has no caption: its 'text' is empty: 2 samples: b.png, c.png\n" in result.stderr


def test_more_than_ten_samples_set_aside_are_listed_by_info(encode: Encode, tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path / "dataset" / f"{i:02}.png", picture())
    result = done(encode(tmp_path / "dataset", tmp_path / "cache"), code=3)
    reason = "it has no caption: neither metadata.jsonl, metadata.csv nor a .txt file beside it"
    assert f"  {reason}: 12 samples: 00.png, 01.png, " in result.stderr
    assert f" and 2 more\n  2 of them not named here; 'kcache info {tmp_path / 'cache'} --set-" in result.stderr
    assert set_aside(tmp_path / "cache") == {f"{i:02}.png": reason for i in range(12)}


BAD_LINES = {
    "{oops": "it is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    '["a.png"]': "it is no JSON object with file_name and a caption",
    '{"text": "x"}': "it has no file_name (it has: 'text'); name the picture relative to this file",
    '{"file_name": 7, "text": "x"}': "it has no file_name (it has: 'file_name', 'text'); name the picture",
    '{"file_name": "../x.png", "text": "x"}': "it names '../x.png', which lies outside of its folder",
    '{"file_name": "/x.png", "text": "x"}': "it names '/x.png', which lies outside of its folder",
    '{"file_name": "./a.png", "text": "y"}': "it names 'a.png', as metadata.jsonl:1 did; give it one row, with a list",
    '{"file_name": "\\ud800.png", "text": "y"}': "its file_name has half of a surrogate pair, which is no character: ",
    '{"file_name": "caf\udce9.png", "text": "y"}': "it is not UTF-8 text; save the file as UTF-8",
}
"""Lines of metadata that name no picture, and why they are set aside."""

HALF_OF_A_PAIR = r"its 'text' has half of a surrogate pair, which is no character: '\ud800'"
BAD_CAPTIONS = {
    '{"file_name": "b.png", "prompt": "x", "n": 1}': "it has no 'text' (it has: 'file_name', 'prompt', 'n')",
    '{"file_name": "b.png", "text": 5}': "its 'text' is neither a caption nor a list of captions: 5",
    r'{"file_name": "b.png", "text": "\ud800"}': HALF_OF_A_PAIR,
    '{"file_name": "b.png", "text": null}': "it has no caption: its 'text' is empty",
}
"""Lines of metadata that name a picture without a caption, and why it is set aside."""


def write_lines(path: Path, *lines: str) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))


def test_every_bad_row_of_metadata_is_set_aside_and_the_others_are_encoded(
    encode: Encode, dataset: Path, tmp_path: Path
) -> None:
    good = '{"file_name": "a.png", "text": "x"}'
    for line, reason in BAD_CAPTIONS.items():
        write_lines(dataset / "metadata.jsonl", good, line, '{"file_name": "c.png", "text": "z"}')
        assert set_aside_by(encode, dataset, tmp_path) == {"b.png": reason}, line
    write_lines(dataset / "metadata.jsonl", good, "", *BAD_LINES)
    found = set_aside_by(encode, dataset, tmp_path)
    expected = {f"metadata.jsonl:{number}": reason for number, reason in enumerate(BAD_LINES.values(), 3)}
    without_row = dict.fromkeys(("b.png", "c.png"), "it has no row in the metadata")
    assert found.keys() == (expected | without_row).keys()
    for place, reason in (expected | without_row).items():
        assert found[place].startswith(reason), place


def set_aside_by(encode: Encode, dataset: Path, tmp_path: Path) -> dict[str, str]:
    """What a new cache sets aside, and the same once more by a second run."""
    cache = tmp_path / f"cache-{len(list(tmp_path.iterdir()))}"
    done(encode(dataset, cache, "--columns", "text"), code=3)
    first = set_aside(cache)
    again = done(encode(dataset, cache, "--columns", "text"), code=3)
    assert counted(again)["text"]["set aside"] == len(first)
    assert set_aside(cache) == first
    return first


@pytest.mark.parametrize("line", [line for line in BAD_LINES if "./a.png" not in line])
def test_metadata_without_one_good_row_is_an_error_that_names_the_first(
    encode: Encode, dataset: Path, tmp_path: Path, line: str
) -> None:
    write_lines(dataset / "metadata.jsonl", line, '{"file_name": 1, "text": "x"}')
    said = refused(encode(dataset, tmp_path / "cache"))
    assert said.startswith(f"dataset {dataset} has no row that can be used; the first is metadata.jsonl:1: it")
    assert not (tmp_path / "cache").exists()


def test_a_caption_column_that_no_row_has_is_answered_with_those_there_are(
    encode: Encode, dataset: Path, tmp_path: Path
) -> None:
    write_lines(dataset / "metadata.jsonl", '{"file_name": "a.png", "prompt": "x", "n": 1}')
    said = refused(encode(dataset, tmp_path / "cache"))
    assert said == (
        f"dataset {dataset} has no column 'text' (it has: 'file_name', 'n', 'prompt'); choose one with --caption-column"
    )


@pytest.mark.parametrize(
    ("row", "place", "reason"),
    [
        (
            "a.png,a fox, orange",
            3,
            "it has 1 more cells than the header; put a caption that contains a comma in double",
        ),
        ("c.png,again", 3, "it names 'c.png', as metadata.csv:2 did; give it one row, with a list of captions"),
        ("a.png," + "x" * 200_000, 3, "it is not CSV: field larger than field limit"),
        ("a.png,caf\udce9", 3, "it is not UTF-8 text; save the file as UTF-8"),
        (",x", 3, "it has no file_name (it has: 'file_name', 'text'); name the picture relative to this file"),
    ],
)
def test_a_bad_row_of_metadata_csv_is_set_aside_by_its_line(
    encode: Encode, dataset: Path, tmp_path: Path, row: str, place: int, reason: str
) -> None:
    write_lines(dataset / "metadata.csv", "file_name,text", "c.png,good", row, "b.png,good too")
    found = set_aside_by(encode, dataset, tmp_path)
    assert found.keys() == {f"metadata.csv:{place}", "a.png"}
    assert found[f"metadata.csv:{place}"].startswith(reason)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("file_name;text", "is one cell, 'file_name;text': it is separated by semicolons, and a .csv file has commas;"),
        (
            "file_name\ttext",
            "is one cell, 'file_name\\ttext': it is separated by tabs, and a .csv file has commas; save",
        ),
        ("file_name,t\udcebxt", "is not UTF-8 text; save the table as UTF-8"),
        (
            "file_name," + "x" * 200_000,
            ":1 is not CSV: field larger than field limit (131072); its first line must name",
        ),
    ],
)
def test_a_header_that_is_none_is_named(encode: Encode, dataset: Path, tmp_path: Path, header: str, said: str) -> None:
    write_lines(dataset / "metadata.csv", header, "a.png;x")
    sentence = refused(encode(dataset, tmp_path / "cache"))
    assert str(dataset / "metadata.csv") in sentence
    assert said in sentence


def test_a_caption_file_that_is_not_utf_8_sets_its_picture_aside(encode: Encode, dataset: Path, tmp_path: Path) -> None:
    for name in "abc":
        write(dataset / f"{name}.txt", b"caf\xe9" if name == "b" else b"coffee")
    done(encode(dataset, tmp_path / "cache"), code=3)
    assert set_aside(tmp_path / "cache") == {"b.png": "its caption file b.txt is not UTF-8 text"}


# --- pictures that are none


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty (0 bytes)"),
        (b"this is a text file", "it is not a picture in a known format"),
        (picture()[:30], "it begins as PNG, but is cut or damaged (broken PNG file"),
        (picture()[: len(picture()) // 2], "image file is truncated"),
    ],
    ids=["zero bytes", "text", "header", "half a png"],
)
def test_an_unreadable_picture_is_set_aside_with_its_reason_and_the_others_are_encoded(
    encode: Encode, dataset: Path, tmp_path: Path, data: bytes, reason: str
) -> None:
    write(dataset / "bad.png", data)
    write_rows(dataset, dict.fromkeys(("a.png", "b.png", "c.png", "bad.png"), "a caption"))
    result = done(encode(dataset, tmp_path / "cache"), code=3)
    (name, said), *others = set_aside(tmp_path / "cache").items()
    assert (name, others) == ("bad.png", [])
    assert said.startswith(reason)
    assert said
    assert f"  bad.png: {said}\n" in result.stderr
    for column in ("text", "image", "latents-32"):
        assert set(features(Cache(tmp_path / "cache"), column)) == {"a.png", "b.png", "c.png"}
    assert counted(done(encode(dataset, tmp_path / "cache"), code=3))["text"]["set aside"] == 1
    done(kcache("verify", tmp_path / "cache", "--deep"))


def test_what_pillow_warns_of_is_neither_shown_nor_a_fault_and_other_warnings_stay(
    encode: Encode, dataset: Path, tmp_path: Path
) -> None:
    for i in range(12):  # of uneven sizes, so that the threads that decode them overlap
        paletted = Image.new("P", (20 + 90 * (i % 4), 30))
        paletted.save(dataset / f"paletted-{i}.png", transparency=bytes([9] * 3))
    write_rows(dataset, {path.name: "a caption" for path in dataset.glob("*.png")})
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Palette images with Transparency", module="PIL")
        result = done(encode(dataset, tmp_path / "cache", "--columns", "image", "--alpha", "drop", "--workers=4"))
    assert "Palette" not in result.stderr
    assert list(warnings.filters) == before


def test_a_link_that_leads_nowhere_and_a_folder_named_as_a_picture_do_no_harm(
    encode: Encode, dataset: Path, tmp_path: Path
) -> None:
    (dataset / "link.png").symlink_to("/no/such/picture.png")
    (dataset / "folder.png").mkdir()
    write_rows(dataset, dict.fromkeys(("a.png", "b.png", "c.png", "link.png", "folder.png"), "a caption"))
    done(encode(dataset, tmp_path / "cache"), code=3)
    assert set_aside(tmp_path / "cache") == {
        "folder.png": "it is a folder, not a file",
        "link.png": "the file cannot be read: No such file or directory",
    }


# --- names and captions


@pytest.mark.parametrize("container", ["tar", "h5"])
def test_any_file_name_is_an_id_as_it_is(encode: Encode, tmp_path: Path, container: str) -> None:
    dataset, cache = tmp_path / "data set", tmp_path / 'a cache\'s "name" ü'
    for i, name in enumerate(NAMES):
        write(dataset / name, picture((20 + i, 20)))
    write_rows(dataset, {name: f"caption of {name}" for name in NAMES})
    done(encode(dataset, cache, "--format", container))
    assert sorted(ids(Cache(cache))) == sorted(NAMES)
    for column in ("text", "image", "latents-32"):
        assert set(features(Cache(cache), column)) == set(NAMES)
    assert counted(done(encode(dataset, cache)))["image"]["hit"] == len(NAMES)
    assert done(kcache("verify", cache, "--deep")).stdout.startswith("No fault")


def test_a_file_name_that_is_no_text_is_escaped_and_set_aside(encode: Encode, dataset: Path, tmp_path: Path) -> None:
    for name in (b"caf\xe9.png", b"r\xe9pertoire/d.png", b"caf\xe9.txt"):
        write(Path(os.fsdecode(os.fsencode(dataset) + b"/" + name)), picture())
    for name in "abc":
        write(dataset / f"{name}.txt", b"a caption")
    unnamed = dict.fromkeys(
        (r"caf\xe9.png", r"r\xe9pertoire/d.png"), "its name is not UTF-8, which an id must be; rename it"
    )
    assert set_aside_by(encode, dataset, tmp_path) == unnamed
    write_rows(dataset, dict.fromkeys(("a.png", "b.png", "c.png"), "a caption"))
    assert set_aside_by(encode, dataset, tmp_path) == unnamed


def test_two_files_with_the_same_stem_are_two_samples(encode: Encode, tmp_path: Path) -> None:
    dataset, cache = tmp_path / "dataset", tmp_path / "cache"
    for name in ("a.png", "a.jpg", "sub/a.png"):
        kind = "JPEG" if name.endswith("jpg") else "PNG"
        write(dataset / name, picture((20 + len(name), 20), kind))
    for name, caption in (("a.txt", b"for both"), ("a.jpg.txt", b"of the photograph"), ("sub/a.txt", b"below")):
        write(dataset / name, caption)
    done(encode(dataset, cache))
    rows = {row["id"]: row["captions"] for row in Cache(cache).samples(0)}
    assert rows == {"a.jpg": ["of the photograph"], "a.png": ["for both"], "sub/a.png": ["below"]}
    latents = features(Cache(cache), "latents-32")
    assert not np.array_equal(latents["a.jpg"]["latents"], latents["a.png"]["latents"])


def test_an_empty_caption_and_one_that_is_too_long_are_encoded_and_counted(
    encode: Encode, dataset: Path, tmp_path: Path
) -> None:
    write_rows(dataset, {"a.png": "", "b.png": "  \n", "c.png": LONG_CAPTION})
    result = done(encode(dataset, tmp_path / "cache"))
    assert "2 empty captions, encoded as the empty prompt." in result.stderr
    assert "1 caption longer than 77 tokens, cut as in the reference:" in result.stderr
    lengths = {name: read["lengths"].tolist() for name, read in features(Cache(tmp_path / "cache"), "text").items()}
    assert lengths == {"a.png": [2], "b.png": [2], "c.png": [77]}


# --- tables of the datasets library


def saved(folder: Path, **columns: Any) -> Path:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    kinds = Features({"image": ImageFeature(), "text": Value("string")}) if set(columns) == {"image", "text"} else None
    Dataset.from_dict(columns, features=kinds).save_to_disk(str(folder))
    return folder


def test_rows_of_a_table_without_image_or_caption_are_set_aside(encode: Encode, tmp_path: Path) -> None:
    images = [picture(), None, b"junk", picture((20, 20))]
    values = [image and {"bytes": image, "path": None} for image in images]
    table, cache = saved(tmp_path / "table", image=values, text=["a", "b", "c", None]), tmp_path / "cache"
    done(encode(table, cache), code=3)
    no_caption = "row 3: it has no caption: its 'text' is empty"
    expected = {"row 1 has no image: it is empty", no_caption, "it is not a picture in a known format"}
    assert set(set_aside(cache).values()) == expected
    assert len(features(Cache(cache), "image")) == 1
    assert counted(done(encode(table, cache), code=3))["image"] == {
        "hit": 1,
        "changed": 0,
        "new": 0,
        "gone": 0,
        "set aside": 3,
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--image-column", "picture"],
            "has no column 'picture' (it has: 'photo', 'words', 'n'); choose one with --image",
        ),
        (
            ["--image-column", "photo"],
            "has no column 'text' (it has: 'photo', 'words', 'n'); choose one with --caption",
        ),
        (
            ["--image-column", "n", "--caption-column", "words"],
            "holds no images but Value('int64'); choose another with",
        ),
    ],
)
def test_a_column_that_a_table_lacks_is_answered_with_those_it_has(
    encode: Encode, tmp_path: Path, options: list[str], said: str
) -> None:
    table = saved(tmp_path / "table", photo=[picture()], words=["x"], n=[1])
    sentence = refused(encode(table, tmp_path / "cache", *options))
    assert said in sentence
    assert str(table) in sentence


def test_a_saved_table_that_is_cut_is_named(encode: Encode, tmp_path: Path) -> None:
    table = saved(tmp_path / "table", image=[{"bytes": picture(), "path": None}], text=["x"])
    (arrow,) = table.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:300])
    said = refused(encode(table, tmp_path / "cache"))
    assert said.startswith(f"dataset {table} does not load as a folder that save_to_disk wrote (")


def test_a_pipe_named_as_a_picture_is_set_aside_and_not_waited_for(tmp_path: Path) -> None:
    from kcache.encoding.dataset import DatasetOptions
    from kcache.encoding.imagefolder import ImageFolder

    os.mkfifo(tmp_path / "pipe.png")
    folder = ImageFolder(tmp_path, DatasetOptions())
    with pytest.raises(OSError, match="not a regular file"):
        folder.read("pipe.png")


def test_folders_are_followed_through_links_once(tmp_path: Path) -> None:
    from kcache.encoding.dataset import DatasetOptions
    from kcache.encoding.imagefolder import ImageFolder

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(b"")
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    (dataset / "linked").symlink_to(tmp_path / "elsewhere")
    (dataset / "back").symlink_to(dataset)
    assert [sample.id for sample in ImageFolder(dataset, DatasetOptions()).samples] == ["linked/a.png"]


def test_where_every_sample_is_set_aside_nothing_is_said_of_training(encode: Encode, tmp_path: Path) -> None:
    write(tmp_path / "folder" / "a.png", picture())
    said = done(encode(tmp_path / "folder", tmp_path / "cache"), code=3)
    assert "Next" not in said.stdout
    nothing = f"Nothing to train on yet: {tmp_path / 'cache'} has no sample."
    assert said.stdout.endswith(f"{nothing} Mend what was set aside, and run this again.\n")
