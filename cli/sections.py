"""Long lists of options shown under headings in --help."""

from typing import Any

import click


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


def option(section: str, *args: Any, cls: type[click.Option] = click.Option, **kwargs: Any) -> Any:
    """`click.option` with the section that it is shown under."""

    class InSection(cls):  # type: ignore[misc,valid-type]  # any kind of option may stand in a section
        pass

    InSection.section = section
    return click.option(*args, cls=InSection, **kwargs)
