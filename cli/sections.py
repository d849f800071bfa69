"""Long lists of options shown under headings in --help."""

import sys
from collections.abc import Callable
from itertools import count
from typing import Any

import click
from click.types import FloatParamType, IntParamType

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_OTHER = (sys.maxsize, "Other options")
"""The place of the heading for options without one, and its title."""
_places = count()


class SectionedCommand(click.Command):
    """A command whose options stand under headings, in the order in which `section` made these.

    Arguments have no line: the text above says what they are.
    """

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each section, and the options without one last."""
        sections: dict[tuple[int, str], list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and not isinstance(param, click.Argument):
                sections.setdefault(getattr(param, "section", _OTHER), []).append(record)
        for (_, title), records in sorted(sections.items()):
            with formatter.section(title):
                formatter.write_dl(records)


def section(title: str) -> Callable[..., Decorator]:
    """`click.option` for the options that stand under one heading."""
    place = next(_places)

    def option(*args: Any, cls: type[click.Option] = click.Option, **kwargs: Any) -> Decorator:
        made = type(cls.__name__, (_Numbers, cls), {"section": (place, title)})
        return click.option(*args, cls=made, **kwargs)

    return option


class _Numbers(click.Option):
    """An option that shows a number as N, not as INTEGER RANGE, and leaves its bounds to the error and the manual."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if isinstance(kwargs.get("type"), IntParamType | FloatParamType):
            kwargs = {"metavar": "N", **kwargs}
        super().__init__(*args, **kwargs)

    def get_help_extra(self, ctx: click.Context) -> Any:
        """As click has it, without the range."""
        return {name: value for name, value in super().get_help_extra(ctx).items() if name != "range"}
