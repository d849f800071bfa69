"""An encode that is killed at any moment and run again ends with the bytes of one that was not; so do two at once."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import Encode, checkpoint_options, copy_old, done, kcache, make_old, refused, tree
from folders import Train
from support import ids
from tally import Tally

from kcache.shards import Cache, Rows, durable

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here, to be killed cheaply")

Killed = tuple[Path, dict[str, Any]]
JOBS: dict[str, dict[str, Any]] = {
    "many": {"format": "tar", "kills": 8},
    "again": {"format": "h5"},
    "race": {"format": "tar", "processes": 2, "rounds": 2},
    "columns": {"format": "h5", "processes": 2, "rounds": 2, "columns": [["text", "image"], ["latents-32"]]},
    "reading": {"format": "tar"},
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, pictures: Path, tiny_prior: Path, tiny_decoder: Path) -> Killed:
    """The folder in which killed.py did its jobs, and what it tells of each."""
    folder = tmp_path_factory.mktemp("killed")
    options = {
        "dataset": str(copy_old(pictures, folder / "pictures")),
        "pretrained_prior_model_name_or_path": str(tiny_prior),
        "pretrained_decoder_model_name_or_path": str(tiny_decoder),
    }
    changed = {"changed": str(change(copy_old(pictures, folder / "changed")))}
    jobs = {kind: {**job, **changed, "options": {**options, "format": job["format"]}} for kind, job in JOBS.items()}
    (folder / "jobs.json").write_text(json.dumps(jobs))
    program = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("killed.py")), str(folder / "jobs.json")]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    answers = json.loads(ran.stdout.splitlines()[-1])
    for kind, answer in answers.items():
        assert set(answer["codes"]) == {0}, f"{kind}: {ran.stderr}"
    return folder, answers


def change(dataset: Path) -> Path:
    """Replace a picture, caption another anew, and remove a third."""
    shutil.copy(dataset / "grey.png", dataset / "flat.png")
    make_old(dataset / "flat.png")
    (dataset / "turned.jpg").unlink()
    metadata = dataset / "metadata.jsonl"
    lines = [line for line in metadata.read_text("utf-8").splitlines(keepends=True) if "turned.jpg" not in line]
    metadata.write_text("".join(lines).replace("red apple", "a green apple"), "utf-8")
    return dataset


def stored(cache: Path) -> dict[str, bytes]:
    """Everything that a cache holds but ``index/``, which is derived."""
    return tree(cache, without=("index/",))


def test_killed_at_any_step_and_run_once_more_it_ends_byte_identical(killed: Killed) -> None:
    folder, told = killed[0] / "many", killed[1]["many"]
    expected = stored(folder / "undisturbed")
    assert {kill["name"] for kill in told["kills"]} == {"write", "fsync", "link", "fsync folder", "commit", "replace"}
    assert len(told["kills"]) >= 12
    assert any(kill["left"] for kill in told["kills"])  # some were killed with a file half made
    for kill in told["kills"]:
        assert kill["code"] == -signal.SIGKILL, kill
        assert kill["faults"] == [], kill  # what a killed encode leaves is whole, if not complete
        assert kill["again"] == 0, kill
        again = stored(folder / f"killed-{kill['step']:04}")
        assert not [name for name in again if ".tmp-" in name], kill
        assert again == expected, kill


def test_killed_again_and_again_it_ends_byte_identical(killed: Killed) -> None:
    folder, told = killed[0] / "again", killed[1]["again"]
    assert told["attempts"] >= 4
    assert told["faults"] == []
    assert any(name.endswith(".h5") for name in stored(folder / "killed"))
    assert stored(folder / "killed") == stored(folder / "undisturbed")


def test_processes_that_encode_into_one_cache_at_once_end_as_one_would(killed: Killed) -> None:
    folder = killed[0] / "race"
    for number in range(JOBS["race"]["rounds"]):
        assert stored(folder / f"raced-{number}") == stored(folder / "undisturbed"), number


def test_processes_that_encode_other_columns_of_one_cache_at_once_end_as_one_would(killed: Killed) -> None:
    folder = killed[0] / "columns"
    for number in range(JOBS["columns"]["rounds"]):
        assert stored(folder / f"raced-{number}") == stored(folder / "undisturbed"), number


def test_a_process_that_reads_while_another_encodes_reads_the_same_bytes_to_the_end(killed: Killed) -> None:
    told = killed[1]["reading"]
    assert told["changed"]
    assert told["passes"] >= 2
    assert len(told["digests"]) == 1


def test_a_training_ends_with_the_same_weights_while_its_cache_is_changed_and_pruned(
    train: Train, encode: Encode, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, changed = tmp_path / "cache", change(copy_old(pictures, tmp_path / "pictures"))
    done(encode(pictures, cache))
    options = ["--max-train-steps=6", "--train-batch-size=2", "--output-dir"]
    done(train("prior", cache, *options, tmp_path / "undisturbed"))
    read, reads = Rows.read_into, itertools.count()

    def read_into(self: Rows, field: str, outs: Sequence[memoryview]) -> None:
        if next(reads) == 8:
            done(encode(changed, cache, "--prune"))
        read(self, field, outs)

    monkeypatch.setattr(Rows, "read_into", read_into)
    done(train("prior", cache, *options, tmp_path / "meanwhile"))
    assert next(reads) > 24
    assert Cache(cache).commits("image")[0] == 2
    assert tree(tmp_path / "meanwhile" / "prior") == tree(tmp_path / "undisturbed" / "prior")


def test_the_real_command_killed_amid_its_work_ends_byte_identical(
    encode: Encode, pictures: Path, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    dataset, cache = copy_old(pictures, tmp_path / "pictures"), tmp_path / "cache"
    line = command(dataset, cache, tiny_prior, tiny_decoder)
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    kill_when(process, lambda: any(cache.glob("commits/samples/000000*")))
    assert process.returncode == -signal.SIGKILL
    done(encode(dataset, cache))
    done(encode(dataset, tmp_path / "undisturbed"))
    assert stored(cache) == stored(tmp_path / "undisturbed")


@pytest.mark.torture
def test_the_real_command_killed_at_random_moments_ends_byte_identical(
    encode: Encode, pictures: Path, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path, tally: Tally
) -> None:
    dataset = copy_old(pictures, tmp_path / "pictures")
    done(encode(dataset, tmp_path / "undisturbed"))
    rng, kills = random.Random(0), 0
    for number in itertools.count():
        cache = tmp_path / f"cache-{number}"
        line = command(dataset, cache, tiny_prior, tiny_decoder)
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        kill_when(process, lambda cache=cache: (cache / "kcache.json").exists(), rng.random())
        done(encode(dataset, cache))
        assert stored(cache) == stored(tmp_path / "undisturbed"), number
        if process.returncode == -signal.SIGKILL:  # and had not come to its end before
            tally("kills of the command", [])
            kills += 1
        if kills == 10:
            return


def command(dataset: Path, cache: Path, prior: Path, decoder: Path) -> list[str]:
    """An encode as it is typed."""
    options = [*checkpoint_options(prior, decoder), "--resolution=32", "--shard-size=4", "--batch-size=3"]
    return [sys.executable, "-m", "kcache", "encode", str(dataset), str(cache), *options, "--device=cpu"]


def kill_when(process: subprocess.Popen[str], seen: Callable[[], bool], seconds: float = 0.0) -> None:
    """Kill -9 so many ``seconds`` after something is ``seen``; the process must not have failed before."""
    deadline = time.monotonic() + 120
    while not seen() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    _, said = process.communicate(timeout=60)
    assert "Error" not in said, said


# --- another encoder that runs from beginning to end between two steps of this one


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, moment: Callable[[str, int], bool], other: Callable[[], Any]
) -> list[str]:
    """Run ``other`` once, before the first step that is the ``moment``; returns the names of the steps taken."""
    steps: list[str] = []

    def failpoint(name: str) -> None:
        steps.append(name)
        if moment(name, len(steps) - 1):
            monkeypatch.setattr(durable, "failpoint", lambda name: None)
            other()

    monkeypatch.setattr(durable, "failpoint", failpoint)
    return steps


@pytest.mark.parametrize("step", [0, 3, 7, 13, 40, 75, 130])
def test_a_whole_encode_between_two_steps_of_another_changes_no_byte(
    encode: Encode, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    cache, said = tmp_path / "cache", []
    steps = meanwhile(monkeypatch, lambda name, number: number == step, lambda: said.append(encode(pictures, cache)))
    done(encode(pictures, cache))
    monkeypatch.undo()
    assert len(steps) == step + 1
    done(said[0])
    done(encode(pictures, tmp_path / "undisturbed"))
    assert stored(cache) == stored(tmp_path / "undisturbed")


def test_an_encode_that_finds_other_samples_planned_meanwhile_says_so_and_completes_when_run_again(
    encode: Encode, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, cache = copy_old(pictures, tmp_path / "other"), tmp_path / "cache"
    (other / "metadata.jsonl").write_text('{"file_name": "flat.png", "text": "a turtle, cut flat"}\n')
    for path in [*other.glob("*.webp"), *other.glob("*.jpg"), *other.glob("*/*.png"), *other.glob("[!f]*.png")]:
        path.unlink()
    meanwhile(monkeypatch, lambda name, number: (cache / "kcache.json").exists(), lambda: done(encode(other, cache)))
    said = refused(encode(pictures, cache))
    assert said == (
        f"another process planned other samples into {cache / 'plan' / '000000.jsonl'};"
        " run the command again to go on from its plan"
    )
    monkeypatch.undo()
    done(encode(pictures, cache))
    assert ids(Cache(cache))[0] == "flat.png"
    assert sorted(ids(Cache(cache))) == sorted(set(ids(Cache(cache))))
    assert len(ids(Cache(cache))) == 10


def test_an_encode_that_finds_other_shards_meanwhile_says_so(
    encode: Encode, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    other = lambda: done(encode(pictures, cache, "--shard-size", "8"))  # noqa: E731
    meanwhile(monkeypatch, lambda name, number: number == 0, other)
    said = refused(encode(pictures, cache, "--shard-size", "4"))
    assert said == f"another process made {cache} with other shards meanwhile; run the command again"


@pytest.mark.parametrize("sign", ["text.json", "image.null*.tar", "image.null*.idx"])
def test_an_encode_that_finds_a_column_of_another_encoder_meanwhile_says_so(
    encode: Encode, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    cache = tmp_path / "cache"
    other = lambda: done(encode(pictures, cache, "--columns", "image", "--alpha", "drop"))  # noqa: E731
    meanwhile(monkeypatch, lambda name, number: any(cache.glob(f"columns/{sign}")), other)
    said = refused(encode(pictures, cache))
    assert said.startswith(f"column 'image' of {cache} was encoded otherwise (alpha is 'drop', not 'white')")
    monkeypatch.undo()
    assert Cache(cache).column("image").preprocessing["alpha"] == "drop"
    assert done(kcache("verify", cache, "--deep")).stdout.splitlines()[-1].startswith("No fault in ")
    done(encode(pictures, cache, "--columns", "text"))


def test_sigterm_ends_an_encode_with_a_sentence_and_the_same_command_goes_on(
    encode: Encode, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def terminate(step: str) -> None:
        if step == "commit":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(durable, "failpoint", terminate)
    result = done(encode(pictures, tmp_path / "cache"), code=143)
    assert result.stderr.endswith("\nTerminated: what was committed or saved is kept.\n")
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.undo()
    done(encode(pictures, tmp_path / "cache"))
    done(encode(pictures, tmp_path / "undisturbed"))
    assert tree(tmp_path / "cache", without=("index",)) == tree(tmp_path / "undisturbed", without=("index",))
