"""`kcache diff`: in what two caches differ, and why."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from kcache.cli.say import say
from kcache.cli.sizes import count

if TYPE_CHECKING:
    from kcache.shards.diff import ColumnDifference, Difference

SHOWN = 5
"""Samples that are named as examples."""


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--deep", is_flag=True, help="Compare every byte of the features, not only their checksums.")
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON object, with all ids.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 where they differ.")
def diff(first: str, second: str, deep: bool, as_json: bool, exit_code: bool) -> int:
    """Say in what the caches A and B differ, and why: samples, captions, pictures, encoders, features.

    Samples are compared by their ids. How they are stored is no difference: in which shards, as .tar or .h5. Without
    --deep no shard is read; the indexes have a checksum of every field. Exit code 0: done, whether they differ or not
    (--exit-code tells, as in git).

    \b
      kcache diff cache cache-h5
      kcache diff before after --json | jq .captions
    """
    from kcache.progress import bar
    from kcache.shards import Cache
    from kcache.shards.diff import diff as diff_caches

    caches = Cache(first), Cache(second)
    rows = sum(len(caches[0].planned_ids(shard)) for shard in range(caches[0].shard_count)) if deep else 0
    with bar(rows * len(caches[0].column_names()), "row", "diff") as progress:
        found = diff_caches(*caches, deep=deep, progress=progress.update)
    if as_json:
        click.echo(json.dumps({"differs": found.differs, **asdict(found)}, indent=1))
    else:
        for line in _lines(found):
            say(line)
    return int(exit_code and found.differs)


def _lines(found: "Difference") -> Iterator[str]:
    a, b = found.first, found.second
    for ids, what in (
        (found.only_in_first, f"only in {a}"),
        (found.only_in_second, f"only in {b}"),
        (found.captions, "with other captions"),
        (found.images, "with another picture"),
    ):
        if ids:
            yield f"{count(len(ids), 'sample')} {what}: {_named(ids)}"
    for names, where in ((found.columns_only_in_first, a), (found.columns_only_in_second, b)):
        if names:
            yield f"columns only in {where}: {', '.join(names)}"
    for name, column in found.columns.items():
        yield from (f"{name}: {line}" for line in _column_lines(column, a, b))
    in_both = count(found.samples_in_both, "sample")
    if found.differs:
        yield f"They differ; {in_both} in both."
    else:
        columns = ", ".join(f"{name} {column.same:,}" for name, column in found.columns.items())
        yield f"No difference in {in_both}{f' (features: {columns})' if columns else ''}."


def _column_lines(column: "ColumnDifference", a: str, b: str) -> Iterator[str]:
    if column.made_otherwise:
        yield f"encoded otherwise in {a} than in {b}: {'; '.join(column.made_otherwise)}; features are not compared"
    for ids, what in (
        (column.other_input, "made from another picture or other captions"),
        (column.other_bytes, "made from the same and differ in their bytes (another machine or batch size?)"),
        (column.only_in_first, f"only in {a}"),
        (column.only_in_second, f"only in {b}"),
    ):
        if ids:
            yield f"features of {count(len(ids), 'sample')} {what}: {_named(ids)}"


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN:,} more" if len(ids) > SHOWN else ""
    return f"{', '.join(ids[:SHOWN])}{more}"
