"""After a power failure at any moment a cache opens, holds what was committed, and the next encode makes it whole."""

from pathlib import Path
from typing import Any

import pytest
from disk import Call, Disk, Killed, end_process
from power import PowerModel, Tree, lay_out
from scenes import Scene, Scenes, cases, problems_of, some, stored
from tally import Tally

pytestmark = pytest.mark.usefixtures("fast")

State = tuple[str, Tree, dict[str, bytes]]
"""After which call, what is there, and what was promised to be."""


def record(scene: Scene, folder: Path) -> tuple[PowerModel, list[Call]]:
    """One encode: the disk before it, and every call that it made."""
    cache, model = scene.begin(folder), PowerModel.of(folder)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(folder).mount(patch)
        scene.encode(cache)
    return model, disk.calls


def states(model: PowerModel, calls: list[Call], kind: str) -> list[State]:
    """What a power failure after each call may leave; what is as it was after the call before comes once."""
    found: dict[str, State] = {}
    for number, call in enumerate(calls):
        model.apply(call)
        tree = model.after(kind, seed=number)
        found.setdefault(repr(tree), (f"{kind} after call {number}, {call.kind} {call.path}", tree, {**model.promised}))
    return list(found.values())


def problems_after(state: State, scene: Scene, folder: Path) -> list[str]:
    """What is wrong after a power failure: something promised is not there, or what `problems_of` finds."""
    when, tree, promised = state
    lost = [f"{name} was promised and is lost" for name, data in promised.items() if tree.get(name) != data]
    lay_out(tree, folder)
    end_process(folder)
    return [f"{when}: {problem}" for problem in lost + problems_of(scene, folder / "cache")]


@pytest.mark.parametrize(
    ("name", "container", "full"), cases(("first", "tar"), ("change", "h5"), ("prune", "tar"), ("replaced", "h5"))
)
def test_a_power_failure_after_any_call_loses_nothing_that_was_committed(
    scenes: Scenes, tally: Tally, tmp_path: Path, name: str, container: str, full: bool
) -> None:
    scene, problems = scenes(container)[name], []
    _, calls = record(scene, tmp_path / "recorded")
    for kind, number in {"forgotten": 30, "names": 6, "half": 6, "chance": 12}.items():
        model = PowerModel.of(scene.begin(tmp_path / f"before-{kind}").parent)
        for i, state in enumerate(some(states(model, calls, kind), number, full)):
            problems += tally("power failures", problems_after(state, scene, tmp_path / f"{kind}-{i}"))
    assert problems == []


@pytest.mark.parametrize("name", ["first", "change", "prune", "replaced"])
def test_the_disk_of_these_tests_sees_every_call_that_an_encode_makes(
    scenes: Scenes, tmp_path: Path, name: str
) -> None:
    model, calls = record(scenes("tar")[name], tmp_path / "disk")
    for call in calls:
        model.apply(call)
    paths = sorted((tmp_path / "disk").rglob("*"))
    there = {p.relative_to(tmp_path / "disk").as_posix(): None if p.is_dir() else p.read_bytes() for p in paths}
    assert model.seen() == dict(sorted(there.items()))
    assert {call.kind for call in calls} >= {"create", "write", "fsync", "link", "unlink", "fsync folder"}


@pytest.mark.parametrize(("name", "container", "full"), cases(("first", "tar"), ("replaced", "h5")))
def test_what_a_killed_encode_left_unflushed_is_flushed_by_the_next_before_it_counts_on_it(
    scenes: Scenes, tally: Tally, tmp_path: Path, name: str, container: str, full: bool
) -> None:
    scene, problems = scenes(container)[name], []
    _, calls = record(scene, tmp_path / "recorded")
    made = [call for call in calls if call.kind != "promised"]
    after_folders = [n + 1 for n, call in enumerate(made) if call.kind == "mkdir"]
    chosen = range(1, len(made)) if full else sorted({*after_folders, *some(range(1, len(made)), 12, full)})
    for number in chosen:
        model, calls = killed_and_run_again(scene, tmp_path / f"killed-{number}", number)
        for call in calls:
            model.apply(call)
        found = problems_after(
            (f"killed before call {number}", model.after(), model.promised), scene, tmp_path / f"{number}"
        )
        problems += tally("power failures after a kill", found)
    assert problems == []


def killed_and_run_again(scene: Scene, folder: Path, number: int) -> tuple[PowerModel, list[Call]]:
    """An encode that ends before its call ``number``, and another that comes to its end; all that both did."""
    cache, model = scene.begin(folder), PowerModel.of(folder)

    def die(now: int, call: Call) -> None:
        if now >= number:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(folder, die).mount(patch)
        with pytest.raises(Killed):
            scene.encode(cache)
        disk.act = lambda now, call: None
        end_process(folder)
        scene.encode(cache)
    assert stored(cache) == scene.undisturbed
    return model, disk.calls


def test_a_file_whose_content_was_never_flushed_is_found_to_be_lost(scenes: Scenes, tmp_path: Path) -> None:
    """That these tests would find one."""
    scene = scenes("tar")["first"]
    model, calls = record(scene, tmp_path / "recorded")
    forgetful = [call for call in calls if call.kind != "fsync" or "text/" not in call.path]
    found: list[Any] = []
    for i, state in enumerate(states(model, forgetful, "names")[-3:]):
        found += problems_after(state, scene, tmp_path / f"state-{i}")
    assert any("was promised and is lost" in problem for problem in found)
