"""What every command runs in: lazy groups, -v and -q, and the one place where an error becomes a sentence."""

import errno
import importlib
import logging
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from kcache.cli.options import explain_missing_argument
from kcache.cli.say import say

LOG_LEVELS = {"quiet": logging.WARNING, "normal": logging.INFO, "verbose": logging.DEBUG}
VERBOSITY = "kcache.verbosity"  # key in click's ctx.meta, which a command shares with its group


class LazyGroup(click.Group):
    """A group that knows its commands' names and one-line helps, and imports a command when it is asked for."""

    def __init__(self, name: str, table: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order in which they are used, which is the table's."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; it also takes -v and -q, so that they may be appended to a line that failed."""
        if cmd_name not in self.table:
            return None
        module, attribute = self.table[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        taken = {flag for param in command.params for flag in param.opts}
        command.params += [option for option in verbosity_options(hidden=True) if taken.isdisjoint(option.opts)]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but "did you mean" looks through the table; click's looks through imported commands."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(error.command_name, possibilities=self.table, ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in self.table.items()])


class Shell(LazyGroup):
    """The outermost group: whatever a command raises leaves through here, and its integer result is the exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command inside the error boundary."""
        apply_verbosity(ctx)
        with error_boundary(ctx):
            code = super().invoke(ctx)
        ctx.exit(code if type(code) is int else 0)  # a bool is no exit code


class Terminated(KeyboardInterrupt):
    """SIGTERM was received."""


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Within it SIGTERM ends a command as Ctrl-C does, with a sentence; only the main thread can arrange that."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def error_boundary(ctx: click.Context) -> Iterator[None]:
    """Turn what a command raised into one sentence on stderr and an exit code.

    Wrong usage and a closed pipe stay click's own to handle. A traceback is shown with -v, before the sentence.
    """
    try:
        yield
    except click.MissingParameter as error:
        raise explain_missing_argument(error) from None
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Terminated:
        click.echo("\nTerminated: what was committed or saved is kept.", err=True)
        ctx.exit(143)  # 128 + SIGTERM, as shells count it
    except KeyboardInterrupt:
        click.echo("\nInterrupted: what was committed or saved is kept.", err=True)
        ctx.exit(130)  # 128 + SIGINT
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise
        verbose = ctx.meta.get(VERBOSITY) == "verbose"
        if verbose:
            click.echo(traceback.format_exc(), err=True, nl=False)
        sentence, code, known = describe(error)
        sentence = about_copies(sentence)
        advice = "" if known or verbose else "; run again with -v for the traceback"
        say(f"Error: {sentence}{advice}", err=True)
        ctx.exit(code)


def about_copies(sentence: str) -> str:
    """With what to know of a path in a local cache: what is wrong with it may be wrong with the copy alone."""
    from kcache.shards.mirror import folders

    for folder, name in folders().items():
        if folder in sentence:
            sentence = sentence.replace(f"'kcache verify {folder}", f"'kcache verify {name}")
            return f"{sentence}; that is a copy of {name}: if only the copy is at fault, remove it and run this again"
    return sentence


def describe(error: Exception) -> tuple[str, int, bool]:
    """The sentence for an exception, its exit code, and whether the sentence says all there is to know."""
    from kcache.shards.errors import KcacheError  # here, because --help has no use for what comes with the package

    text = " ".join(str(error).split())  # a message of many lines, as the hub's are, becomes one
    if isinstance(error, KcacheError):
        return text, error.exit_code, True
    if isinstance(error, OSError) and (error.errno == errno.ENOSPC or "No space left on device" in text):
        place = f" for {error.filename}" if error.filename else ""
        return f"no space left on the device{place}; free some, then run the same command again", 1, True
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
        return f"out of memory: {text or 'the machine has no more'}; try a smaller batch size", 1, True
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}", 1, False
    name = type(error).__name__
    return (f"{name}: {text.rstrip('.')}" if text else name), 1, False


class EchoHandler(logging.Handler):
    """Writes the library's log to stderr, so that stdout stays a command's result."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message; from WARNING up it says what it is."""
        prefix = f"{record.levelname.capitalize()}: " if record.levelno >= logging.WARNING else ""
        say(prefix + self.format(record), err=True)


def apply_verbosity(ctx: click.Context) -> None:
    """Give the logger ``kcache`` its one handler and the level that -v or -q asked for."""
    logger = logging.getLogger("kcache")
    logger.handlers = [EchoHandler()]
    logger.setLevel(LOG_LEVELS[ctx.meta.get(VERBOSITY, "normal")])


def set_verbosity(ctx: click.Context, param: click.Parameter, given: bool) -> None:
    """Note -v or -q for the error boundary and the logger; not both."""
    if given and param.name:
        if ctx.meta.setdefault(VERBOSITY, param.name) != param.name:
            raise click.UsageError("-v and -q contradict each other; give one of them", ctx)
        apply_verbosity(ctx)


def verbosity_options(hidden: bool = False) -> list[click.Option]:
    """-v and -q, for the group (shown) and for every command (accepted)."""
    made: dict[str, Any] = {"is_flag": True, "expose_value": False, "callback": set_verbosity, "hidden": hidden}
    return [
        click.Option(["-v", "--verbose"], help="Say more; show the traceback of an error.", **made),
        click.Option(["-q", "--quiet"], help="Say nothing but results, warnings and errors.", **made),
    ]
