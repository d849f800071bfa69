"""Encodes of every kind killed at every call they make, within writes and at random, each then run once more."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scenes import NAMES, Scenes
from tally import Tally

EVERY_CALL = 10_000
SAMPLE = [("first", "tar"), ("change", "h5"), ("prune", "tar"), ("replaced", "h5")]


@pytest.mark.parametrize(
    ("scened", "calls", "moments"),
    [
        pytest.param(SAMPLE, {"tar": 6, "h5": 6}, 2, id="sample"),
        *(
            pytest.param(
                [(name, "tar"), (name, "h5")], {"tar": EVERY_CALL, "h5": 90}, 25, id=name, marks=pytest.mark.torture
            )
            for name in NAMES
        ),
    ],
)
def test_killed_at_a_call_or_a_moment_and_run_once_more_it_ends_byte_identical(
    scenes: Scenes, tally: Tally, tmp_path: Path, scened: list[tuple[str, str]], calls: dict[str, int], moments: int
) -> None:
    jobs = [
        {"scene": scenes(container)[name].record(), "calls": calls[container], "random": moments}
        for name, container in scened
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    program = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("killed_anywhere.py"))]
    ran = subprocess.run([*program, str(tmp_path / "jobs.json")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    kills = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    for kill in kills:
        if kill["code"] == -signal.SIGKILL:
            tally("kills", kill["problems"])
        else:
            assert (kill["where"], kill["code"]) == ("a random moment", 0), kill  # it came to its end before
    assert [kill for kill in kills if kill["problems"]] == []
    assert {kill["scene"] for kill in kills} == {name for name, _ in scened}
    assert any(kill["where"].startswith("half of write") for kill in kills)
