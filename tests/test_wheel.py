"""What users install: whole even from a checkout without symlinks, one top-level package, and it runs elsewhere."""

import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from kcache import __version__

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command elsewhere than in the checkout; returns its stdout, and fails with everything it said."""
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def files_of_the_checkout() -> list[str]:
    """What git tracks, and what it would: the checkout without build products."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return [name for name in listed.split("\0") if name and os.path.lexists(ROOT / name)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel made from it, from a checkout as ``core.symlinks=false`` leaves it."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in files_of_the_checkout():
        source, copy = ROOT / name, checkout / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.write_text(os.readlink(source), encoding="utf-8")
        else:
            shutil.copy2(source, copy)
    assert (checkout / "kcache" / "shards").is_file()
    # The tools are in this environment, so that nothing is downloaded. The wheel is built from the sdist.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", cwd=checkout)
    return checkout / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel installed into a folder of its own, beside this environment's dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, wheel, cwd=folder)
    return folder


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def expected_files() -> set[str]:
    """The wheel's names of every source and data file in the checkout."""
    homes = {"cli": "kcache/cli", "shards": "kcache/shards", "kcache": "kcache"}
    expected = set()
    for name in files_of_the_checkout():
        folder, _, rest = name.partition("/")
        wanted = name.endswith(".py") or name == "kcache/py.typed" or name.startswith("kcache/data/")
        if folder in homes and wanted:
            expected.add(f"{homes[folder]}/{rest}")
    return expected


def test_the_names_carry_the_version(built: Path, wheel: Path) -> None:
    assert wheel.name == f"kcache-{__version__}-py3-none-any.whl"
    assert (built / f"kcache-{__version__}.tar.gz").is_file()


def test_the_wheel_holds_every_file_of_the_checkout_and_nothing_else(wheel: Path) -> None:
    held = {name for name in names_in(wheel) if ".dist-info/" not in name}
    assert held == expected_files()


def test_no_file_of_the_wheel_is_a_link(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert not [info.filename for info in archive.infolist() if stat.S_ISLNK(info.external_attr >> 16)]


def test_the_wheel_is_typed_licensed_and_has_the_demo_data(wheel: Path) -> None:
    names = names_in(wheel)
    assert "kcache/py.typed" in names
    assert f"kcache-{__version__}.dist-info/licenses/LICENSE" in names
    assert any(name.startswith("kcache/data/") for name in names)


def test_the_wheel_passes_check_wheel_contents(wheel: Path) -> None:
    tool = Path(sys.executable).with_name("check-wheel-contents")
    run(tool, "--config", ROOT / "pyproject.toml", wheel, cwd=wheel.parent)


def test_the_sdist_is_enough_to_build_from(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "cli/main.py", "shards/errors.py", "kcache/py.typed"} <= names


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--version"], __version__), (["--help"], "kcache encode"), (["doctor"], "none found")]
)
def test_the_installed_program_runs_elsewhere(installed: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    program = installed / "bin" / "kcache"
    assert said in run(program, *arguments, cwd=tmp_path, PYTHONPATH=str(installed))


def test_the_installed_package_is_the_one_that_runs(installed: Path, tmp_path: Path) -> None:
    code = "from kcache import cli, shards; print(cli.__file__, shards.__file__)"
    paths = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).split()
    assert [Path(path).is_relative_to(installed) for path in paths] == [True, True]
