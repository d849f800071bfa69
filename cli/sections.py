"""Long lists of options shown under headings in --help."""

from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class SectionedCommand(click.Command):
    """A command whose options stand under the heading that their ``section`` names, in the order of first use."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each section, and the options without one last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(param, "section", "Other options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def section(title: str) -> Callable[..., Decorator]:
    """`click.option` for the options that stand under one heading."""

    def option(*args: Any, cls: type[click.Option] = click.Option, **kwargs: Any) -> Decorator:
        return click.option(*args, cls=type(cls.__name__, (cls,), {"section": title}), **kwargs)

    return option
