"""The command line's shell: help, spelling, lists, errors as sentences, and exit codes."""

import errno
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner, Result

from kcache import __version__
from kcache.cli.main import COMMANDS, cli
from kcache.cli.options import Choice, ListOption, make_config
from kcache.cli.shell import LazyGroup
from kcache.shards.errors import CacheError, UsageError

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """The command line owns the logger ``kcache``; other tests get it back as it was."""
    logger = logging.getLogger("kcache")
    handlers, level = logger.handlers, logger.level
    yield
    logger.handlers, logger.level = handlers, level


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, args, prog_name="kcache")


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the real group with one more command, ``try``: ``shell(command_or_function, *args)``."""

    def run_with(command: click.Command | Callable[[], Any], *args: str, before: tuple[str, ...] = ()) -> Result:
        if not isinstance(command, click.Command):
            command = click.Command("try", callback=command)
        monkeypatch.setitem(cli.table, "try", (f"{__name__}:_command", "A command of this test."))
        monkeypatch.setattr(sys.modules[__name__], "_command", command, raising=False)
        return run(*before, "try", *args)

    return run_with


def echo_params(*params: click.Parameter) -> click.Command:
    """A command that prints its parameters as JSON."""
    return click.Command("try", params=list(params), callback=lambda **given: click.echo(json.dumps(given)))


def raises(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


# --- help and spelling


def test_help_names_every_command_and_shows_the_way() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", result.stdout, re.MULTILINE), name
    assert "kcache encode my-pictures cache" in result.stdout


def test_help_of_train_names_both_stages_with_an_example() -> None:
    result = run("train", "--help")
    assert result.exit_code == 0
    assert "  prior " in result.stdout
    assert "  decoder " in result.stdout
    assert "kcache train prior CACHE --output-dir" in result.stdout


def test_version_is_the_one_in_the_package() -> None:
    assert run("--version").stdout == f"kcache, version {__version__}\n"


def test_python_dash_m_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "kcache", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"kcache, version {__version__}\n")


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["encod"], "encode"),
        (["train", "decodr"], "decoder"),
        (["--verson"], "--version"),
        (["doctor", "--jsn"], "--json"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_one_meant(args: list[str], meant: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert "Did you mean" in result.stderr
    assert f"'{meant}'" in result.stderr


def test_an_unknown_choice_is_answered_with_the_one_meant(shell: Callable[..., Result]) -> None:
    command = echo_params(click.Option(["--lr-scheduler"], type=Choice(["constant", "constant_with_warmup", "cosine"])))
    result = shell(command, "--lr-scheduler", "cosin")
    assert result.exit_code == 2
    assert "Did you mean 'cosine'?" in result.stderr
    spelt = shell(command, "--lr_scheduler", "constant-with-warmup")
    assert json.loads(spelt.stdout) == {"lr_scheduler": "constant_with_warmup"}


@pytest.mark.parametrize("line", [["--train_batch_size", "4"], ["--train_batch-size=4"], ["--train-batch-size", "4"]])
def test_underscores_in_option_names_are_dashes(shell: Callable[..., Result], line: list[str]) -> None:
    result = shell(echo_params(click.Option(["--train-batch-size"], type=int)), *line)
    assert json.loads(result.stdout) == {"train_batch_size": 4}


@pytest.mark.parametrize("line", [["--name", "--a_b"], ["--name=--a_b"]])
def test_a_value_keeps_its_underscores_and_dashes(shell: Callable[..., Result], line: list[str]) -> None:
    assert json.loads(shell(echo_params(click.Option(["--name"])), *line).stdout) == {"name": "--a_b"}


def test_arguments_keep_their_underscores(shell: Callable[..., Result]) -> None:
    assert json.loads(shell(echo_params(click.Argument(["cache"])), "my_cache").stdout) == {"cache": "my_cache"}


# --- lists


def encode_like() -> click.Command:
    return echo_params(
        click.Argument(["dataset"]),
        click.Argument(["cache"]),
        ListOption(["-r", "--resolution"], type=click.IntRange(8)),
        click.Option(["--flip"], is_flag=True),
    )


@pytest.mark.parametrize(
    "line",
    [
        "--resolution 512 768 data cache",
        "data cache --resolution 512 768",
        "data --resolution 512 768 cache",
        "--resolution 512 --resolution 768 data cache",
        "--resolution=512 --resolution=768 data cache",
        "data cache --resolution 512 768 --flip",
        "data cache --resolution 512 --flip --resolution 768",
        "--resolution 512 768 -- data cache",
        "-r 512 -r 768 data cache",
    ],
)
def test_a_list_of_numbers_ends_where_the_numbers_end(shell: Callable[..., Result], line: str) -> None:
    given = json.loads(shell(encode_like(), *line.split()).stdout)
    assert given == {"dataset": "data", "cache": "cache", "resolution": [512, 768], "flip": "--flip" in line}


def test_a_list_that_is_not_given_is_empty(shell: Callable[..., Result]) -> None:
    assert json.loads(shell(encode_like(), "data", "cache").stdout)["resolution"] == []


def test_a_number_out_of_range_is_called_a_bad_number_and_not_an_argument(shell: Callable[..., Result]) -> None:
    result = shell(encode_like(), "--resolution", "512", "4", "data", "cache")
    assert result.exit_code == 2
    assert "Invalid value for '-r' / '--resolution': 4 is not in the range" in result.stderr


def train_like() -> click.Command:
    return echo_params(
        click.Argument(["cache"]), ListOption(["--validation-prompts"]), click.Option(["--seed"], type=int)
    )


@pytest.mark.parametrize(
    "line",
    [
        ["cache", "--validation_prompts", "a cat", "a dog", "--seed", "1"],
        ["cache", "--seed", "1", "--validation-prompts", "a cat", "--validation-prompts", "a dog"],
        ["--seed", "1", "--validation-prompts", "a cat", "a dog", "--", "cache"],
        ["--validation-prompts=a cat", "cache", "--validation-prompts=a dog", "--seed=1"],
    ],
)
def test_a_list_of_strings_ends_at_the_next_option(shell: Callable[..., Result], line: list[str]) -> None:
    given = json.loads(shell(train_like(), *line).stdout)
    assert given == {"cache": "cache", "validation_prompts": ["a cat", "a dog"], "seed": 1}


def test_an_argument_that_a_list_of_strings_took_is_explained(shell: Callable[..., Result]) -> None:
    result = shell(train_like(), "--validation-prompts", "a cat", "cache")
    assert result.exit_code == 2
    assert "Missing argument 'CACHE'" in result.stderr
    assert "--validation-prompts takes every word that follows it: put the arguments before it." in result.stderr


def test_an_empty_list_option_needs_a_value(shell: Callable[..., Result]) -> None:
    result = shell(encode_like(), "data", "cache", "--resolution")
    assert result.exit_code == 2
    assert "requires an argument" in result.stderr


# --- the error boundary and exit codes


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_integer_that_a_command_returns_is_the_exit_code(shell: Callable[..., Result], code: int) -> None:
    assert shell(lambda: code).exit_code == code


@pytest.mark.parametrize("value", [None, "text", True, [3]])
def test_any_other_result_is_success(shell: Callable[..., Result], value: object) -> None:
    assert shell(lambda: value).exit_code == 0


@pytest.mark.parametrize(("error", "code"), [(CacheError, 1), (UsageError, 2)])
def test_an_error_of_kcache_is_its_sentence_and_its_exit_code(
    shell: Callable[..., Result], error: type[CacheError | UsageError], code: int
) -> None:
    result = shell(raises(error("00012.h5 has 9,998 rows; run 'kcache verify CACHE --repair'")))
    assert result.exit_code == code
    assert result.stderr == "Error: 00012.h5 has 9,998 rows; run 'kcache verify CACHE --repair'\n"
    assert result.stdout == ""


def test_an_error_of_kcache_shows_its_traceback_with_v(shell: Callable[..., Result]) -> None:
    result = shell(raises(CacheError("broken")), "-v")
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last)")
    assert result.stderr.endswith("\nError: broken\n")


def test_an_unexpected_error_is_one_sentence_that_names_the_way_to_its_traceback(shell: Callable[..., Result]) -> None:
    result = shell(raises(ValueError("wrong\n  shape.")))
    assert result.exit_code == 1
    assert result.stderr == "Error: ValueError: wrong shape; run again with -v for the traceback\n"


@pytest.mark.parametrize("place", ["before", "after"])
def test_v_shows_the_traceback_before_and_after_the_command(shell: Callable[..., Result], place: str) -> None:
    body = raises(ValueError("wrong shape"))
    result = shell(body, before=("-v",)) if place == "before" else shell(body, "--verbose")
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("\nError: ValueError: wrong shape\n")


def test_an_interrupt_says_that_work_is_kept(shell: Callable[..., Result]) -> None:
    result = shell(raises(KeyboardInterrupt()))
    assert result.exit_code == 130
    assert result.stderr == "\nInterrupted: what was committed or saved is kept.\n"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "cache/text/000012.tar"),
        OSError("Can't write data (errno = 28, error message = 'No space left on device')"),  # as HDF5 says it
    ],
)
def test_a_full_disk_is_said_plainly(shell: Callable[..., Result], error: OSError) -> None:
    result = shell(raises(error))
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: no space left on the device")
    assert result.stderr.endswith("; free some, then run the same command again\n")


def test_a_missing_file_is_named(shell: Callable[..., Result]) -> None:
    result = shell(lambda: Path("/nowhere/to/be/found").read_bytes())
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: No such file or directory: /nowhere/to/be/found")


def test_running_out_of_memory_names_what_to_try(shell: Callable[..., Result]) -> None:
    out_of_memory = type("OutOfMemoryError", (RuntimeError,), {})
    result = shell(raises(out_of_memory("CUDA out of memory. Tried to allocate 2.00 GiB")))
    assert result.exit_code == 1
    assert "Tried to allocate 2.00 GiB; try a smaller batch size" in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="a closed pipe is another error there")
def test_a_reader_that_goes_away_is_no_error() -> None:
    code = (
        "import click; from kcache.cli import main\n"
        "main.cli.table['try'] = ('__main__:try_', '')\n"
        "try_ = click.Command('try', callback=lambda: [click.echo('x' * 1000) for _ in range(1000)])\n"
        "main.cli.main(['try'], prog_name='kcache')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == ""
    process.wait(timeout=60)


def test_wrong_usage_exits_with_2_and_points_at_help(shell: Callable[..., Result]) -> None:
    result = shell(encode_like(), "data")
    assert result.exit_code == 2
    assert "Try 'kcache try --help' for help." in result.stderr
    assert "Missing argument 'CACHE'" in result.stderr


# --- how much is said


def talk() -> None:
    log = logging.getLogger("kcache.anything")
    log.debug("a detail")
    log.info("a fact")
    log.warning("a worry")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "a fact\nWarning: a worry\n"),
        (["-q"], "Warning: a worry\n"),
        (["-v"], "a detail\na fact\nWarning: a worry\n"),
    ],
)
def test_v_and_q_set_what_the_library_logs(shell: Callable[..., Result], flags: list[str], said: str) -> None:
    for result in (shell(talk, *flags), shell(talk, before=tuple(flags))):
        assert (result.stdout, result.stderr) == ("", said)


@pytest.mark.parametrize("line", [["-v", "-q", "doctor"], ["-v", "doctor", "-q"]])
def test_v_and_q_together_are_wrong_usage(line: list[str]) -> None:
    result = run(*line)
    assert result.exit_code == 2
    assert "contradict" in result.stderr


def test_a_command_keeps_its_own_q(shell: Callable[..., Result]) -> None:
    result = shell(echo_params(click.Option(["-q", "--quality"], type=int)), "-q", "90")
    assert json.loads(result.stdout) == {"quality": 90}


def test_a_command_is_imported_only_when_asked_for() -> None:
    group = LazyGroup("g", {"missing": ("no.such.module:command", "Not there.")})
    assert "Not there." in CliRunner().invoke(group, ["--help"]).output
    with pytest.raises(ModuleNotFoundError):
        group.get_command(click.Context(group), "missing")


# --- options -> config


@dataclass(frozen=True)
class Config:
    cache: str
    learning_rate: float = 1e-4
    resolution: tuple[int, ...] = ()
    precision: Literal["fp32", "fp16"] = "fp32"


def test_a_config_takes_what_was_given_and_defaults_the_rest() -> None:
    assert make_config(Config, {"cache": "c", "learning_rate": None, "resolution": (512,)}) == Config(
        "c", resolution=(512,)
    )


def test_an_unknown_field_is_answered_with_the_one_meant() -> None:
    with pytest.raises(UsageError, match=r"Config has no option 'learning_rat'\. Did you mean 'learning_rate'\?"):
        make_config(Config, {"cache": "c", "learning_rat": 1.0})


def test_a_field_that_has_no_default_must_be_given() -> None:
    with pytest.raises(UsageError, match="--cache is needed"):
        make_config(Config, {"cache": None})
