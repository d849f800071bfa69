"""benchmarks/against_reference.py: the stopwatch leaves programs as they are, and both sides are asked for the same."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PROGRAM = """
import sys, torch
assert __name__ == "__main__" and sys.path[0] == {folder!r}
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.AdamW([weight])
for step in range(int(sys.argv[1])):
    weight.sum().backward()
    optimizer.step()
    print("updated", flush=True)
open("saved", "w").close()
"""


def watched(folder: Path, updates: int) -> dict[str, Any] | None:
    """What the stopwatch says of a program of so many updates, of which it waits for one and times three."""
    (folder / "program.py").write_text(PROGRAM.format(folder=str(folder)))
    line = [sys.executable, str(BENCHMARKS / "stopwatch.py"), "told.json", "1", "3", str(folder / "program.py")]
    ran = subprocess.run([*line, str(updates)], cwd=folder, capture_output=True, text=True, check=True, timeout=120)
    assert ran.stdout.count("updated") == min(updates, 3)  # the fourth update is the last thing it does
    told = folder / "told.json"
    return json.loads(told.read_text()) if told.exists() else None


def test_the_stopwatch_ends_a_program_with_its_last_timed_update(tmp_path: Path) -> None:
    told = watched(tmp_path, 9)
    assert told is not None
    assert all(value > 0 for value in told.values())
    assert set(told) == {"seconds", "processor seconds", "peak bytes"}
    assert not (tmp_path / "saved").exists()


def test_the_stopwatch_says_nothing_of_a_program_that_ends_too_early(tmp_path: Path) -> None:
    assert watched(tmp_path, 2) is None
    assert (tmp_path / "saved").exists()


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import against_reference

    return against_reference


def make_case(benchmark: Any, folder: Path, **changes: Any) -> Any:
    given = {"diffusers": folder, "batch_size": 4, "resolution": 64, "mixed_precision": "bf16", "workers": 0}
    options = argparse.Namespace(**given, warm=1, updates=2, rounds=2)
    return benchmark.Case(**({"stage": "decoder", "lora": False, "folder": folder, "options": options} | changes))


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_both_sides_get_the_same_options(benchmark: Any, tmp_path: Path, stage: str) -> None:
    case = make_case(benchmark, tmp_path, stage=stage)
    reference, kcache = (line[-len(case.shared()) :] for line in (case.reference(tmp_path), case.kcache(tmp_path)))
    assert reference == kcache == case.shared()


def test_a_script_that_does_not_run_is_told_by_its_own_error(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(benchmark, tmp_path, lora=True)
    case.script.parent.mkdir(parents=True)
    case.script.write_text("raise TypeError('no argument hidden_size')\n")
    program = tmp_path / "kcache.py"
    program.write_text(PROGRAM.format(folder=str(tmp_path)))
    monkeypatch.setattr(benchmark.Case, "kcache", lambda self, out: [str(program), "9"])
    found = benchmark.measure(case)
    assert found["reference does not run"] == "TypeError: no argument hidden_size"
    assert found["reference"] == []
    assert len(found["kcache"]) == 2
