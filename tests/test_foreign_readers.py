"""A cache is read without kcache: tar shards by webdataset, h5 shards by h5py, records by the json module."""

import gc
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

ROOT = Path(__file__).parent.parent
Sample = dict[str, npt.NDArray[Any]]
COLUMNS = {"text": ["hidden_states", "lengths", "text_embeds"], "image": ["image_embeds"], "latents-32": ["latents"]}


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory, pictures: Path, tiny_prior: Path, tiny_decoder: Path) -> Path:
    """A cache made by the command that a user types."""
    cache = tmp_path_factory.mktemp("foreign") / "cache"
    options = ["--resolution", "32", "--shard-size=4", "--batch-size=3", "--device=cpu", "--format=tar"]
    models = [
        f"--pretrained-prior-model-name-or-path={tiny_prior}",
        f"--pretrained-decoder-model-name-or-path={tiny_decoder}",
    ]
    command = [sys.executable, "-m", "kcache", "encode", str(pictures), str(cache), *options, *models]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return cache


@pytest.fixture(scope="module")
def h5(encoded: Callable[..., Any]) -> Path:
    """A cache of the same pictures, made in this process."""
    root: Path = encoded(format="h5", store_dtype="fp16").root
    return root


def shards(cache: Path, column: str, suffix: str) -> list[Path]:
    """The shard files that the commits of a column name."""
    commits = sorted((cache / "commits" / column).glob("*.json"))
    files = [cache / json.loads(path.read_text())["file"] for path in commits]
    assert len(files) == 3
    assert all(file.suffix == suffix for file in files)
    return files


def by_hand(cache: Path, column: str) -> list[tuple[str, Sample]]:
    """Key and arrays of every sample of a column, from the tar's members."""
    samples: dict[str, Sample] = {}
    for file in shards(cache, column, ".tar"):
        with tarfile.open(file) as archive:
            for member in archive:
                key, field, npy = member.name.split(".")
                assert (len(key), npy, member.mtime, member.uid) == (9, "npy", 0, 0)
                data = archive.extractfile(member)
                assert data is not None
                samples.setdefault(key, {})[field] = np.load(io.BytesIO(data.read()), allow_pickle=False)
    return list(samples.items())


def by_h5py(file: Path, fields: list[str]) -> Iterator[tuple[int, Sample]]:
    """Row number and arrays of every sample of a shard: a ragged field has offsets, another one row a sample."""
    with h5py.File(file) as opened:
        whole = {field: opened[field][:] for field in fields}
        offsets = {field: opened[f"{field}_offsets"][:] for field in fields if f"{field}_offsets" in opened}
        for i, number in enumerate(opened["rows"][:]):
            yield (
                int(number),
                {
                    field: whole[field][offsets[field][i] : offsets[field][i + 1]]
                    if field in offsets
                    else whole[field][i]
                    for field in fields
                },
            )


def ids(cache: Path) -> list[str]:
    lines = [line for path in sorted((cache / "plan").glob("*.jsonl")) for line in path.read_text().splitlines()[:-1]]
    return [json.loads(line)["id"] for line in lines]


def assert_same(one: Sample, other: Sample) -> None:
    assert one.keys() == other.keys()
    for field, array in other.items():
        assert (one[field].dtype, one[field].shape) == (array.dtype, array.shape), field
        assert one[field].tobytes() == array.tobytes(), field


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("column", COLUMNS)
def test_stock_webdataset_reads_the_tar_shards(tar: Path, column: str) -> None:
    import webdataset

    urls = [str(file) for file in shards(tar, column, ".tar")]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    gc.collect()  # webdataset leaves its last file open: let that be this test's business and not the next one's
    expected = by_hand(tar, column)
    assert [sample["__key__"] for sample in read] == [key for key, _ in expected] == [f"{n:09d}" for n in range(10)]
    for sample, (_, arrays) in zip(read, expected, strict=True):
        assert_same({name.removesuffix(".npy"): a for name, a in sample.items() if name.endswith(".npy")}, arrays)


@pytest.mark.parametrize("column", COLUMNS)
def test_plain_h5py_reads_the_h5_shards_and_finds_what_the_tar_shards_hold(tar: Path, h5: Path, column: str) -> None:
    read = [sample for file in shards(h5, column, ".h5") for sample in by_h5py(file, COLUMNS[column])]
    expected = by_hand(tar, column)
    assert [number for number, _ in read] == list(range(10))
    for (_, sample), (_, arrays) in zip(read, expected, strict=True):
        assert_same(sample, arrays)


def test_h5_datasets_are_contiguous_and_plain(h5: Path) -> None:
    for column, fields in COLUMNS.items():
        for file in shards(h5, column, ".h5"):
            with h5py.File(file) as opened:
                assert set(opened) - {f"{field}_offsets" for field in fields} == {*fields, "rows"}
                for dataset in opened.values():
                    assert dataset.chunks is None
                    assert dataset.compression is None
                    assert h5py.check_vlen_dtype(dataset.dtype) is None
                    assert dataset.id.get_offset() is not None


def test_the_arrays_are_what_their_names_say(tar: Path) -> None:
    text = dict(zip(ids(tar), (arrays for _, arrays in by_hand(tar, "text")), strict=True))
    assert text["two-captions.webp"]["text_embeds"].shape == (2, 16)
    assert text["long-caption.webp"]["hidden_states"].shape == (77, 16)
    assert all(arrays["lengths"].sum() == len(arrays["hidden_states"]) for arrays in text.values())
    assert {arrays["image_embeds"].shape for _, arrays in by_hand(tar, "image")} == {(16,)}
    assert {arrays["latents"].shape for _, arrays in by_hand(tar, "latents-32")} == {(4, 8, 8)}
    assert {arrays["latents"].dtype for _, arrays in by_hand(tar, "latents-32")} == {np.dtype("float16")}


@pytest.mark.parametrize("column", COLUMNS)
def test_the_index_says_where_the_bytes_of_every_array_lie(tar: Path, h5: Path, column: str) -> None:
    """Two lines of numpy are a reader: 32 bytes of header, then (offset, nbytes, crc32) for each row and field."""
    entry = np.dtype([("offset", "<u8"), ("nbytes", "<u4"), ("crc32", "<u4")])
    rows = by_hand(tar, column)
    fields = [f["name"] for f in json.loads((tar / "columns" / f"{column}.json").read_text())["fields"]]
    for cache, suffix in ((tar, ".tar"), (h5, ".h5")):
        samples = iter(rows)
        for file in shards(cache, column, suffix):
            data = file.read_bytes()
            entries = np.fromfile(file.with_suffix(".idx"), entry, offset=32).reshape(-1, len(fields))
            for line, (_, arrays) in zip(entries, samples, strict=False):
                for name, place in zip(fields, line, strict=True):
                    assert data[place["offset"] :][: place["nbytes"]] == arrays[name].tobytes()


def test_samples_are_lines_of_json_with_captions(tar: Path, pictures: Path) -> None:
    files = [json.loads(path.read_text())["file"] for path in sorted((tar / "commits" / "samples").glob("*.json"))]
    lines = [json.loads(line) for file in files for line in (tar / file).read_text("utf-8").splitlines()[:-1]]
    given = [json.loads(line) for line in (pictures / "metadata.jsonl").read_text("utf-8").splitlines()]
    captions = {row["file_name"]: row["text"] if isinstance(row["text"], list) else [row["text"]] for row in given}
    assert {line["id"]: line["captions"] for line in lines} == captions
    assert [line["id"] for line in lines] == ids(tar)
