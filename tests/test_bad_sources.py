"""Tars, tables and patterns that are damaged or wrong: what is whole is used, and what is lost is said."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from commands import Encode, done, make_old, refused
from folders import set_aside, write
from sources import IMAGES, captions, faults, img2dataset, make_parquet, make_pictures, make_tar, opened, write_table

from kcache.shards.errors import KcacheError

ROWS = {f"0{name}": {"text": f"picture {name}"} for name in "abcd"}


def damaged(path: Path, data: bytes) -> Path:
    make_old(write(path, data))
    return path


# --- tars


def test_a_tar_cut_anywhere_gives_the_samples_before_the_cut_and_says_what_is_lost(tmp_path: Path) -> None:
    whole = img2dataset(tmp_path / "whole" / "t.tar", ROWS)
    data, every = whole.read_bytes(), opened(whole)
    last = {sample.id for sample in every.samples}
    for length in range(len(data.rstrip(b"\0")), 0, -331):
        dataset = opened(damaged(tmp_path / "t.tar", data[:length]))
        found, lost = captions(dataset.samples), faults(dataset.samples)
        assert list(lost) == ["t.tar"]
        assert lost["t.tar"].endswith(
            f": the {len(found)} samples before that are used, what follows is lost; copy the tar again"
        )
        assert all(captions(every.samples)[name] == found[name] for name in found)
        assert all(dataset.read(name) == every.read(name) for name in found)
        assert set(found) <= last, "a shorter tar has fewer samples"
        last = set(found)
    assert last == set()


def test_a_tar_without_bytes_or_that_is_no_tar_is_a_sample_that_is_set_aside(tmp_path: Path) -> None:
    for name, data in (("empty", b""), ("text", b"<html>not found</html>" * 100)):
        damaged(tmp_path / f"{name}.tar", data)
    img2dataset(tmp_path / "whole.tar", ROWS)
    dataset = opened(tmp_path)
    assert len(captions(dataset.samples)) == 4
    lost = faults(dataset.samples)
    assert lost["empty.tar"].startswith("the tar is empty (0 bytes): the 0 samples before that are used")
    assert lost["text.tar"].startswith("the tar is damaged at byte 0 of 2,200 (")
    for name in lost:
        assert dataset.stat(name) is None
        with pytest.raises(OSError, match="cannot be read from its tar"):
            dataset.read(name)


def test_a_changed_byte_in_a_header_ends_the_tar_there(tmp_path: Path) -> None:
    tar = img2dataset(tmp_path / "t.tar", ROWS)
    with tarfile.open(tar) as members:
        offset = members.getmember("0c.jpg").offset
    data = bytearray(tar.read_bytes())
    data[offset + 5] ^= 1
    dataset = opened(damaged(tar, bytes(data)))
    assert list(captions(dataset.samples)) == ["t.tar/0a.jpg"], "only what comes next shows that a sample is whole"
    assert f"is damaged at byte {offset:,} of {len(data):,}, where a member" in faults(dataset.samples)["t.tar"]


def test_tars_joined_by_cat_are_not_half_read_in_silence(tmp_path: Path) -> None:
    one, two = (img2dataset(tmp_path / name / "t.tar", {key: ROWS[key]}) for name, key in (("1", "0a"), ("2", "0b")))
    joined = damaged(tmp_path / "t.tar", one.read_bytes() + two.read_bytes())
    assert "and more behind it, as tars joined by cat have" in faults(opened(joined).samples)["t.tar"]


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz", "t.tgz"])
def test_a_compressed_tar_is_refused(tmp_path: Path, name: str) -> None:
    tar = img2dataset(tmp_path / "whole" / "t.tar", ROWS)
    damaged(tmp_path / "data" / name, gzip.compress(tar.read_bytes()))
    for dataset in (tmp_path / "data", tmp_path / "data" / name):
        with pytest.raises(KcacheError, match=r"is compressed with gzip, .* unpack it to a plain \.tar first"):
            opened(dataset)


def test_links_devices_and_names_that_leave_the_tar_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "secret.jpg", IMAGES["a"])
    path = tmp_path / "data" / "t.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for name, kind in (
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "../secret.jpg"
            tar.addfile(member)
        for name in ("../out.jpg", "/etc/out.jpg", "in.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(IMAGES["b"])
            tar.addfile(member, io.BytesIO(IMAGES["b"]))
        text = tarfile.TarInfo("in.txt")
        tar.addfile(text, io.BytesIO())
    dataset = opened(path)
    assert captions(dataset.samples) == {"t.tar/in.jpg": [""]}
    followed = "it is a link or a device in the tar, which is not followed"
    assert faults(dataset.samples) == {
        **dict.fromkeys(("t.tar/link.jpg", "t.tar/hard.jpg", "t.tar/pipe.jpg"), followed),
        **dict.fromkeys(("t.tar/../out.jpg", "t.tar//etc/out.jpg"), "its name leads out of the tar"),
    }


def test_a_name_in_a_tar_that_is_no_text_is_escaped_and_set_aside(encode: Encode, tmp_path: Path) -> None:
    members = {"caf\udce9.jpg": IMAGES["a"], "b.jpg": IMAGES["b"], "b.txt": b"see"}
    tar = make_tar(tmp_path / "t.tar", members)
    assert captions(opened(tar).samples) == {"t.tar/b.jpg": ["see"]}
    done(encode(tar, tmp_path / "cache", "--columns", "text"), code=3)
    reason = "its name is not UTF-8, which an id must be; rename it"
    assert set_aside(tmp_path / "cache") == {r"t.tar/caf\xe9.jpg": reason}


def test_a_tar_that_got_shorter_after_it_was_opened_is_an_error_of_its_samples(tmp_path: Path) -> None:
    tar = img2dataset(tmp_path / "t.tar", ROWS)
    dataset = opened(tar)
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(OSError, match=r"t\.tar ends [0-9,]+ bytes too early"):
        dataset.read("t.tar/0a.jpg")


def test_a_damaged_tar_is_encoded_as_far_as_it_goes(encode: Encode, tmp_path: Path) -> None:
    tar = img2dataset(tmp_path / "t.tar", ROWS)
    damaged(tar, tar.read_bytes().rstrip(b"\0")[:-600])
    result = done(encode(tar, tmp_path / "cache"), code=3)
    (name, reason), *others = set_aside(tmp_path / "cache").items()
    assert (name, others) == ("t.tar", [])
    assert "copy the tar again" in reason
    assert "Encoded text 3, image 3, latents-32 3 in " in result.stdout


# --- tables


def test_an_address_in_a_table_is_answered_with_img2dataset(tmp_path: Path) -> None:
    make_pictures(tmp_path / "d", "a")
    rows = [{"file_name": name, "text": "x"} for name in ("https://example.org/a.jpg", "d/a.png")]
    said = "'https://example.org/a.jpg' is an address, and kcache downloads no pictures; fetch them first with img2d"
    for table in (tmp_path / "t.csv", tmp_path / "metadata.jsonl"):
        samples = opened(write_table(table, rows) if table.suffix == ".csv" else in_folder(table, rows)).samples
        assert list(captions(samples)) == ["d/a.png"]
        (reason,) = faults(samples).values()
        assert reason.startswith(said)


def in_folder(table: Path, rows: list[dict[str, str]]) -> Path:
    return write_table(table, rows).parent


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "has no column 'image' (it has: 'photo', 'text'); choose one with --image-column"),
        ({"image_column": "foto"}, "has no column 'foto' (it has: "),
        (
            {"image_column": "photo", "caption_column": "words"},
            "has no column 'words' (it has: 'photo', 'text');",
        ),
        ({"image_column": "photo", "id_column": "n"}, "'n'"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_that_a_table_lacks_is_answered_with_those_it_has(
    tmp_path: Path, suffix: str, options: dict[str, str], said: str
) -> None:
    make_pictures(tmp_path, "a")
    path = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        write_table(path, [{"photo": "a.png", "text": "x"}])
    else:
        make_parquet(path, photo=["a.png"], text=["x"])
    with pytest.raises(KcacheError) as error:
        opened(path, **options)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_a_column_of_numbers_holds_no_images(tmp_path: Path) -> None:
    table = make_parquet(tmp_path / "t.parquet", image=[1, 2], text=["x", "y"])
    with pytest.raises(KcacheError, match=r"column 'image' of .*t.parquet holds no images but int64; choose another"):
        opened(table)


@pytest.mark.parametrize("length", [0, 3, -1, -100])
def test_a_parquet_that_is_cut_is_named(tmp_path: Path, length: int) -> None:
    table = make_parquet(tmp_path / "t.parquet", image=[IMAGES["a"]] * 9, text=["x"] * 9)
    damaged(table, table.read_bytes()[:length])
    with pytest.raises(KcacheError, match=r"t.parquet is no whole parquet file \(.*\); copy it again"):
        opened(table)


def test_images_in_a_damaged_row_group_are_set_aside_and_those_in_the_others_are_not(tmp_path: Path) -> None:
    images = [bytes([i]) * 3000 for i in range(12)]
    table = make_parquet(tmp_path / "t.parquet", 4, image=images, text=["x"] * 12)
    data = bytearray(table.read_bytes())
    start = _column_chunk(table, group=1)
    data[start : start + 40] = b"\xff" * 40
    dataset = opened(damaged(table, bytes(data)))
    assert len(captions(dataset.samples)) == 8
    reasons = list(faults(dataset.samples).values())
    assert [reason.split(":")[0] for reason in reasons] == [f"t.parquet, row {row} has no image" for row in range(4, 8)]
    assert all(f"{table} is damaged: " in reason for reason in reasons)


def _column_chunk(table: Path, group: int) -> int:
    import pyarrow.parquet

    column = pyarrow.parquet.ParquetFile(table).metadata.row_group(group).column(0)
    return int(column.dictionary_page_offset or column.data_page_offset)


def test_parquet_files_of_different_columns_are_refused(tmp_path: Path) -> None:
    make_parquet(tmp_path / "0.parquet", image=[IMAGES["a"]], text=["x"])
    make_parquet(tmp_path / "1.parquet", image=[IMAGES["b"]], words=["x"])
    with pytest.raises(KcacheError, match=r"1.parquet has no column 'text', but .*0.parquet has"):
        opened(tmp_path)
    make_parquet(tmp_path / "1.parquet", image=["a.png"], text=["x"])
    with pytest.raises(KcacheError, match=r"column 'image' of .*1.parquet is of another type than that of .*0.parquet"):
        opened(tmp_path)


# --- patterns and names


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("*.tar", "names no file; check the pattern and the current folder"),
        ("{0..2}.parquet", "/2.parquet, one of 3; check the pattern and the current folder"),
        ("*.*", "names files of several kinds (.parquet, .txt); name one kind"),
        (
            "{0,1}.txt",
            "names files; name a folder of pictures, a file of a kind that holds a dataset (.tar, ",
        ),
    ],
)
def test_a_pattern_that_names_no_dataset_is_refused(tmp_path: Path, pattern: str, said: str) -> None:
    for name in ("0.parquet", "1.parquet", "0.txt", "1.txt"):
        write(tmp_path / name, b"")
    with pytest.raises(KcacheError) as error:
        opened(tmp_path / pattern)
    assert said in str(error.value)


def test_a_file_that_does_not_exist_is_not_asked_of_the_hub(encode: Encode, tmp_path: Path) -> None:
    assert refused(encode("lost.tar", tmp_path / "cache")).startswith("dataset lost.tar does not exist; ")
    assert refused(encode("s3://bucket/{0..9}.tar", tmp_path / "cache")).startswith(
        "dataset s3://bucket/{0..9}.tar is an"
    )


def test_a_name_with_a_bracket_that_exists_is_no_pattern(tmp_path: Path) -> None:
    tar = img2dataset(tmp_path / "t[1]" / "x{a}.tar", ROWS)
    assert len(captions(opened(tar).samples)) == 4
