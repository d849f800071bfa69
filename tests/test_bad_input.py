"""Bad input gets one sentence that names the thing and the next step, and nothing that was there is lost."""

import errno
import io
import json
import os
import re
import shutil
import subprocess
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Encode, counted, done, encode_with, kcache, refused, stamps, tree
from PIL import Image
from support import features, ids
from tiny import DATA, LONG_CAPTION

from kcache.shards import Cache, Snapshot, durable
from kcache.shards.records import dump_record, load_record

Damage = Callable[[Path], object]
Train = Callable[..., Any]
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


@pytest.fixture
def encode(tiny_prior: Path, tiny_decoder: Path) -> Encode:
    """``encode(dataset, cache, *options)`` with the tiny encoders."""
    return encode_with(tiny_prior, tiny_decoder)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder with three good pictures, without captions yet."""
    for i, name in enumerate("abc"):
        write(tmp_path / "dataset" / f"{name}.png", picture((20 + i, 24)))
    return tmp_path / "dataset"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pictures: Path, tiny_prior: Path, tiny_decoder: Path) -> Path:
    """A cache with all three columns of the ten pictures; tests that change it copy it."""
    cache = tmp_path_factory.mktemp("whole") / "cache"
    done(encode_with(tiny_prior, tiny_decoder)(pictures, cache))
    return cache


def picture(size: tuple[int, int] = (40, 40), kind: str = "PNG") -> bytes:
    """The bytes of a picture that does not compress to nothing."""
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_rows(dataset: Path, captions: dict[str, Any]) -> None:
    """``metadata.jsonl`` with these captions."""
    lines = (json.dumps({"file_name": name, "text": text}) + "\n" for name, text in captions.items())
    (dataset / "metadata.jsonl").write_text("".join(lines), "utf-8")


def set_aside(cache: Path) -> dict[str, str]:
    """What `kcache info --set-aside` lists: the reason by sample."""
    lines = done(kcache("info", cache, "--set-aside")).stdout.splitlines()
    return dict(line.split("\t", 1) for line in lines)


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
    assert "  b.png: its metadata row has no caption\n" in result.stderr
    assert "  c.png: its metadata row has no caption\n" in result.stderr


def test_more_than_ten_samples_set_aside_are_listed_by_info(encode: Encode, tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path / "dataset" / f"{i:02}.png", picture())
    result = done(encode(tmp_path / "dataset", tmp_path / "cache"), code=3)
    assert f"  and 2 more; 'kcache info {tmp_path / 'cache'} --set-aside' lists them" in result.stderr
    reason = "it has no caption: neither metadata.jsonl, metadata.csv nor a .txt file beside it"
    assert set_aside(tmp_path / "cache") == {f"{i:02}.png": reason for i in range(12)}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"file_name": "a.png", "text": "x"}\n{oops', ":2 is not JSON: Expecting property name"),
        ('\n["a.png"]', ":2 is not a JSON object with file_name and a caption"),
        ('{"text": "x"}', ":1 has no file_name (it has: 'text'); name the picture relative to the metadata file"),
        ('{"file_name": "../x.png", "text": "x"}', ":1 names '../x.png', which lies outside of its folder"),
        ('{"file_name": "/x.png", "text": "x"}', ":1 names '/x.png', which lies outside of its folder"),
        ('{"file_name": "a.png", "prompt": "x", "n": 1}', ":1 has no column 'text' (it has: 'prompt', 'n'); choose"),
        ('{"file_name": "a.png", "text": 5}', ":1: column 'text' is neither a caption nor a list of captions: 5"),
        ('{"file_name": "a.png", "text": "\\ud800"}', ":1: column 'text' has half of a surrogate pair"),
        ('{"file_name": "a.png", "text": "x"}\n{"file_name": "./a.png", "text": "y"}', ":2 names 'a.png', as "),
    ],
)
def test_a_bad_row_of_metadata_jsonl_is_named_by_its_line(
    encode: Encode, dataset: Path, tmp_path: Path, line: str, said: str
) -> None:
    (dataset / "metadata.jsonl").write_text(line + "\n")
    assert refused(encode(dataset, tmp_path / "cache")).startswith(f"{dataset / 'metadata.jsonl'}{said}")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            "file_name,caption\na.png,x\n",
            ":2 has no column 'text' (it has: 'caption'); choose one with --caption-column",
        ),
        ("file_name;text\na.png;x\n", ":2 has no file_name (it has: 'file_name;text')"),
        ("file_name,text\na.png,a fox, orange\n", ":2 has 1 more cells than the header; put a caption that contains"),
        ("file_name,text\na.png,x\na.png,y\n", ":3 names 'a.png', as "),
        ("file_name,text\na.png," + "x" * 200_000 + "\n", ":1 is not CSV: field larger than field limit"),
    ],
)
def test_a_bad_row_of_metadata_csv_is_named_by_its_line(
    encode: Encode, dataset: Path, tmp_path: Path, table: str, said: str
) -> None:
    (dataset / "metadata.csv").write_text(table)
    assert refused(encode(dataset, tmp_path / "cache")).startswith(f"{dataset / 'metadata.csv'}{said}")


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_that_is_not_utf_8_is_named(encode: Encode, dataset: Path, tmp_path: Path, name: str) -> None:
    write(dataset / name, "file_name,text\na.png,café".encode("latin-1"))
    said = refused(encode(dataset, tmp_path / "cache"))
    assert said.startswith(f"{dataset / name} is not UTF-8 text: ")


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
        (picture()[:30], "it is not a picture in a known format"),
        (picture()[: len(picture()) // 2], "image file is truncated"),
        (picture(kind="JPEG")[:900], "image file is truncated"),
        (picture(kind="WEBP")[:900], ""),
        (picture(kind="TIFF")[:900], ""),
        (picture(kind="GIF")[:1900], ""),
    ],
    ids=["zero bytes", "text", "header", "half a png", "cut jpeg", "cut webp", "cut tiff", "cut gif"],
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


def test_a_picture_of_absurd_size_is_set_aside(encode: Encode, dataset: Path, tmp_path: Path) -> None:
    bomb = bytearray(picture())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    write(dataset / "bomb.png", bytes(bomb))
    write_rows(dataset, dict.fromkeys(("a.png", "b.png", "c.png", "bomb.png"), "a caption"))
    done(encode(dataset, tmp_path / "cache", "--columns", "image"), code=3)
    assert set_aside(tmp_path / "cache")["bomb.png"].startswith("Image size (3600000000 pixels) exceeds limit")


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
        "folder.png": "the file does not exist",
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


def test_a_file_name_that_is_no_text_is_named_and_refused(encode: Encode, dataset: Path, tmp_path: Path) -> None:
    write(Path(os.fsdecode(os.fsencode(dataset) + b"/caf\xe9.png")), picture())
    said = refused(encode(dataset, tmp_path / "cache"))
    assert said == rf"the name of 'caf\udce9.png' in {dataset} is not valid UTF-8; rename the file"


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
    assert "2 captions are empty and were encoded as the empty prompt." in result.stderr
    assert "1 captions are longer than 77 tokens and were cut, as in the reference." in result.stderr
    lengths = {name: read["lengths"].tolist() for name, read in features(Cache(tmp_path / "cache"), "text").items()}
    assert lengths == {"a.png": [2], "b.png": [2], "c.png": [77]}


# --- full disks


@pytest.mark.parametrize("container", ["tar", "h5"])
def test_a_disk_that_fills_up_loses_nothing_at_whatever_write(
    encode: Encode, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str
) -> None:
    done(encode(pictures, tmp_path / "undisturbed", "--format", container))
    cache, survived = tmp_path / "cache", 0
    for writes in (0, 1, 2, 5, 9, 11, 14):  # of the second, third, ... run too: each goes on where the last stopped
        fail_after(monkeypatch, writes, errno.ENOSPC)
        said = refused(encode(pictures, cache, "--format", container))
        assert said == (
            f"the disk of {cache} is full; what was committed is safe: free some space and run the same command again"
        )
        monkeypatch.undo()
        assert not any(name.split("/")[-1].startswith(".tmp-") for name in tree(cache))
        survived = max(survived, len(list(cache.glob("commits/*/*.json"))))
    assert survived > 0
    done(encode(pictures, cache, "--format", container))
    assert tree(cache, without=("index",)) == tree(tmp_path / "undisturbed", without=("index",))


def fail_after(monkeypatch: pytest.MonkeyPatch, writes: int, number: int) -> None:
    """Let every write of a file in a cache fail after the first ``writes`` of them."""
    count = iter(range(10**6))

    def fail(step: str) -> None:
        if step == "write" and next(count) >= writes:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(durable, "failpoint", fail)


@pytest.mark.parametrize("step", ["fsync", "link", "fsync folder", "commit"])
def test_an_error_at_any_step_of_a_write_leaves_what_can_be_completed(
    encode: Encode, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    write_rows(dataset, dict.fromkeys(("a.png", "b.png", "c.png"), "a caption"))
    done(encode(dataset, tmp_path / "undisturbed"))
    steps = iter(range(10**6))

    def fail(now: str) -> None:
        if now == step and next(steps) == 3:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(durable, "failpoint", fail)
    assert "is full; what was committed is safe" in refused(encode(dataset, tmp_path / "cache"))
    monkeypatch.undo()
    done(encode(dataset, tmp_path / "cache"))
    assert tree(tmp_path / "cache", without=("index",)) == tree(tmp_path / "undisturbed", without=("index",))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 128 KB, less than the ten pictures need."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("no right to mount a small tmpfs here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_disk_that_is_full_is_said_so_and_what_it_holds_is_whole(
    encode: Encode, pictures: Path, tmp_path: Path, small_disk: Path
) -> None:
    cache = small_disk / "cache"
    said = refused(encode(pictures, cache))
    assert said.startswith(f"the disk of {cache} is full; what was committed is safe")
    assert done(kcache("verify", cache, "--deep")).stdout.splitlines()[-1].startswith("No fault in ")
    assert list(cache.glob("commits/*/*.json"))
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    done(encode(pictures, cache))
    done(encode(pictures, tmp_path / "undisturbed"))
    assert tree(cache, without=("index",)) == tree(tmp_path / "undisturbed", without=("index",))


def test_training_on_a_disk_that_fills_up_keeps_its_checkpoints_and_goes_on_from_them(
    train: Train, whole: Path, tmp_path: Path, small_disk: Path
) -> None:
    out = small_disk / "out"
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    options = ["--max-train-steps=9", "--checkpointing-steps=1", "--probe-samples=0", "--output-dir", out]
    said = refused(train("prior", whole, *options))
    assert said.startswith(f"the disk of {out} is full and checkpoint-")
    assert said.endswith("free some space and run the same command with --resume-from-checkpoint latest")
    kept = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert kept
    assert kept == [f"checkpoint-{n}" for n in range(1, len(kept) + 1)]
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    done(train("prior", whole, *options, "--resume-from-checkpoint=latest"))
    done(train("prior", whole, *options[:-1], tmp_path / "undisturbed"))
    assert tree(out / "prior") == tree(tmp_path / "undisturbed" / "prior")


# --- caches that are none, or of another kind


def test_a_folder_with_other_files_is_refused_and_left_as_it_is(encode: Encode, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    write(folder / "chapter-1.tex", b"important")
    write(folder / ".tmp-notes", b"also important")
    before = tree(folder), stamps(folder)
    for options in ([], ["--dry-run"]):
        said = refused(encode(pictures, folder, *options))
        assert said == (
            f"{folder} is not empty and not a kcache cache (it has: chapter-1.tex); name another folder for the cache"
        )
    assert (tree(folder), stamps(folder)) == before


@pytest.mark.parametrize("name", ["notes.txt", "notes.txt/cache"])
def test_a_cache_that_would_be_a_file_or_lie_below_one_is_refused(
    encode: Encode, pictures: Path, tmp_path: Path, name: str
) -> None:
    file = write(tmp_path / "notes.txt", b"important")
    assert refused(encode(pictures, tmp_path / name)) == f"{file} is a file; name a folder for the cache"
    assert file.read_bytes() == b"important"


@pytest.mark.parametrize("command", [["info"], ["verify"], ["train", "prior"], ["train", "decoder"]])
def test_a_folder_that_is_no_cache_is_answered_with_how_to_make_one(tmp_path: Path, command: list[str]) -> None:
    output = ["--output-dir", tmp_path / "out"] if command[0] == "train" else []
    said = refused(kcache(*command, tmp_path, *output))
    assert said == f"{tmp_path} is not a kcache cache; make one with 'kcache encode DATASET {tmp_path}'"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["encode", "info", "verify", "train"])
def test_a_cache_of_another_format_version_is_refused_with_both_numbers(
    encode: Encode, train: Train, whole: Path, pictures: Path, tmp_path: Path, command: str
) -> None:
    cache = shutil.copytree(whole, tmp_path / "cache")
    record = load_record(cache / "kcache.json")
    (cache / "kcache.json").write_bytes(dump_record({**record, "format_version": 7}))
    before = tree(cache)
    runs: dict[str, Callable[[], Any]] = {
        "encode": lambda: encode(pictures, cache),
        "train": lambda: train("prior", cache),
    }
    said = refused(runs.get(command, lambda: kcache(command, cache))())
    assert said == (
        f"{cache} has cache format 7 and this kcache reads format 1;"
        " use the kcache that made it, or encode into another folder"
    )
    assert tree(cache) == before


# --- checkpoints that lack something


def broken(source: Path, target: Path, damage: Damage) -> Path:
    """A copy of a checkpoint with something done to it."""
    shutil.copytree(source, target)
    damage(target)
    return target


def lacks(component: str) -> Damage:
    return lambda folder: shutil.rmtree(folder / component)


def only_bin(folder: Path) -> None:
    """Weights as a pickle that would leave a trace if it were loaded."""
    (weights,) = (folder / "text_encoder").glob("*.safetensors")
    weights.unlink()
    trace = folder / "a-pickle-was-loaded"
    code = f"c__builtin__\nopen\n(V{trace}\nVw\ntR."
    (folder / "text_encoder" / "pytorch_model.bin").write_bytes(code.encode())


def cut_weights(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors["text_projection.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def rewrite(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lacks("text_encoder"), "has no 'text_encoder' (it has: image_encoder, image_processor, prior, "),
        (lacks("tokenizer"), "has no 'tokenizer' (it has: "),
        (lacks("image_encoder"), "has no 'image_encoder' (it has: "),
        (lacks("image_processor"), "has no 'image_processor' (it has: "),
        (lambda f: (f / "text_encoder" / "config.json").unlink(), "lacks text_encoder/config.json; download it again"),
        (rewrite("text_encoder/config.json", "{"), "text_encoder/config.json is not JSON ("),
        (rewrite("text_encoder/config.json", "[]"), "text_encoder/config.json is not a JSON object"),
        (rewrite("text_encoder/config.json", "{}"), "text_encoder/config.json has no 'projection_dim'; download the"),
        (rewrite("tokenizer/vocab.json", "{"), "tokenizer does not load as CLIPTokenizer ("),
        (
            only_bin,
            "has no safetensors weights (it has: config.json, pytorch_model.bin); kcache loads no pickled weights",
        ),
        (cut_weights, "text_encoder does not load as CLIPTextModelWithProjection ("),
        (drop_tensor, "text_encoder lack 1 tensors of CLIPTextModelWithProjection, such as text_projection.weight"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_and_named(
    pictures: Path, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path, damage: Damage, said: str
) -> None:
    prior = broken(tiny_prior, tmp_path / "broken-prior", damage)
    sentence = refused(encode_with(prior, tiny_decoder)(pictures, tmp_path / "cache"))
    assert said in sentence
    assert "broken-prior" in sentence
    assert not (tmp_path / "cache" / "commits").exists()
    assert not (prior / "a-pickle-was-loaded").exists()


def test_a_decoder_without_movq_is_refused_and_named(
    pictures: Path, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    decoder = broken(tiny_decoder, tmp_path / "broken", lacks("movq"))
    said = refused(encode_with(tiny_prior, decoder)(pictures, tmp_path / "cache"))
    assert said.startswith(f"checkpoint {decoder} has no 'movq' (it has: scheduler, unet); name a folder or hub id in ")
    assert not (tmp_path / "cache").exists()


def test_captions_alone_need_no_decoder(pictures: Path, tiny_prior: Path, tmp_path: Path) -> None:
    done(encode_with(tiny_prior, Path("/no/decoder"))(pictures, tmp_path / "cache", "--columns", "text", "image"))


@pytest.mark.parametrize("name", ["kandinsky-community/kandinsky-2-2-prior", "nobody/no-such-checkpoint"])
def test_a_checkpoint_that_cannot_be_reached_is_one_sentence(
    pictures: Path, tiny_decoder: Path, tmp_path: Path, name: str
) -> None:
    said = refused(encode_with(Path(name), tiny_decoder)(pictures, tmp_path / "cache"))
    assert said.startswith(f"checkpoint {name} is not a folder and could not be had from the hub (")
    assert said.endswith("; check the name and the connection, or give the folder of a downloaded checkpoint")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["cuda:7", "gpu"])
def test_a_device_that_is_not_there_is_named(encode: Encode, pictures: Path, tmp_path: Path, name: str) -> None:
    said = refused(encode(pictures, tmp_path / "cache", "--device", name))
    assert (
        said == f"there is no device '{name}' here; 'kcache doctor' shows those that there are, and cpu is always one"
    )


# --- features that are no numbers


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (float("nan"), "is not a finite number"),
        (float("inf"), "is not a finite number"),
        (1e6, "is too large for float16"),
    ],
)
def test_a_feature_that_does_not_fit_stops_the_encode_with_the_samples_name(
    encode: Encode, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, fault: str
) -> None:
    from kcache.encoding import encoders

    original, calls = encoders.ImageColumn.features, iter(range(10**6))

    def features_with_a_fault(self: Any, inputs: Any, batch_size: int) -> Iterator[Any]:
        for one in original(self, inputs, batch_size):
            if next(calls) == 6:  # after the null features and five pictures
                one["image_embeds"][3] = value
            yield one

    monkeypatch.setattr(encoders.ImageColumn, "features", features_with_a_fault)
    said = refused(encode(pictures, tmp_path / "cache"))
    sample = ids(Cache(tmp_path / "cache"))[5]
    assert said.startswith(f"field 'image_embeds' of column 'image' {fault} for sample '{sample}'")
    assert list(Cache(tmp_path / "cache").commits("image")) == [0]  # the shard before is kept, this one is not there
    monkeypatch.undo()
    done(encode(pictures, tmp_path / "cache"))
    done(encode(pictures, tmp_path / "undisturbed"))
    assert tree(tmp_path / "cache", without=("index",)) == tree(tmp_path / "undisturbed", without=("index",))


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
    expected = {"row 1 has no image: it is empty", "row 3 has no caption", "it is not a picture in a known format"}
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


# --- options


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--resolutoin", "32"], "No such option '--resolutoin'. Did you mean '--resolution'?"),
        (["--shard-sise", "32"], "No such option '--shard-sise'. Did you mean '--shard-size'?"),
        (["--format", "hdf5"], "Invalid value for '--format': 'hdf5' is not one of 'tar', 'h5'. Did you mean 'h5'?"),
        (["--resolution", "4"], "Invalid value for '--resolution': 4 is not in the range"),
        (["--shard-size", "0"], "Invalid value for '--shard-size': 0 is not in the range"),
        (["--encode-dtype", "fp64"], "Invalid value for '--encode-dtype': 'fp64' is not one of "),
    ],
)
def test_a_wrong_option_of_encode_is_answered_with_the_one_meant(option: list[str], said: str, tmp_path: Path) -> None:
    assert said in done(kcache("encode", tmp_path, tmp_path / "cache", *option), code=2).stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("command", "option", "meant"),
    [
        (["train", "prior", "c"], "--learning-rat", "--learning-rate"),
        (["train", "decoder", "c"], "--max_train_step", "--max-train-steps"),
        (["generate", "a fox"], "--num-images-per-promt", "--num-images-per-prompt"),
        (["info", "c"], "--jsn", "--json"),
        (["verify", "c"], "--deap", "--deep"),
        (["demo"], "--prior-step", "--prior-steps"),
    ],
)
def test_a_misspelt_option_of_any_command_is_answered_with_the_one_meant(
    command: list[str], option: str, meant: str
) -> None:
    said = done(kcache(*command, option), code=2).stderr
    assert "No such option" in said
    assert meant in said.split("Did you mean")[1]


# --- training from what does not fit


@pytest.fixture
def train(tiny_prior: Path, tiny_decoder: Path, tmp_path: Path) -> Train:
    """``train(stage, cache, *options)`` for one update from the tiny checkpoints."""

    def run(stage: str, cache: Path, *options: object, checkpoint: Path | None = None) -> Any:
        name = f"--pretrained-{stage}-model-name-or-path"
        default = {"prior": tiny_prior, "decoder": tiny_decoder}[stage]
        resolution = ["--resolution=32"] if stage == "decoder" and "--resolution" not in options else []
        fixed = ["--max-train-steps=1", "--seed=0", "--output-dir", tmp_path / "out", name, checkpoint or default]
        return kcache("train", stage, cache, *fixed, *resolution, *options)

    return run


@pytest.fixture
def nothing_trained(tmp_path: Path) -> Iterator[None]:
    """After the test, no result lies in the output folder."""
    yield
    assert not list(tmp_path.glob("out/prior")) + list(tmp_path.glob("out/unet"))


@pytest.mark.usefixtures("nothing_trained")
def test_training_on_columns_that_are_missing_names_those_that_are_there(
    encode: Encode, train: Train, pictures: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    done(encode(pictures, cache, "--columns", "text"))
    assert refused(train("prior", cache)) == (
        f"{cache} has no column 'image' (it has: text); add it with 'kcache encode'"
    )
    said = refused(train("decoder", cache), code=2)
    assert said.startswith(f"{cache} has no latents at 32 px (it has: none); run 'kcache encode DATASET {cache}'")


@pytest.mark.usefixtures("nothing_trained")
def test_training_at_a_resolution_that_is_missing_names_those_that_are_there(train: Train, whole: Path) -> None:
    assert refused(train("decoder", whole, "--resolution", "512"), code=2) == (
        f"{whole} has no latents at 512 px (it has: 32); use --resolution 32,"
        f" or add them with 'kcache encode DATASET {whole} --resolution 512'"
    )


@pytest.mark.usefixtures("nothing_trained")
def test_training_on_a_cache_whose_samples_were_all_set_aside_is_refused(
    encode: Encode, train: Train, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    write(tmp_path / "dataset" / "a.png", b"junk")
    write(tmp_path / "dataset" / "a.txt", b"a caption")
    done(encode(tmp_path / "dataset", cache), code=3)
    assert len(Snapshot(Cache(cache), ["text", "image"])) == 0
    for stage, columns in (("prior", "text and image"), ("decoder", "latents-32 and image")):
        assert refused(train(stage, cache)).startswith(f"{cache} has no sample with {columns}; 'kcache info {cache}")


@pytest.mark.usefixtures("nothing_trained")
def test_training_on_an_unfinished_encode_is_refused(train: Train, whole: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(whole, tmp_path / "cache")
    (cache / "commits" / "image" / "000001.000001.json").unlink()
    said = refused(train("prior", cache))
    assert said == f"{cache}: 1 of 3 shards lack text or image; finish with 'kcache encode DATASET {cache}'"


def test_training_on_an_unfinished_encode_is_possible_when_asked_for(train: Train, whole: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(whole, tmp_path / "cache")
    (cache / "commits" / "image" / "000001.000001.json").unlink()
    result = done(train("prior", cache, "--partial"))
    assert "Warning: 1 shards are not encoded yet and are left out" in result.stderr
    assert "epochs of 6 samples" in result.stdout


@pytest.mark.usefixtures("nothing_trained")
def test_a_checkpoint_of_other_dimensions_is_refused_whatever_is_ignored(train: Train, whole: Path) -> None:
    shipped = DATA / "kandinsky-tiny"
    for options in ([], ["--ignore-encoder-mismatch"]):
        said = refused(train("prior", whole, *options, checkpoint=shipped / "prior"))
        assert said == (
            f"column 'text' of {whole} has hidden_states of 16 and {shipped / 'prior'} takes 64 (embedding_dim);"
            " encode with the encoders that belong to that checkpoint"
        )
    said = refused(train("decoder", whole, checkpoint=shipped / "decoder"))
    assert f"has image_embeds of 16 and {shipped / 'decoder'} takes 64 (encoder_hid_dim)" in said


@pytest.mark.parametrize(
    ("stage", "component", "column"), [("prior", "text_encoder", "text"), ("decoder", "movq", "latents-32")]
)
def test_a_checkpoint_with_other_encoders_is_refused_unless_told_otherwise(
    train: Train,
    whole: Path,
    tiny_prior: Path,
    tiny_decoder: Path,
    tmp_path: Path,
    stage: str,
    component: str,
    column: str,
) -> None:
    own = {"prior": tiny_prior, "decoder": tiny_decoder}[stage]
    other = broken(own, tmp_path / "other", lambda folder: shift_weights(folder / component))
    assert refused(train(stage, whole, checkpoint=other)) == (
        f"column '{column}' of {whole} was encoded with another {component} (from {own}) than that of {other};"
        " encode with that checkpoint, or, if you know that they agree, add --ignore-encoder-mismatch"
    )
    assert not (tmp_path / "out").exists()
    assert "Trained for 1 updates" in done(train(stage, whole, "--ignore-encoder-mismatch", checkpoint=other)).stdout


def shift_weights(folder: Path) -> None:
    """Other weights of the same shapes."""
    from safetensors.torch import load_file, save_file

    (path,) = folder.glob("*.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


@pytest.mark.usefixtures("nothing_trained")
@pytest.mark.parametrize(("stage", "component"), [("prior", "prior"), ("decoder", "unet"), ("decoder", "scheduler")])
def test_training_from_a_checkpoint_without_the_component_is_refused(
    train: Train, whole: Path, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path, stage: str, component: str
) -> None:
    own = {"prior": tiny_prior, "decoder": tiny_decoder}[stage]
    checkpoint = broken(own, tmp_path / "broken", lacks(component))
    said = refused(train(stage, whole, checkpoint=checkpoint))
    assert said.startswith(f"checkpoint {checkpoint} has no '{component}' (it has: ")


@pytest.mark.usefixtures("nothing_trained")
def test_training_on_a_cut_shard_names_the_file_and_both_sizes(train: Train, whole: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(whole, tmp_path / "cache")
    (shard,) = (cache / "image").glob("000001*.tar")
    nbytes = shard.stat().st_size
    os.truncate(shard, nbytes - 5)
    assert refused(train("prior", cache)) == (
        f"{shard} has {nbytes - 5:,} bytes, its commit says {nbytes:,}; run 'kcache verify {cache}'"
    )


def test_an_output_folder_with_a_run_in_it_is_refused_and_left_as_it_is(
    train: Train, whole: Path, tmp_path: Path
) -> None:
    done(train("prior", whole))
    before = tree(tmp_path / "out")
    assert refused(train("prior", whole)) == (
        f"{tmp_path / 'out'} already holds a run (checkpoint-1, prior); go on with --resume-from-checkpoint latest,"
        " or name another --output-dir"
    )
    assert tree(tmp_path / "out") == before


def test_an_output_folder_that_is_a_file_is_refused(train: Train, whole: Path, tmp_path: Path) -> None:
    write(tmp_path / "out", b"important")
    assert refused(train("prior", whole)) == f"{tmp_path / 'out'} is a file; name a folder with --output-dir"
    assert (tmp_path / "out").read_bytes() == b"important"


# --- pictures from what was not trained


def test_an_out_without_the_component_is_refused_and_named(train: Train, whole: Path, tmp_path: Path) -> None:
    out, pipeline = tmp_path / "out", DATA / "kandinsky-tiny" / "prior"
    done(train("prior", whole))
    said = refused(kcache("generate", "a fox", "--prior", pipeline, "--decoder", out, "-o", tmp_path / "a.png"))
    assert said == f"{out} holds no trained 'unet'; train one with 'kcache train', or name a pipeline"
    shutil.rmtree(out / "prior")
    said = refused(kcache("generate", "a fox", "--prior", out, "-o", tmp_path / "a.png"))
    assert said == f"{out} holds no trained 'prior'; train one with 'kcache train', or name a pipeline"
    assert not (tmp_path / "a.png").exists()


def test_an_out_whose_weights_are_cut_is_refused_and_named(train: Train, whole: Path, tmp_path: Path) -> None:
    done(train("prior", whole))
    (weights,) = (tmp_path / "out" / "prior").glob("*.safetensors")
    os.truncate(weights, weights.stat().st_size - 4)
    said = refused(kcache("generate", "a fox", "--prior", tmp_path / "out", "-o", tmp_path / "a.png"))
    assert said.startswith(f"{tmp_path / 'out' / 'prior'} does not load as PriorTransformer (")


@pytest.mark.parametrize("name", ["grid.xyz", "grid", "."])
def test_an_output_that_is_no_picture_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    said = refused(kcache("generate", "a fox", "-o", tmp_path / name, "--device", "cpu"))
    assert said.endswith(("choose another with -o, such as grid.png", "choose another with -o"))


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


def test_a_checkpoint_that_can_be_no_hub_id_is_not_asked_for(
    pictures: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    said = refused(encode_with(Path("my-checkpoint"), tiny_decoder)(pictures, tmp_path / "cache"))
    assert said.startswith("checkpoint my-checkpoint does not exist; name a folder, or a hub id such as ")


def test_a_cache_is_no_output_folder(whole: Path, tiny_prior: Path, tmp_path: Path) -> None:
    cache = shutil.copytree(whole, tmp_path / "cache")
    before = tree(cache, without=("index/",))
    command = ["train", "prior", str(cache), "--output-dir", str(cache), "--max-train-steps", "1"]
    said = refused(kcache(*command, "--pretrained-prior-model-name-or-path", str(tiny_prior)), code=2)
    assert said == f"{cache} is a cache; name another folder with --output-dir"
    assert tree(cache, without=("index/",)) == before


def test_two_runs_in_one_output_folder_are_refused(train: Train, whole: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        said = refused(train("prior", whole))
    assert said == f"another run is writing to {tmp_path / 'out'}; name another --output-dir"


def test_a_loss_that_is_no_number_ends_the_run_and_saves_nothing(train: Train, whole: Path, tmp_path: Path) -> None:
    said = refused(train("prior", whole, "--learning-rate", "1e30", "--max-train-steps", "4", "--logging-steps", "1"))
    assert re.match(r"the loss is (nan|inf) at update \d \(learning rate 1.00e\+30\); nothing was saved", said)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["metrics.jsonl"]


def test_a_result_without_a_checkpoint_is_never_trained_over(train: Train, whole: Path, tmp_path: Path) -> None:
    done(train("prior", whole))
    shutil.rmtree(tmp_path / "out" / "checkpoint-1")
    before = tree(tmp_path / "out")
    said = refused(train("prior", whole, "--resume-from-checkpoint", "latest"))
    assert said.startswith(f"{tmp_path / 'out'} holds a result (prior) and no checkpoint to go on from;")
    assert tree(tmp_path / "out") == before


def test_a_shard_that_was_lost_is_no_hit_and_is_encoded_again_without_its_commit(
    encode: Encode, pictures: Path, whole: Path, tmp_path: Path
) -> None:
    cache = shutil.copytree(whole, tmp_path / "cache")
    (shard,) = (cache / "text").glob("000000*.tar")
    data = shard.read_bytes()
    shard.unlink()
    said = refused(encode(pictures, cache))
    commit = cache / "commits" / "text" / "000000.000001.json"
    assert said.startswith(f"{shard} is missing; copy it again, or remove {commit} and run the same command")
    commit.unlink()
    done(encode(pictures, cache))
    assert shard.read_bytes() == data
