"""`kcache doctor`: what a bug report needs, and that it agrees with pyproject.toml and constraints.txt."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner, Result

from kcache import __version__
from kcache.cli.main import cli
from kcache.doctor import EXTRAS, TESTED, Device, examine, render

ROOT = Path(__file__).parent.parent


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, args, prog_name="kcache")


def test_doctor_prints_what_a_bug_report_needs() -> None:
    result = run("doctor")
    assert result.exit_code == 0, result.output
    for word in (
        "kcache",
        "python",
        "torch",
        "diffusers",
        "memory",
        "hub cache",
        "cpu",
        "bf16",
        "problems\n  none found",
    ):
        assert word in result.stdout


def test_doctor_prints_the_same_as_json() -> None:
    result = run("doctor", "--json")
    report = json.loads(result.stdout)
    assert report["kcache"] == __version__
    assert {package["name"]: package["tested"] for package in report["packages"]} == TESTED
    assert report["devices"][-1]["name"] == "cpu"
    assert report["cpu_cores"] >= 1
    assert report["problems"] == []


def test_doctor_names_a_missing_package_and_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TESTED, "no-such-package", "1.0")
    result = run("doctor")
    assert result.exit_code == 1
    assert "no-such-package is not installed; run 'pip install no-such-package'" in result.stdout
    assert re.search(r"no-such-package +- +MISSING \(tested: 1.0\)", result.stdout)


def test_doctor_says_when_a_version_is_not_the_tested_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TESTED, "click", "1.2.3")
    result = run("doctor")
    assert result.exit_code == 0
    assert re.search(r"click +\S+ +tested: 1\.2\.3", result.stdout)


def test_doctor_says_how_to_get_an_absent_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRAS, "moon", (["no-such-package"], "a moon"))
    assert "absent   a moon: pip install no-such-package" in run("doctor").stdout


def test_doctor_survives_a_torch_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> NoReturn:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr("kcache.doctor.find_devices", fail)
    report = examine()
    assert report.devices == []
    assert "torch does not start: libcudart.so.13" in render(report)


def test_doctor_shows_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Device("cuda:0", "NVIDIA H200", 139 * 2**30, "sm_90", "yes")
    monkeypatch.setattr("kcache.doctor.find_devices", lambda: [gpu])
    assert "NVIDIA H200, 139.0 GiB, sm_90, bf16: yes" in render(examine())


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~ \[;]", requirement)[0]


def test_the_doctor_knows_the_versions_that_ci_runs() -> None:
    assert {name: version for name, version in pins().items() if name in TESTED} == TESTED


def test_every_dependency_and_tool_is_pinned_and_every_pin_is_one() -> None:
    declared = {name_of(line) for line in project()["dependencies"]}
    assert declared == set(TESTED)
    tools = {name_of(line) for line in project()["optional-dependencies"]["test"]}
    assert declared | tools == set(pins())


def test_the_doctor_knows_every_extra() -> None:
    extras = project()["optional-dependencies"]
    assert {name: [name_of(line) for line in extras[name]] for name in extras if name != "test"} == {
        name: packages for name, (packages, _) in EXTRAS.items()
    }
