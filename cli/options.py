"""What the commands' options share: underscores for dashes, lists in both spellings, and options -> a frozen config."""

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

import click
from click.types import FloatParamType, IntParamType

Config = TypeVar("Config")


def dashes_for_underscores(token: str) -> str:
    """Make ``train_batch_size`` and ``train-batch-size`` one name.

    Given to click as ``token_normalize_func``, which is where click compares names: of options (the value after ``=``
    or in the next token is never touched), of commands, and of the values of a ``Choice``.
    """
    return token.replace("_", "-")


class ListOption(click.Option):
    """An option with several values in either spelling: ``--resolution 512 768``, or ``--resolution`` repeated.

    After its first value it goes on to take tokens up to the next one that begins with ``-`` or is not of its type, so
    in ``kcache encode --resolution 512 768 DATASET CACHE`` the two names stay arguments. Any token is a string, so a
    list of strings takes all of them: there the arguments go first, or after ``--``. ``--resolution=512`` takes just
    that value. Its value in Python is a tuple, empty where the option was not given and has no default.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "multiple": True})

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Let the parser hand over the tokens that follow this option's first value."""
        super().add_to_parser(parser, ctx)
        match_first_value = parser._match_long_opt

        # click has no public way to say "as many as follow"; pyproject.toml bounds click because of this private name.
        def match_all_values(opt: str, explicit_value: str | None, state: Any) -> None:
            match_first_value(opt, explicit_value, state)
            option = parser._long_opt[opt]
            while option.obj is self and explicit_value is None and state.rargs and self.goes_on(state.rargs[0]):
                option.process(state.rargs.pop(0), state)

        parser._match_long_opt = match_all_values

    def goes_on(self, token: str) -> bool:
        """Whether a token after a value is one more value of this option."""
        return not token.startswith("-") and is_spelled_as(self.type, token)

    def make_metavar(self, ctx: click.Context) -> str:
        """Show in --help that more values may follow."""
        return f"{super().make_metavar(ctx)}..."


class WholeNumber(click.IntRange):
    """A whole number in a range, which is what messages call it; click says "integer range", as of two numbers."""

    name = "whole number"


class Number(click.FloatRange):
    """A number in a range, which is what messages call it."""

    name = "number"


def is_spelled_as(kind: click.ParamType[Any], token: str) -> bool:
    """Whether a token can be meant as a value of this type: a number out of range is still a number, and no name."""
    try:
        if isinstance(kind, IntParamType):
            int(token)
        elif isinstance(kind, FloatParamType):
            float(token)
        else:
            kind.convert(token, None, None)
    except (ValueError, click.BadParameter):
        return False
    return True


class Choice(click.Choice[str]):
    """A choice among names that answers an unknown one with "did you mean"."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Click's sentence with the nearest name after it."""
        return super().get_invalid_choice_message(value, ctx) + did_you_mean(str(value), list(map(str, self.choices)))


def did_you_mean(name: str, names: list[str]) -> str:
    """' Did you mean X?' for the nearest of ``names``, or nothing where none is near."""
    nearest = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""


def explain_missing_argument(error: click.MissingParameter) -> click.MissingParameter:
    """Say where a missing argument went, if a list of strings before it took it."""
    if error.ctx is None or not isinstance(error.param, click.Argument):
        return error
    for option in error.ctx.command.params:
        taken = error.ctx.params.get(option.name or "")
        if isinstance(option, ListOption) and taken and is_spelled_as(option.type, "a name"):
            hint = f"{option.opts[0]} takes every word that follows it: put the arguments before it."
            return click.MissingParameter(hint, error.ctx, error.param)
    return error


def make_config(config: type[Config], params: Mapping[str, Any]) -> Config:
    """Build a command's frozen dataclass from click's params.

    An option that was not given is ``None`` in click and keeps the dataclass's default, so that a default is written
    once. Raises ``UsageError`` for a name that is no field and for a field that has no default and was not given.
    """
    from kcache.shards.errors import UsageError

    known = {field.name: field for field in fields(config)}  # type: ignore[arg-type]  # any dataclass; it has no name
    for name in params:
        if name not in known:
            near = did_you_mean(name, list(known))
            raise UsageError(f"{config.__name__} has no option '{name}'.{near}")
    given = {name: value for name, value in params.items() if value is not None}
    for name, field in known.items():
        if name not in given and field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(f"--{dashes_for_underscores(name)} is needed and was not given; see --help")
    return config(**given)
