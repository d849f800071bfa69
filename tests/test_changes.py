"""What an encode says and does when its dataset has changed: reasons, names, losses, kills, and what training sees."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Encode, copy_old, counted, done, encode_with, kcache, make_old, refused, stamps, tree
from folders import picture, set_aside, write, write_rows
from sources import img2dataset
from support import features, ids, metrics
from test_encode_command import spy_on_pictures
from test_year import encoded, nudged

from kcache.shards import Cache, CacheError, ColumnReader, Snapshot, durable

COLUMNS = ("text", "image", "latents-32")


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory, tiny_prior: Path, tiny_decoder: Path) -> tuple[Path, Path]:
    """Five pictures in two shards, and their cache; `start` copies both."""
    folder = tmp_path_factory.mktemp("five")
    for i, name in enumerate("abcde"):
        make_old(write(folder / "dataset" / f"{name}.png", picture((30 + i, 30))))
    write_rows(folder / "dataset", {f"{name}.png": f"the letter {name}" for name in "abcde"})
    done(encode_with(tiny_prior, tiny_decoder)(folder / "dataset", folder / "cache"))
    return folder / "dataset", folder / "cache"


@pytest.fixture
def start(five: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A dataset that was encoded, and its cache, to change at will."""
    shutil.copytree(five[1], tmp_path / "cache")
    return copy_old(five[0], tmp_path / "dataset"), tmp_path / "cache"


def recaption(dataset: Path, **captions: Any) -> None:
    """The five captions, with some changed; None leaves a row out."""
    all_captions = {f"{name}.png": captions.get(name, f"the letter {name}") for name in {*"abcde", *captions}}
    write_rows(dataset, {name: text for name, text in sorted(all_captions.items()) if text is not None})


def repaint(dataset: Path, name: str, size: tuple[int, int] = (44, 33)) -> None:
    make_old(write(dataset / f"{name}.png", picture(size)))


# --- --dry-run says what and why


def test_a_dry_run_gives_the_reason_of_every_change_and_changes_nothing(
    encode: Encode, start: tuple[Path, Path]
) -> None:
    dataset, cache = start
    recaption(dataset, a="A", b="B", d="D", e=None, f="new")
    repaint(dataset, "b")
    repaint(dataset, "c")
    repaint(dataset, "f", (50, 50))
    before = tree(cache), stamps(cache)
    (dataset / "e.png").unlink()
    result = done(encode(dataset, cache, "--dry-run"))
    assert counted(result) == {
        "text": {"hit": 1, "changed": 3, "new": 1, "gone": 1, "set aside": 0},
        "image": {"hit": 2, "changed": 2, "new": 1, "gone": 1, "set aside": 0},
        "latents-32": {"hit": 2, "changed": 2, "new": 1, "gone": 1, "set aside": 0},
    }
    for line in (
        "caption edited: 2 samples: a.png, d.png",
        "caption edited and image bytes differ: 1 sample: b.png",
        "image bytes differ: 1 sample: c.png",
    ):
        assert line in result.stdout.splitlines()
    assert "text         would encode 4 samples, about " in result.stdout
    assert ": 1 not in the cache yet, 3 changed\n" in result.stdout
    assert "Gone, and kept with their features: 1 sample\n  e.png: gone from the dataset\n" in result.stderr
    assert (tree(cache), stamps(cache)) == before


def test_a_dry_run_names_renamed_pictures(encode: Encode, start: tuple[Path, Path]) -> None:
    dataset, cache = start
    (dataset / "a.png").rename(dataset / "letter-a.png")
    recaption(dataset, a=None, **{"letter-a": "the letter a"})
    result = done(encode(dataset, cache, "--dry-run"))
    assert "picture renamed, features stay: 1 sample: a.png -> letter-a.png" in result.stdout.splitlines()
    assert {counts["hit"] for counts in counted(result).values()} == {5}


