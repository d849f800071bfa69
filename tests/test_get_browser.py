"""``make browser``: the script that sees to Chromium, on machines that have it, are given it, or are told how."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "get_browser.sh"
INSTALLS = 'echo "$@" >> {log}; case "$1" in install) touch {bin}/chromium {bin}/chromedriver; chmod +x {bin}/c*;; esac'


class Machine:
    """A machine with only these programs on its path."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.log = folder / "bin", folder / "log"
        self.bin.mkdir()
        for name in ("touch", "chmod"):
            (self.bin / name).symlink_to(shutil.which(name) or name)

    def add(self, name: str, code: str = "") -> "Machine":
        (self.bin / name).write_text(f"#!/bin/sh\n{code.format(log=self.log, bin=self.bin)}\n")
        (self.bin / name).chmod(0o755)
        return self

    def run(self) -> "subprocess.CompletedProcess[str]":
        command = [shutil.which("sh") or "sh", str(SCRIPT)]
        return subprocess.run(command, env={"PATH": str(self.bin)}, capture_output=True, text=True)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_is_done_where_a_browser_is_there(machine: Machine) -> None:
    done = machine.add("google-chrome").add("chromedriver").add("apt-get", INSTALLS).add("id", "echo 0").run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not machine.log.exists()


def test_root_on_debian_is_given_one(machine: Machine) -> None:
    done = machine.add("id", "echo 0").add("apt-get", INSTALLS).run()
    assert done.returncode == 0, done.stderr
    assert machine.log.read_text().splitlines() == [
        "update -qq",
        "install -y --no-install-recommends chromium chromium-driver",
    ]


@pytest.mark.parametrize("who", ["somebody", "root elsewhere", "root without a network"])
def test_everybody_else_is_told_what_to_run(machine: Machine, who: str) -> None:
    machine.add("chromium").add("id", f"echo {1000 if who == 'somebody' else 0}")
    if who != "root elsewhere":
        machine.add("apt-get", "echo $@ >> {log}; exit 100")
    done = machine.run()
    assert done.returncode == 1
    assert "sudo apt-get install -y --no-install-recommends chromium chromium-driver" in done.stderr
    assert "-m 'not browser'" in done.stderr
    assert machine.log.exists() is (who == "root without a network")
