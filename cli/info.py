"""`kcache info`: what a cache holds and what made it; how a picture was made."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kcache.cli.options import ListOption
from kcache.cli.picture_info import is_png, print_picture
from kcache.cli.say import cells, say
from kcache.cli.sizes import count, size

if TYPE_CHECKING:
    from kcache.shards import Cache, ColumnSummary, Summary


@click.command()
@click.argument("cache")
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON object.")
@click.option("--set-aside", is_flag=True, help="List the samples that were set aside, with the reason of each.")
@click.option(
    "--cut-captions",
    is_flag=True,
    help="List the captions that fill all tokens of the text encoder: longer ones are cut.",
)
@click.option(
    "--fits",
    cls=ListOption,
    metavar="CHECKPOINT",
    help="Say of each column whether it fits these checkpoints of a prior or a decoder: folders, or hub names;"
    " after CACHE. Exit code 1 where one does not.",
)
def info(cache: str, as_json: bool, set_aside: bool, cut_captions: bool, fits: tuple[str, ...]) -> int:
    """Show the columns of CACHE: samples, bytes, dtypes, and the encoders that made them.

    Of a PNG that 'kcache generate' wrote, show how it was made and the command that makes it again.

    \b
      kcache info cache
      kcache info cache --set-aside
      kcache info cache --json | jq .columns
      kcache info cache --fits my-prior my-decoder
      kcache info fox.png
    """
    from kcache import shards

    if is_png(Path(cache)):
        if fits or set_aside or cut_captions:
            raise shards.UsageError(f"{cache} is a picture, of which --json is the only option; name a cache")
        return print_picture(Path(cache), as_json)
    if fits:
        return _print_fits(shards.Cache(cache), fits, as_json)
    if cut_captions:
        return _print_cut(shards.Cache(cache))
    summary = shards.summarize(shards.Cache(cache))
    if as_json:
        click.echo(json.dumps(asdict(summary), indent=1))
    elif set_aside:
        for sample, reason in summary.set_aside.items():
            cells(sample, reason)
    else:
        _print(summary)
    return 0


def _print_cut(cache: "Cache") -> int:
    from kcache import shards

    found = list(shards.cut_captions(cache))
    for column, sample, caption in found:
        cells(column, sample, caption)
    if not found:
        say(f"none: no caption of {cache.name} fills all tokens of its text encoder", err=True)
    return 0


def _print_fits(cache: "Cache", checkpoints: tuple[str, ...], as_json: bool) -> int:
    from kcache.fit_report import fits

    found = [fit for checkpoint in checkpoints for fit in fits(cache, checkpoint)]
    if as_json:
        click.echo(json.dumps([asdict(fit) for fit in found], indent=1))
    else:
        width = max([12, *(len(fit.column) for fit in found)])
        for fit in found:
            by = "its encoder is the checkpoint's own" if fit.encoder_compared else "the encoder was not compared"
            said = f"does not fit: {fit.why_not}" if fit.why_not else f"fits ({by})"
            say(f"{fit.column:{width}} {fit.stage} {fit.checkpoint}: {said}")
    return int(any(fit.why_not for fit in found))


def _print(summary: "Summary") -> None:
    from kcache.encoding.remembered import spelled

    say(
        f"{summary.path}: {count(summary.samples, 'sample')} with {count(summary.captions, 'caption')}"
        f" in {count(summary.shards, 'shard')}"
        f" of up to {summary.shard_size:,} (.{summary.container}, format {summary.format_version})"
    )
    if summary.removed:
        say(f"{count(summary.removed, 'sample')} taken out by --prune")
    if summary.dataset_options:
        say(f"its dataset is read with {spelled(summary.dataset_options)}")
    for column in summary.columns:
        _print_column(summary, column)
    if summary.set_aside:
        verb = "was" if len(summary.set_aside) == 1 else "were"
        say(
            f"{count(len(summary.set_aside), 'sample')} {verb} set aside;"
            f" 'kcache info {summary.path} --set-aside' lists them"
        )
    behind = [f"{c.behind:,} in '{c.name}'" for c in summary.columns if c.behind]
    if behind:
        say(
            f"behind their samples: {', '.join(behind)}; an encode was cut off, or left these columns out by --columns:"
            f" run 'kcache encode DATASET {summary.path}' to bring them up to date"
        )
    for column in summary.columns:
        if column.lacking:
            named = ", ".join(column.lacking[:5]) + (", ..." if len(column.lacking) > 5 else "")
            say(
                f"{count(len(column.lacking), 'sample')} without features in '{column.name}' ({named}); lost, or left"
                f" out by --columns: run 'kcache verify {summary.path}', which says what to do"
            )
    unfinished = [c.name for c in summary.columns if c.shards < summary.shards]
    if unfinished:
        say(f"unfinished: {', '.join(unfinished)}; run 'kcache encode DATASET {summary.path}' to go on")


def _print_column(summary: "Summary", column: "ColumnSummary") -> None:
    done = "" if column.shards == summary.shards else f", {column.shards:,} of {summary.shards:,} shards"
    behind = f", {column.behind:,} behind" if column.behind else ""
    say("", f"{column.name}: {count(column.rows, 'sample')}, {size(column.bytes)}{done}{behind}")
    for name, kind in column.fields.items():
        say(f"  {name:16} {kind}")
    source = column.notes.get("from", "unknown")
    say(f"  made by          {column.encoder['class']} in {column.encode_dtype} from {source}")
    if "alpha" in column.preprocessing:
        say(f"  transparency     --alpha {column.preprocessing['alpha']}")
    say(f"  fingerprint      {column.fingerprint[:16]}")
