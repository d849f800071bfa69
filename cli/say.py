"""What commands print: a line is one line of characters, whatever a stranger's cache has in its names and captions."""

import re

import click

_ACTS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys, and does not show: control characters, ends of lines, directions of text; and surrogates."""


def say(*lines: str, err: bool = False) -> None:
    """Print lines on stdout, or on stderr."""
    for line in lines:
        click.echo(shown(line), err=err)


def shown(text: str) -> str:
    r"""Text that a terminal shows and does not obey: ``\x1b`` for an escape, ``\n`` for the end of a line."""
    return _ACTS.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def cells(*texts: str) -> None:
    """Print one line of cells with tabs between them, for other programs."""
    click.echo("\t".join(map(shown, texts)))