def test_another_encoder_is_refused_explained_by_a_dry_run_and_taken_when_told(
    encode: Encode, start: tuple[Path, Path], tiny_prior: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    dataset, cache = start
    weights = shutil.copytree(tiny_prior, tmp_path / "prior") / "text_encoder" / "model.safetensors"
    weights.write_bytes(nudged(weights))
    other = encode_with(tmp_path / "prior", tiny_decoder)
    said = refused(other(dataset, cache))
    assert said.startswith(f"column 'text' of {cache} was encoded otherwise (encoder weights differ);")
    assert said.endswith("make the column anew with --replace-column text")
    result = done(other(dataset, cache, "--dry-run"))
    assert "text was encoded otherwise: encoder weights differ: use --replace-column text\n" in result.stdout
    assert "text         would refuse 5 samples" in result.stdout
    assert "encoder weights differ: use --replace-column text: 5 samples: a.png" in result.stdout
    before = features(Cache(cache), "text")
    reading = Snapshot(Cache(cache), ["text"])
    assert encoded(done(other(dataset, cache, "--replace-column", "text"))) == {"text": 5}
    after = features(Cache(cache), "text")
    assert all((before[i]["text_embeds"] != after[i]["text_embeds"]).any() for i in before)
    # Who had pinned the column before goes on with it, and the first encoder is the other one now.
    reader = ColumnReader(reading, "text")
    assert reader.read(0, "text_embeds").tobytes() == before["a.png"]["text_embeds"].tobytes()
    reader.close()
    assert encoded(done(other(dataset, cache))) == {}
    assert "was encoded otherwise (encoder weights differ)" in refused(encode(dataset, cache))
    done(kcache("verify", cache, "--deep"))


def test_a_replacement_that_was_cut_off_is_not_mixed_with_what_it_replaces(
    encode: Encode, start: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, cache = start
    with interrupted_at(monkeypatch, "commit"):
        encode(dataset, cache, "--encode-dtype", "bf16", "--replace-column", "text", "--columns", "text")
    with pytest.raises(CacheError, match="2 of 2 shards lack text; finish with 'kcache encode DATASET"):
        Snapshot(Cache(cache), ["text"])
    assert encoded(done(encode(dataset, cache))) == {"text": 5}  # goes on, and need not be told again
    assert Cache(cache).column("text").encode_dtype == "bf16"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--replace-column", "latents-64"], "has no column 'latents-64' (it has: image, latents-32, text)"),
        (["--replace-column", "text", "--columns", "image"], "--replace-column text and --columns contradict each"),
    ],
)
def test_a_column_that_cannot_be_replaced_is_named(
    encode: Encode, start: tuple[Path, Path], options: list[str], sentence: str
) -> None:
    result = encode(*start, *options)
    assert sentence in refused(result, code=result.exit_code)


def test_what_differs_in_nothing_is_not_replaced(encode: Encode, start: tuple[Path, Path]) -> None:
    before = tree(start[1], without=("index",))
    assert encoded(done(encode(*start, "--replace-column", "text"))) == {}
    assert tree(start[1], without=("index",)) == before


# --- what is lost, and what only seems so


def test_pictures_on_a_disk_that_is_not_there_today_cost_nothing(encode: Encode, start: tuple[Path, Path]) -> None:
    dataset, cache = start
    before = tree(cache, without=("index",))
    for name in "abcd":
        (dataset / f"{name}.png").unlink()
    result = done(encode(dataset, cache))
    assert counted(result)["image"] == {"hit": 1, "changed": 0, "new": 0, "gone": 4, "set aside": 0}
    assert tree(cache, without=("index",)) == before


def test_captions_that_are_not_there_today_cost_nothing(encode: Encode, start: tuple[Path, Path]) -> None:
    dataset, cache = start
    before = tree(cache, without=("index",))
    (dataset / "metadata.jsonl").rename(dataset / "metadata.jsonl.bak")
    lost = "lost its caption (it has no caption: neither metadata.jsonl, metadata.csv nor a .txt file beside it)"
    for options in (["--dry-run"], []):
        result = done(encode(dataset, cache, *options))
        assert counted(result)["text"] == {"hit": 0, "changed": 0, "new": 0, "gone": 5, "set aside": 0}
        assert f"  {lost}: 5 samples: a.png, b.png, c.png, d.png, e.png\n" in result.stderr
        assert tree(cache, without=("index",)) == before
    (dataset / "metadata.jsonl.bak").rename(dataset / "metadata.jsonl")
    assert encoded(done(encode(dataset, cache))) == {}
    assert tree(cache, without=("index",)) == before


