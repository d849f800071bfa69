"""A full or failing disk ends an encode or a training with a sentence, and nothing that was committed is lost."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Encode, done, kcache, refused, tree
from folders import Train, write_rows

from kcache.shards import durable

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


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_to_is_said_to_be(
    encode: Encode, whole: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    cache = shutil.copytree(whole, tmp_path / "cache")
    fail_after(monkeypatch, 0, number)
    said = refused(encode(pictures, cache, "--resolution", "16"))
    assert said.startswith(f"the cache {cache} cannot be written to ({os.strerror(number)}); make its folder writable,")


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
