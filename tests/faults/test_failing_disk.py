"""A disk that fails at one call: one sentence, nothing lost, what fsync failed for thrown away, the rerun whole."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disk import Call, Disk, end_process
from power import PowerModel
from scenes import Scene, Scenes, cases, differing, problems_of, some
from tally import Tally

from kcache.shards import Cache, KcacheError, durable, verify

pytestmark = pytest.mark.usefixtures("fast")

Act = Callable[[int, Call], int | None]
NOT_PROMISED = ("index/", "README.md")
"""What is derived: a name that is put over another is not taken back for an fsync that failed."""

SENTENCES = {errno.ENOSPC: "is full; what was committed is safe", errno.EIO: "failed (Input/output error); what was"}


def failing_at(number: int, error: int, *, short: bool = False) -> Act:
    """A disk on which one call fails, or where ``short`` the one after it, when half of a write is on the disk."""

    def act(now: int, call: Call) -> int | None:
        if now == number + short:
            raise OSError(error, os.strerror(error))
        return len(call.data) // 2 if short and now == number else None

    return act


def count_calls(scene: Scene, folder: Path) -> list[Call]:
    """The calls of an undisturbed encode."""
    calls: list[Call] = []
    cache = scene.begin(folder)
    with pytest.MonkeyPatch.context() as patch:
        Disk(folder, lambda number, call: calls.append(call)).mount(patch)
        scene.encode(cache)
    return calls


def problems_with(scene: Scene, folder: Path, act: Act, error: int) -> list[str]:
    """What is wrong with an encode on a failing disk, with the cache that it left, or with the one after it.

    The disk of both loses its power in the end: what the second found in memory alone is gone then.
    """
    cache, model = scene.begin(folder), PowerModel.of(folder)
    problems = []
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(folder, act).mount(patch)
        try:
            scene.encode(cache)
        except KcacheError as refusal:
            if SENTENCES[error] not in str(refusal) or "\n" in str(refusal):
                problems.append(f"it says: {refusal}")
        disk.act = lambda number, call: None
        end_process(folder)
        problems += problems_of(scene, cache)
    for call in disk.calls:
        model.apply(call)
    after = {name.removeprefix("cache/"): data for name, data in model.after().items() if data is not None}
    kept = {name: data for name, data in after.items() if not name.startswith(NOT_PROMISED)}
    expected = {name: data for name, data in scene.undisturbed.items() if not name.startswith(NOT_PROMISED)}
    return problems + [f"after a power failure: {problem}" for problem in differing(expected, kept)]


@pytest.mark.parametrize(
    ("name", "container", "full"), cases(("first", "tar"), ("change", "h5"), ("prune", "tar"), ("replaced", "h5"))
)
def test_whichever_call_fails_the_next_encode_ends_byte_identical_and_on_the_disk(
    scenes: Scenes, tally: Tally, tmp_path: Path, name: str, container: str, full: bool
) -> None:
    scene, problems = scenes(container)[name], []
    calls = count_calls(scene, tmp_path / "counted")
    for number in some(range(len(calls)), 20, full):
        for error in (errno.EIO, errno.ENOSPC) if full else [(errno.EIO, errno.ENOSPC)[number % 2]]:
            found = problems_with(scene, tmp_path / f"{number}-{error}", failing_at(number, error), error)
            problems += tally("failed calls", [f"{calls[number]} fails: {problem}" for problem in found])
    assert problems == []


@pytest.mark.parametrize(("name", "container", "full"), cases(("first", "tar"), ("change", "h5")))
def test_a_disk_that_is_full_in_the_middle_of_a_write_keeps_no_half_of_a_file(
    scenes: Scenes, tally: Tally, tmp_path: Path, name: str, container: str, full: bool
) -> None:
    scene, problems = scenes(container)[name], []
    writes = [number for number, call in enumerate(count_calls(scene, tmp_path / "counted")) if call.kind == "write"]
    for number in some(writes, 8, full):
        act = failing_at(number, errno.ENOSPC, short=True)
        problems += tally("cut writes", problems_with(scene, tmp_path / f"{number}", act, errno.ENOSPC))
    assert problems == []


def test_short_writes_are_continued(scenes: Scenes, tmp_path: Path) -> None:
    scene = scenes("tar")["first"]
    cache = scene.begin(tmp_path / "disk")
    with pytest.MonkeyPatch.context() as patch:
        act = lambda number, call: 1 + len(call.data) // 3 if call.kind == "write" else None  # noqa: E731
        disk = Disk(tmp_path / "disk", act).mount(patch)
        scene.encode(cache)
    assert sum(call.kind == "write" for call in disk.calls) > 5 * sum(call.kind == "create" for call in disk.calls)
    assert problems_of(scene, cache) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_fails_from_some_call_on_keeps_what_was_committed_before(
    scenes: Scenes, tmp_path: Path, number: int
) -> None:
    scene = scenes("tar")["first"]

    def act(now: int, call: Call) -> None:
        if now > 180:
            raise OSError(number, os.strerror(number))

    cache = scene.begin(tmp_path / "disk")
    with pytest.MonkeyPatch.context() as patch:
        Disk(tmp_path / "disk", act).mount(patch)
        with pytest.raises(KcacheError, match=r"(disk of .+cache (failed|is full))|cache cannot be written to"):
            scene.encode(cache)
    assert list(cache.glob("commits/*/*.json"))
    assert verify(Cache(cache), deep=True).faults == []
    end_process(tmp_path / "disk")
    assert problems_of(scene, cache) == []


def test_a_name_for_which_fsync_failed_is_taken_back(tmp_path: Path) -> None:
    """After a failed fsync a second one may claim what is not true, so nobody must find the file."""
    (tmp_path / "damaged").write_bytes(b"wrong")
    for write, flushed_before in (
        (lambda: durable.put_if_absent(tmp_path / "file", b"data"), 0),
        (lambda: durable.make_folder(tmp_path / "folder"), 0),
        (lambda: durable.put_content(tmp_path / "damaged", b"right"), 1),
    ):
        flushes = iter(range(10))

        def act(
            number: int, call: Call, flushes: Iterator[int] = flushes, flushed_before: int = flushed_before
        ) -> None:
            if call.kind == "fsync folder" and next(flushes) == flushed_before:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        with pytest.MonkeyPatch.context() as patch:
            Disk(tmp_path, act).mount(patch)
            durable._flushed.update([tmp_path, *tmp_path.parents])
            with pytest.raises(OSError, match="Input/output error"):
                write()
    assert list(tmp_path.iterdir()) == []


def test_a_failure_to_flush_the_name_of_the_cache_itself_is_a_sentence_too(scenes: Scenes, tmp_path: Path) -> None:
    scene = scenes("tar")["replaced"]

    def act(number: int, call: Call) -> None:
        if (call.kind, call.path) == ("fsync folder", ""):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert problems_with(scene, tmp_path / "disk", act, errno.EIO) == []