def test_one_caption_that_is_lost_is_kept_until_it_is_pruned(encode: Encode, start: tuple[Path, Path]) -> None:
    dataset, cache = start
    recaption(dataset, b=[])
    lost = "lost its caption (it has no caption: its 'text' is empty)"
    result = done(encode(dataset, cache))
    assert counted(result)["text"] == {"hit": 4, "changed": 0, "new": 0, "gone": 1, "set aside": 0}
    assert len(features(Cache(cache), "text")) == 5
    dry = done(encode(dataset, cache, "--prune", "--dry-run"), code=3)
    assert f"taken out    1: {lost}\n" in dry.stderr
    assert f"Would be taken out of the cache: 1 sample\n  b.png: {lost}\n" in dry.stderr
    assert "about 0 s: 1 to be taken out\n" in dry.stdout
    pruned = done(encode(dataset, cache, "--prune"), code=3)
    assert f"taken out    1: {lost}\n" in pruned.stderr
    assert f"Taken out of the cache: 1 sample\n  b.png: {lost}\n" in pruned.stderr
    up_to_date = f"{cache} was brought up to date, with nothing to encode: 1 sample taken out, 1 sample set aside."
    assert up_to_date in pruned.stdout
    assert set(features(Cache(cache), "text")) == {"a.png", "c.png", "d.png", "e.png"}
    assert "is up to date: nothing to encode" in done(encode(dataset, cache), code=3).stdout
    recaption(dataset)
    assert encoded(done(encode(dataset, cache))) == dict.fromkeys(COLUMNS, 1)


def test_a_picture_that_broke_is_said_to_be_taken_out_before_it_is(encode: Encode, start: tuple[Path, Path]) -> None:
    dataset, cache = start
    make_old(write(dataset / "b.png", b"no picture"))
    reason = "it is not a picture in a known format"
    for options, verb in ((["--dry-run"], "Would be taken out"), ([], "Taken out")):
        result = done(encode(dataset, cache, *options), code=3)
        assert counted(result)["image"] == {"hit": 4, "changed": 0, "new": 0, "gone": 0, "set aside": 1}
        assert f"taken out    1: {reason}\n" in result.stderr
        assert f"{verb} of the cache: 1 sample\n  b.png: {reason}\n" in result.stderr
    assert set_aside(cache) == {"b.png": reason}


def test_what_is_found_to_be_bad_only_while_it_is_encoded_is_said_to_be(
    encode: Encode, start: tuple[Path, Path]
) -> None:
    dataset, cache = start
    make_old(write(dataset / "new.png", b"no picture"))
    recaption(dataset, new="one more")
    result = done(encode(dataset, cache), code=3)
    assert counted(result)["image"]["new"] == 1
    assert "Set aside 1 sample (exit code 3), 1 of them counted above as new or changed:" in result.stderr


def test_what_was_set_aside_and_is_there_no_more_is_forgotten(encode: Encode, start: tuple[Path, Path]) -> None:
    dataset, cache = start
    good = (dataset / "metadata.jsonl").read_text()
    (dataset / "metadata.jsonl").write_text(good + '{"file_name": "lost.png", "text": "x"}\n{oops\n')
    done(encode(dataset, cache), code=3)
    assert set(set_aside(cache)) == {"lost.png", "metadata.jsonl:7"}
    (dataset / "metadata.jsonl").write_text(good)
    result = done(encode(dataset, cache))
    assert counted(result)["text"] == {"hit": 5, "changed": 0, "new": 0, "gone": 0, "set aside": 0}
    assert "Gone" not in result.stderr
    assert set_aside(cache) == {}
    shown = done(kcache("info", cache)).stdout
    assert "5 samples with 5 captions" in shown
    assert "--prune" not in shown
    assert "is up to date: nothing to encode" in done(encode(dataset, cache)).stdout
    (dataset / "metadata.jsonl").write_text(good + '{"file_name": "lost.png", "text": "x"}\n')
    done(encode(dataset, cache), code=3)
    assert set_aside(cache) == {"lost.png": "the file does not exist"}


