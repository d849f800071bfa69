"""`kcache gc` removes what no current commit names and nothing else, killed or beside readers and writers."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Encode, copy_old, done, kcache, refused, tree
from folders import Train, write_rows
from support import features, flip
from toy_cache import FIELDS, column, make_cache, read_all, row, sample

from kcache.shards import (
    Cache,
    CacheError,
    ColumnReader,
    Commit,
    DamageError,
    Snapshot,
    durable,
    layout,
    leases,
    verify,
)
from kcache.shards.clearing import clear
from kcache.shards.leftovers import KINDS, find_leftovers
from kcache.shards.records import dump_record


class Killed(BaseException):
    """The process ends here."""


def with_a_past(root: Path, container: str = "tar") -> Cache:
    """A toy cache with leftovers of every kind beside what is current."""
    cache = make_cache(root, container)
    rows = [{"id": f"sample {n}", "captions": ["b"], "sha256": "0", "width": 1, "height": 1} for n in range(4)]
    cache.commit_samples(0, rows, [f"key {n}" for n in range(4)], 2)
    for generation in (2, 3):
        keys = [column("image").key_of(r) for r in rows]
        cache.commit_features(
            column("image"), 0, [row("image", 10 * generation + n) for n in range(4)], keys, generation
        )
    made = cache.replace_column(column("text", "two"), row("text", 98))
    for shard, numbers in ((0, range(4)), (1, range(4, 8)), (2, range(8, 10))):
        texts = [{"captions": ["b" if n < 4 else "a"]} for n in numbers]
        cache.commit_features(made, shard, [row("text", n) for n in numbers], [made.key_of(t) for t in texts])
    for number, where in enumerate(("one", "two"), 1):
        durable.put_if_absent(cache.root / layout.dataset(number), dump_record({"where": where}))
    (cache.root / "text.2" / f"{durable.TEMPORARY}{durable.host()}-{dead_pid()}-0").write_bytes(b"half")
    (cache.root / "image/000001-01234567.tar").write_bytes(b"linked, never committed")
    (cache.root / "index").mkdir(exist_ok=True)
    (cache.root / "index/latents-16.idx").write_bytes(b"of a column that is not there")
    return cache


def dead_pid() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=60)
    return process.pid


def stored(cache: Cache) -> dict[str, bytes]:
    return tree(cache.root, without=("index/leases", "index/text", "index/image"))


def clear_all(cache: Cache) -> None:
    clear(cache, find_leftovers(cache, 0), 0)


@pytest.fixture
def past(tmp_path: Path, container: str) -> Cache:
    """`with_a_past`, with each kind of shard."""
    return with_a_past(tmp_path / "cache", container)


def test_what_no_current_commit_names_is_found_by_kind(past: Cache) -> None:
    found = find_leftovers(past, 0)
    assert {one.kind for one in found.found} == set(KINDS)
    paths = {one.path for one in found.found}
    assert {"commits/image/000000.000001.json", "commits/image/000000.000002.json"} <= paths
    assert {"commits/text/000002.000001.json", "columns/text.json", "dataset/000001.json"} <= paths
    assert "commits/samples/000000.000001.json" in paths
    assert (found.young, found.in_use, found.unknown) == ([], [], [])
    assert sum(one.bytes for one in found.found) == sum((past.root / path).stat().st_size for path in paths)


def test_gc_leaves_what_a_cache_made_today_would_hold_and_no_more(past: Cache) -> None:
    rows = {name: read_all(past, name) for name in FIELDS}
    digest = Snapshot(past, list(FIELDS)).digest
    clear_all(past)
    assert verify(past, deep=True).faults == []
    assert Snapshot(past, list(FIELDS)).digest == digest
    assert str(rows) == str({name: read_all(past, name) for name in FIELDS})
    assert find_leftovers(past, 0).found == []
    assert not (past.root / "text").exists()
    assert not (past.root / "commits/text").exists()
    assert past.column("text").encoder == {"class": "two"}
    assert len(list(past.root.glob("commits/*/*.json"))) == 9


def test_a_cache_without_a_past_loses_nothing(cache: Cache) -> None:
    before = stored(cache)
    assert find_leftovers(cache, 0).found == []
    clear_all(cache)
    assert stored(cache) == before


def test_gc_killed_at_any_step_leaves_the_cache_as_it_was_and_a_second_one_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = with_a_past(tmp_path / "original")
    digest = Snapshot(original, list(FIELDS)).digest
    steps: list[str] = []
    ended = Cache(shutil.copytree(original.root, tmp_path / "ended"))
    monkeypatch.setattr(durable, "failpoint", steps.append)
    clear_all(ended)
    assert len(steps) > len(KINDS)
    for step in range(len(steps)):
        cache = Cache(shutil.copytree(original.root, tmp_path / f"killed-{step}"))
        left = iter(range(step, -1, -1))

        def die(name: str, left: Any = left) -> None:
            if next(left, 1) == 0:
                raise Killed

        shown = find_leftovers(cache, 0)
        monkeypatch.setattr(durable, "failpoint", die)
        with pytest.raises(Killed):
            clear(cache, shown, 0)
        monkeypatch.setattr(durable, "failpoint", lambda name: None)
        assert verify(cache, deep=True).faults == [], step
        assert Snapshot(cache, list(FIELDS)).digest == digest
        assert_no_commit_names_what_is_gone(cache)
        clear_all(cache)
        assert stored(cache) == stored(ended), step


def assert_no_commit_names_what_is_gone(cache: Cache) -> None:
    for path in cache.root.glob("commits/*/*.json"):
        assert all((cache.root / file).exists() for file in Commit.load(path).files), path


# --- what is young, not kcache's, or all that is left


def test_files_that_ceased_to_be_current_within_the_hour_are_left_alone(past: Cache) -> None:
    for path in past.root.rglob("*"):
        if path.is_file() and "/samples" not in path.as_posix():
            os.utime(path, (1, 1))
    found = find_leftovers(past, 3600)
    assert {one.kind for one in found.young} == {"older samples", "older commits"}
    assert "older shards" in {one.kind for one in found.found}
    os.utime(past.commit_path("image", 0, 3))  # its predecessors ceased to be current just now, old as they are
    young = {one.path for one in find_leftovers(past, 3600).young}
    assert {"commits/image/000000.000001.json", past.commit("image", 0, 1).file} <= young
    assert "image/000001-01234567.tar" not in young


def test_files_that_kcache_did_not_make_are_named_and_kept(past: Cache) -> None:
    strange = [
        "notes.txt",
        "image/notes.txt",
        "commits/image/000000.json",
        "commits/cat/notes.json",
        "text.3/x",
    ]
    strange += ["plan/old.jsonl", "text.9/000000-01234567.tar", "index/notes", "dataset/x.json"]
    for name in strange:
        (past.root / name).parent.mkdir(parents=True, exist_ok=True)
        (past.root / name).write_bytes(b"mine")
    assert set(find_leftovers(past, 0).unknown) == set(strange)
    clear_all(past)
    assert all((past.root / name).exists() for name in strange)


@pytest.mark.parametrize("damage", ["cut", "gone", "commit"])
def test_a_damaged_cache_keeps_its_older_generations(tar_cache: Cache, damage: str) -> None:
    commit_again(tar_cache)
    path = tar_cache.root / tar_cache.commit("image", 1, 2).file
    if damage == "commit":
        path = tar_cache.commit_path("image", 1, 2)
    path.write_bytes(path.read_bytes()[:-1]) if damage != "gone" else path.unlink()
    before = stored(tar_cache)
    with pytest.raises(DamageError, match="'kcache verify"):
        find_leftovers(tar_cache, 0)
    assert stored(tar_cache) == before


# --- readers


def commit_again(cache: Cache) -> None:
    """Shard 1 of the images with other values, as its next generation."""
    generation = cache.commits("image")[1] + 1
    rows = [row("image", 100 * generation + n) for n in range(4)]
    cache.commit_features(
        column("image"), 1, rows, [column("image").key_of(sample(n)) for n in range(4, 8)], generation
    )


def test_what_a_snapshot_pinned_is_read_to_its_end_beside_gc(cache: Cache) -> None:
    snapshot = Snapshot(cache, ["image"])
    old = cache.commit("image", 1, 1)
    commit_again(cache)
    commit_again(cache)
    found = find_leftovers(cache, 0)
    assert {one.path for one in found.in_use} == {"commits/image/000001.000001.json", *old.files}
    clear_all(cache)
    reader = ColumnReader(snapshot, "image")
    assert [reader.read(n, "image_embeds").tolist() for n in range(10)] == [
        row("image", n)["image_embeds"].tolist() for n in range(10)
    ]
    reader.close()
    del reader, snapshot
    clear_all(cache)
    assert not (cache.root / old.file).exists()


def test_gc_goes_on_beside_a_reader_whose_commit_was_damaged_and_replaced_since(cache: Cache) -> None:
    snapshot = Snapshot(cache, ["image"])
    old, other = cache.commit("image", 1, 1), cache.commit("image", 0, 1)
    commit_again(cache)
    flip(cache.commit_path("image", 1, 1), 60)
    clear_all(cache)
    reader = ColumnReader(snapshot, "image")
    assert [reader.read(n, "image_embeds").tolist() for n in range(10)] == [
        row("image", n)["image_embeds"].tolist() for n in range(10)
    ]
    reader.close()
    assert all((cache.root / file).exists() for file in (*old.files, *other.files))
    del reader, snapshot
    clear_all(cache)
    assert not (cache.root / old.file).exists()


def test_a_reader_that_has_not_said_yet_what_it_reads_holds_everything(tmp_path: Path) -> None:
    past = with_a_past(tmp_path / "cache")
    with leases.reading(past.root):
        found = find_leftovers(past, 0)
        assert {one.kind for one in found.found} == {"temp files", "stale index"}
    assert {one.kind for one in find_leftovers(past, 0).found} == set(KINDS)


def test_a_column_that_was_replaced_stays_whole_for_whoever_reads_it(tar_cache: Cache) -> None:
    snapshot = Snapshot(tar_cache, ["text"])
    old = tar_cache.column("text")
    tar_cache.replace_column(column("text", "two"), row("text", 98))
    clear_all(tar_cache)
    reader = ColumnReader(snapshot, "text")
    assert [reader.read(n, "text_embeds").tobytes() for n in range(10)] == [
        row("text", n)["text_embeds"].tobytes() for n in range(10)
    ]
    reader.close()
    assert old.null is not None
    assert (tar_cache.root / old.null["file"]).exists()


def test_the_lease_of_a_killed_process_counts_no_more(tar_cache: Cache) -> None:
    code = "import sys, time; from kcache.shards import *; snapshot = Snapshot(Cache(sys.argv[1]), ['image'])"
    code += "; print(1, flush=True)"
    line = [sys.executable, "-c", f"{code}; time.sleep(60)", str(tar_cache.root)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    commit_again(tar_cache)
    assert len(find_leftovers(tar_cache, 0).in_use) == 3
    process.kill()
    process.wait(timeout=60)
    process.stdout.close()
    found = find_leftovers(tar_cache, 0)
    assert (len(found.in_use), len(found.found)) == (0, 3)
    clear_all(tar_cache)
    assert leases.leases(tar_cache.root) == []


def test_a_process_with_the_number_of_a_dead_one_does_not_hold_its_lease(tar_cache: Cache) -> None:
    folder = tar_cache.root / layout.LEASES
    folder.mkdir(parents=True)
    (folder / f"reader-{durable.host()}-{os.getpid()}-12345-0").write_text("{}")
    (lease,) = leases.leases(tar_cache.root)
    assert not lease.is_alive


def test_a_lease_of_another_machine_counts_for_a_day_after_its_last_renewal(
    tar_cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(durable, "host", lambda: "0123abcd")
        snapshot = Snapshot(tar_cache, ["image"])
    commit_again(tar_cache)
    (lease,) = leases.leases(tar_cache.root)
    assert str(lease) == f"process {os.getpid()} of another machine"
    assert len(find_leftovers(tar_cache, 0).in_use) == 3
    os.utime(lease.path, (1, 1))
    assert len(find_leftovers(tar_cache, 0).in_use) == 0
    leases.renew()
    assert len(find_leftovers(tar_cache, 0).in_use) == 3
    del snapshot


def test_a_cache_that_cannot_be_written_to_is_read_without_a_lease(
    tar_cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Read-only file system")

    monkeypatch.setattr(leases, "_take", refuse)
    assert len(Snapshot(tar_cache, ["image"])) == 10
    assert verify(tar_cache, deep=True).faults == []
    assert leases.leases(tar_cache.root) == []


def test_a_training_beside_an_edit_and_gc_reads_what_it_began_with(
    encode: Encode, train: Train, pictures: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, dataset = shutil.copytree(whole, tmp_path / "cache"), copy_old(pictures, tmp_path / "pictures")
    done(train("prior", cache, "--output-dir", tmp_path / "alone"))
    began = Snapshot.__init__

    def meanwhile(self: Snapshot, *args: Any, **options: Any) -> None:
        began(self, *args, **options)
        monkeypatch.undo()
        metadata = dataset / "metadata.jsonl"
        metadata.write_text(metadata.read_text("utf-8").replace("turtle", "tortoise"), "utf-8")
        done(encode(dataset, cache))
        said = done(kcache("gc", cache, "--yes", "--min-age=0")).stdout
        assert f"in use by process {os.getpid()}" in said

    monkeypatch.setattr(Snapshot, "__init__", meanwhile)
    done(train("prior", cache, "--output-dir", tmp_path / "beside"))
    assert tree(tmp_path / "beside/prior") == tree(tmp_path / "alone/prior")


# --- writers


def test_gc_between_the_link_and_the_commit_of_a_writer_is_refused_and_takes_nothing(
    encode: Encode, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, said = tmp_path / "cache", []

    def between(step: str) -> None:
        if step == "commit" and len(said) < 3:
            (cache / "index/latents-16.idx").write_bytes(b"of a column that is not there")
            said.append(refused(kcache("gc", cache, "--yes", "--min-age=0")))

    monkeypatch.setattr(durable, "failpoint", between)
    done(encode(pictures, cache))
    monkeypatch.undo()
    (cache / "index/latents-16.idx").unlink()
    sentence = f"{cache} is being written to by process {os.getpid()}; run 'kcache gc {cache}' again when that is done"
    assert said == [sentence] * 3
    done(encode(pictures, tmp_path / "undisturbed"))
    assert tree(cache, without=("index/",)) == tree(tmp_path / "undisturbed", without=("index/",))
    assert done(kcache("gc", cache, "--yes", "--min-age=0")).stdout == f"Nothing to remove from {cache}.\n"


def test_what_a_writer_without_a_lease_just_linked_is_too_young_to_go(
    tar_cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def between(step: str) -> None:
        if step == "commit":
            monkeypatch.undo()
            found.append(find_leftovers(tar_cache, 3600))
            clear(tar_cache, found[0])

    monkeypatch.setattr(durable, "failpoint", between)
    commit_again(tar_cache)
    assert [one.kind for one in found[0].young] == ["older shards", "older shards"]
    assert verify(tar_cache, deep=True).faults == []


def test_an_encode_is_refused_while_the_cache_is_cleared(
    encode: Encode, pictures: Path, whole: Path, tmp_path: Path
) -> None:
    cache, dataset = shutil.copytree(whole, tmp_path / "cache"), copy_old(pictures, tmp_path / "pictures")
    with leases.clearing(cache):
        said = refused(encode(dataset, cache, "--resolution=16"))
        assert said == f"'kcache gc' is clearing {cache} (process {os.getpid()}); run the command again when it is done"
        with pytest.raises(CacheError, match="is being cleared by process"), leases.clearing(cache):
            pass
    done(encode(dataset, cache, "--resolution=16"))


# --- the command


def test_the_command_shows_sizes_by_kind_and_a_dry_run_removes_nothing(past: Cache) -> None:
    before = stored(past)
    said = done(kcache("gc", past.root, "--dry-run", "--min-age=0")).stdout
    assert all(kind in said for kind in KINDS)
    assert said.splitlines()[-1].endswith("could be removed; nothing was.")
    kept = done(kcache("gc", past.root, "--dry-run")).stdout
    assert "Kept for now, younger than 1 h (--min-age): " in kept
    assert kept.endswith(f"Nothing to remove from {past.root}.\n")
    assert stored(past) == before


def test_the_command_asks_and_takes_no_for_an_answer(tar_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from kcache.cli import gc
    from kcache.cli.main import cli

    commit_again(tar_cache)
    before, line = stored(tar_cache), ["gc", str(tar_cache.root), "--min-age=0"]
    said = refused(kcache(*line), 2)
    assert said.startswith("kcache gc asks before it removes 3 files, ")
    assert said.endswith("and there is no terminal to ask at; add --yes, or --dry-run")
    monkeypatch.setattr(gc, "has_terminal", lambda: True)
    assert CliRunner().invoke(cli, line, input="n\n").exit_code == 1
    assert stored(tar_cache) == before
    answered = CliRunner().invoke(cli, line, input="y\n")
    assert answered.exit_code == 0
    assert "Removed 3 files, " in answered.stdout
    assert len(stored(tar_cache)) == len(before) - 3


def test_a_killed_gc_does_not_lock_the_cache(tar_cache: Cache) -> None:
    code = "import sys, time; from kcache.shards import leases; from pathlib import Path"
    code += "\nwith leases.clearing(Path(sys.argv[1])): print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tar_cache.root)], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    with pytest.raises(CacheError, match=f"is being cleared by process {process.pid}"):
        clear_all(tar_cache)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    process.stdout.close()
    clear_all(tar_cache)
    with leases.writing(tar_cache.root):
        pass


# --- a compact copy


def test_a_compact_copy_has_the_rows_that_remain_bit_for_bit_in_full_shards(
    encode: Encode, dataset: Path, tmp_path: Path
) -> None:
    cache, smaller, pictures = tmp_path / "cache", tmp_path / "smaller", sorted(dataset.glob("*.png"))
    for path in pictures:
        path.rename(tmp_path / path.name)
    for number, path in enumerate(pictures, 1):  # a shard for each
        (tmp_path / path.name).rename(path)
        write_rows(dataset, {known.name: f"picture {known.stem}" for known in pictures[:number]})
        done(encode(dataset, cache))
    pictures[0].unlink()
    write_rows(dataset, {known.name: f"picture {known.stem}" for known in pictures[1:]})
    done(encode(dataset, cache, "--prune"))
    before = tree(cache, without=("index/",))
    kept = {name: features(Cache(cache), name) for name in Cache(cache).column_names()}
    said = done(kcache("gc", cache, "--compact", smaller)).stdout
    assert said.splitlines()[0] == (
        f"{smaller} has the 2 samples of {cache} in 1 shard instead of 3; 1 removed row left out."
    )
    assert {name: str(features(Cache(smaller), name)) for name in kept} == {n: str(v) for n, v in kept.items()}
    assert verify(Cache(smaller), deep=True).faults == []
    assert find_leftovers(Cache(smaller), 0).found == []
    assert f"{smaller} is up to date: nothing to encode." in done(encode(dataset, smaller)).stdout
    assert tree(cache, without=("index/",)) == before


@pytest.mark.parametrize("option", ["--dry-run", "--yes", "--min-age=0"])
def test_a_compact_copy_removes_nothing_and_takes_no_option_that_says_so(tar_cache: Cache, option: str) -> None:
    said = refused(kcache("gc", tar_cache.root, "--compact", "x", option), 2)
    assert said == "--compact removes nothing, so leave --dry-run, --yes and --min-age out"
