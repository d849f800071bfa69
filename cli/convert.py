"""`kcache convert`: the rows of a cache in other files, bit for bit."""

from typing import Any

import click

from kcache.cli.options import Choice, WholeNumber, make_config
from kcache.cli.say import say
from kcache.cli.shell import stopped_by_sigterm
from kcache.cli.sizes import count


@click.command()
@click.argument("cache")
@click.argument("to")
@click.option("--format", type=Choice(["tar", "h5"]), help="WebDataset or HDF5 shards.  [default: as CACHE has]")
@click.option(
    "--shard-size",
    type=WholeNumber(min=1),
    help="Samples in a shard; every shard but the last is then full.  [default: as CACHE has]",
)
def convert(**options: Any) -> None:
    """Write CACHE anew as TO, in files of another kind or size: every value, key and fingerprint is the same.

    TO holds the columns as they are now, without what earlier encodes left behind, and 'kcache encode' goes on with it
    as with CACHE. Killed at any moment and run again, it goes on. CACHE is only read.

    \b
      kcache convert cache cache-h5 --format h5
      kcache convert cache larger --shard-size 1024
    """
    from kcache.copies import ConvertConfig
    from kcache.copies import convert as convert_cache

    with stopped_by_sigterm():
        report = convert_cache(make_config(ConvertConfig, options))
    if not report.written:
        say(f"{report.to} holds all of it already: nothing was written.")
        return
    say(
        f"Wrote {report.to}: {count(report.samples, 'sample')}, {', '.join(report.columns)}"
        f" ({count(report.written, 'file')})."
    )
    say(f"Next: kcache diff {options['cache']} {report.to}")