def test_the_record_of_a_damaged_tar_goes_away_when_it_is_mended(encode: Encode, tmp_path: Path) -> None:
    tar, cache = img2dataset(tmp_path / "t.tar", {f"0{n}": {"text": n} for n in "abcd"}), tmp_path / "cache"
    whole = tar.read_bytes()
    make_old(write(tar, whole.rstrip(b"\0")[:-600]))
    done(encode(tar, cache, "--columns", "text"), code=3)
    assert set(set_aside(cache)) == {"t.tar"}
    make_old(write(tar, whole))
    assert "t.tar\n" not in done(encode(tar, cache, "--columns", "text")).stderr
    assert set_aside(cache) == {}
    assert "4 samples with 4 captions" in done(kcache("info", cache)).stdout


def test_pictures_that_are_set_aside_for_their_captions_are_not_opened(
    encode: Encode, start: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, cache = start
    for name in "fgh":
        repaint(dataset, name)
    done(encode(dataset, cache), code=3)
    opened = spy_on_pictures(monkeypatch)
    done(encode(dataset, cache), code=3)
    assert opened == []


def test_a_picture_moved_over_another_is_another_picture_under_a_known_name(
    encode: Encode, start: tuple[Path, Path]
) -> None:
    dataset, cache = start
    (dataset / "b.png").unlink()
    (dataset / "a.png").rename(dataset / "b.png")
    recaption(dataset, a=None, b="the letter a")
    result = done(encode(dataset, cache))
    assert encoded(result) == dict.fromkeys(COLUMNS, 1)
    assert "  a.png: gone from the dataset\n" in result.stderr


def test_pruned_samples_are_out_of_every_column_and_of_info_and_their_bytes_out_of_the_shards(
    encode: Encode, start: tuple[Path, Path]
) -> None:
    dataset, cache = start
    (dataset / "b.png").unlink()
    recaption(dataset, b=None)
    result = done(encode(dataset, cache, "--prune"))
    assert "Taken out of the cache: 1 sample\n  b.png: gone from the dataset\n" in result.stderr
    opened = Cache(cache)
    for column in COLUMNS:
        assert set(features(opened, column)) == {"a.png", "c.png", "d.png", "e.png"}
        assert opened.commit(column, 0, 2).keys[1] is None
        assert opened.commits(column) == {0: 2, 1: 1}
    shown = done(kcache("info", cache)).stdout
    assert "4 samples with 4 captions" in shown
    assert "1 sample taken out by --prune" in shown
    assert counted(done(encode(dataset, cache)))["text"] == {
        "hit": 4,
        "changed": 0,
        "new": 0,
        "gone": 0,
        "set aside": 0,
    }


def test_a_column_that_was_added_while_a_picture_was_away_gets_it_when_it_is_back(
    encode: Encode, start: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset, cache = start
    (dataset / "b.png").rename(tmp_path / "away.png")
    done(encode(dataset, cache, "--resolution", "32", "16"))
    assert "b.png" not in features(Cache(cache), "latents-16")
    (tmp_path / "away.png").rename(dataset / "b.png")
    result = done(encode(dataset, cache))
    assert encoded(result) == {"latents-16": 1}
    assert counted(result)["latents-16"]["new"] == 1


def test_what_was_set_aside_is_tried_again_when_the_limit_is_another(
    encode: Encode, dataset: Path, tmp_path: Path
) -> None:
    write_rows(dataset, dict.fromkeys(("a.png", "b.png", "c.png"), "a caption"))
    cache = tmp_path / "cache"
    assert encoded(done(encode(dataset, cache, "--max-pixels", "500"), code=3)) == dict.fromkeys(COLUMNS, 1)
    assert set(set_aside(cache)) == {"b.png", "c.png"}
    assert "more than --max-pixels 500" in set_aside(cache)["b.png"]
    before = tree(cache)
    assert encoded(done(encode(dataset, cache), code=3)) == {}, "the limit is as the cache has it"
    assert tree(cache) == before
    assert encoded(done(encode(dataset, cache, "--max-pixels", "268435456"))) == dict.fromkeys(COLUMNS, 2)
    # A limit that comes later takes nothing away from what could be decoded before.
    done(encode(dataset, cache, "--max-pixels", "500"))
    assert len(features(Cache(cache), "image")) == 3


def test_rehash_finds_an_edit_that_kept_size_and_time(encode: Encode, start: tuple[Path, Path]) -> None:
    import os

    dataset, cache = start
    path = dataset / "a.png"
    before = path.stat()
    done(encode(dataset, cache))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # the last byte of PNG's end marker: another file, the same picture
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert counted(done(encode(dataset, cache, "--dry-run")))["image"]["changed"] == 0
    assert counted(done(encode(dataset, cache, "--dry-run", "--rehash"), code=0))["image"]["changed"] == 1


def test_of_equal_pictures_each_finds_its_own_features_after_a_rename(encode: Encode, start: tuple[Path, Path]) -> None:
    dataset, cache = start
    shutil.copy2(dataset / "a.png", dataset / "copy.png")
    recaption(dataset, copy="a copy")
    assert encoded(done(encode(dataset, cache))) == dict.fromkeys(COLUMNS, 1)
    for old, new in (("a", "x"), ("copy", "y")):
        (dataset / f"{old}.png").rename(dataset / f"{new}.png")
    recaption(dataset, a=None, x="the letter a", y="a copy")
    assert encoded(done(encode(dataset, cache))) == {}
    assert ids(Cache(cache)) == ["x.png", "b.png", "c.png", "d.png", "e.png", "y.png"]


# --- killed in the middle of a change


class Interrupted(BaseException):
    """Stands for a kill: nothing catches it."""


class interrupted_at:  # noqa: N801  (used as a function)
    """Within it the encode dies at the named step, or at the step of that number."""

    def __init__(self, patch: pytest.MonkeyPatch, step: str | int) -> None:
        self.patch, self.step, self.reached = patch, step, False

    def __enter__(self) -> "interrupted_at":
        count: Iterator[int] = itertools.count()

        def die(name: str) -> None:
            if self.reached or self.step in (name, next(count)):
                self.reached = True
                raise Interrupted

        self.patch.setattr(durable, "failpoint", die)
        return self

    def __exit__(self, *_: object) -> bool:
        self.patch.setattr(durable, "failpoint", lambda name: None)
        return True


def committed(cache: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(cache, without=("index/",)).items() if durable.TEMPORARY not in name}


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.torture)])
def test_a_change_cut_off_anywhere_mixes_nothing_and_ends_as_if_nothing_had_happened(
    encode: Encode, start: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    dataset, cache = start
    old = {column: features(Cache(cache), column) for column in COLUMNS}
    recaption(dataset, a="another A", b=None, f="new")
    repaint(dataset, "d")
    repaint(dataset, "f", (50, 50))
    (dataset / "b.png").rename(dataset / "renamed.png")
    recaption(dataset, a="another A", b=None, f="new", renamed="the letter b")
    shutil.copytree(cache, tmp_path / "undisturbed")
    done(encode(dataset, tmp_path / "undisturbed"))
    expected = committed(tmp_path / "undisturbed")
    new = {column: features(Cache(tmp_path / "undisturbed"), column) for column in COLUMNS}
    for step in range(0, 200, every):
        again = tmp_path / f"cut at {step}"
        shutil.copytree(cache, again)
        with interrupted_at(monkeypatch, step) as cut:
            encode(dataset, again)
        if not cut.reached:
            break
        assert_unmixed(again, old, new)
        done(encode(dataset, again))
        assert committed(again) == expected, step
        shutil.rmtree(again)
    assert step > 30


def assert_unmixed(cache: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """What can be read of a picture is all of it from before the change, or all of it from after."""
    snapshot = Snapshot(Cache(cache), ["image", "latents-32"], partial=True)
    readers = {"image": ColumnReader(snapshot, "image"), "latents-32": ColumnReader(snapshot, "latents-32")}
    fields = {"image": "image_embeds", "latents-32": "latents"}
    for position, (shard, row) in enumerate(snapshot.rows.tolist()):
        sample = Cache(cache).ids(shard)[row]
        states = []
        for column, reader in readers.items():
            now = reader.read(position, fields[column]).tobytes()
            states.append(
                {when for when, all_ in (("old", old), ("new", new)) if has(all_[column], sample, fields[column], now)}
            )
        assert set.intersection(*states), f"{sample}: {states}"
    for reader in readers.values():
        reader.close()


def has(by_id: dict[str, Any], sample: str, field: str, now: bytes) -> bool:
    return sample in by_id and bool(by_id[sample][field].tobytes() == now)


def test_training_refuses_rows_whose_sample_has_changed_since(
    encode: Encode, start: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, cache = start
    repaint(dataset, "d")
    with interrupted_at(monkeypatch, 13):
        encode(dataset, cache)
    opened = Cache(cache)
    assert opened.commits("samples") == {0: 2, 1: 1}
    assert opened.commits("latents-32") == {0: 1, 1: 1}
    with pytest.raises(
        CacheError, match=r"has features of samples that have changed since \(.*1 in 'latents-32'\): the last"
    ):
        Snapshot(opened, ["image", "latents-32"])
    partial = Snapshot(opened, ["latents-32"], partial=True)
    assert partial.rows.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0]]
    done(encode(dataset, cache))
    assert len(Snapshot(opened, ["image", "latents-32"])) == 5


# --- what training sees


def test_training_goes_on_with_the_snapshot_it_started_from(encode: Encode, start: tuple[Path, Path]) -> None:
    dataset, cache = start
    before = Snapshot(Cache(cache), ["latents-32"])
    old = features(Cache(cache), "latents-32")
    repaint(dataset, "a")
    done(encode(dataset, cache))
    reader = ColumnReader(before, "latents-32")
    assert reader.read(0, "latents").tobytes() == old["a.png"]["latents"].tobytes()
    reader.close()
    after = Snapshot(Cache(cache), ["latents-32"])
    assert after.digest != before.digest
    reader = ColumnReader(after, "latents-32")
    assert reader.read(0, "latents").tobytes() != old["a.png"]["latents"].tobytes()
    reader.close()


def test_resuming_over_an_edit_is_refused_with_what_changed_and_accepted_when_told(
    encode: Encode, start: tuple[Path, Path], train: Callable[..., Any], tmp_path: Path
) -> None:
    dataset, cache = start
    run = ["--max-train-steps", "2", "--seed", "1", "--train-batch-size", "2", "--checkpointing-steps", "2"]
    done(train("prior", cache, *run))
    recaption(dataset, a="another A", f="new", e=None)
    repaint(dataset, "f", (50, 50))
    (dataset / "e.png").unlink()
    done(encode(dataset, cache, "--prune"))
    more = ["--max-train-steps", "4", "--resume-from-checkpoint", "latest", *run[2:]]
    said = refused(train("prior", cache, *more))
    changes = "text: 1 row encoded anew, 1 row added, 1 row taken out; image: 1 row added, 1 row taken out"
    assert said == (
        f"the cache is not what {tmp_path}/out/checkpoint-2 was trained on ({changes}); go on with the cache as it is"
        " now by --accept-new-snapshot, or start a new run in another --output-dir"
    )
    result = done(train("prior", cache, *more, "--accept-new-snapshot"))
    assert f"was trained on ({changes}); going on with it as it is now" in result.stderr
    assert [line["step"] for line in metrics(tmp_path / "out")][-1] == 4
    # From here on the new state is the one that is resumed.
    more[1] = "6"
    done(train("prior", cache, *more))
