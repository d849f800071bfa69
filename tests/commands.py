"""The command line run inside the test's own process, and what it leaves on disk."""

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner, Result

Encode = Callable[..., Result]


def kcache(*args: object) -> Result:
    """``kcache ARGS``; the logger that the command line owns is put back for other tests."""
    from kcache.cli.main import cli

    logger = logging.getLogger("kcache")
    handlers, level = logger.handlers, logger.level
    try:
        return CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="kcache")
    finally:
        logger.handlers, logger.level = handlers, level


def checkpoint_options(prior: Path, decoder: Path) -> list[str]:
    """The options of ``encode`` that name two checkpoints."""
    return [
        f"--pretrained-prior-model-name-or-path={prior}",
        f"--pretrained-decoder-model-name-or-path={decoder}",
    ]


def encode_with(prior: Path, decoder: Path) -> Encode:
    """``encode(dataset, cache, *more)`` with tiny encoders, at 32 px unless ``more`` has another resolution."""

    def encode(dataset: object, cache: object, *more: object) -> Result:
        resolution = [] if any(str(option).startswith("--resolution") for option in more) else ["--resolution=32"]
        new = [] if Path(str(cache), "kcache.json").exists() or "--shard-size" in more else ["--shard-size=4"]
        options = [*checkpoint_options(prior, decoder), *resolution, *new, "--batch-size=3", "--device=cpu"]
        return kcache("encode", dataset, cache, *options, *more)

    return encode


def done(result: Result, code: int = 0) -> Result:
    """The result of a command that ended with ``code``, after a look at what it said."""
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.output}"
    assert "Traceback" not in result.output
    return result


def refused(result: Result, code: int = 1) -> str:
    """The one sentence of a command that ended with an error that kcache knows."""
    done(result, code)
    *_, last = result.stderr.strip().splitlines()
    assert last.startswith("Error: "), result.stderr
    assert result.stderr.count("Error: ") == 1
    assert "run again with -v" not in last, f"not an error that kcache knows: {last}"
    return last.removeprefix("Error: ")


def counted(result: Result) -> dict[str, dict[str, int]]:
    """For every column, how many samples the command found in which state."""
    lines = [line for line in result.stderr.splitlines() if " hit " in line]
    return {
        line.split()[0]: {words.rsplit(" ", 1)[0]: int(words.rsplit(" ", 1)[1]) for words in _states(line)}
        for line in lines
    }


def _states(line: str) -> list[str]:
    return [words.strip() for words in line.split(maxsplit=1)[1].split("/")]


def copy_old(source: Path, target: Path) -> Path:
    """A copy of a dataset whose files changed last an hour ago, as a dataset's files have."""
    shutil.copytree(source, target)
    for path in target.rglob("*"):
        make_old(path)
    return target


def make_old(path: Path) -> None:
    """Let a file have changed an hour ago."""
    then = time.time() - 3600
    os.utime(path, (then, then))


def tree(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """The bytes of every file below a folder by its path, but those whose path begins with one of ``without``."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in sorted(files.items()) if not name.startswith(without or ("//",))}


def stamps(folder: Path) -> dict[str, int]:
    """When every file below a folder was written."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }
