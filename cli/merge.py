"""`kcache merge`: several caches with the same columns as one."""

from typing import Any

import click

from kcache.cli.options import Choice, ListOption, WholeNumber, make_config
from kcache.cli.say import say
from kcache.cli.shell import stopped_by_sigterm
from kcache.cli.sizes import count


@click.command()
@click.argument("caches", metavar="CACHE CACHE...", nargs=-1, required=True)
@click.argument("to")
@click.option(
    "--prefix",
    cls=ListOption,
    metavar="TEXT",
    help="What to put before the ids of each cache, in their order; after the arguments.",
)
@click.option("--format", type=Choice(["tar", "h5"]), help="WebDataset or HDF5 shards.  [default: as the first has]")
@click.option("--shard-size", type=WholeNumber(min=1), help="Samples in a shard.  [default: as the first has]")
def merge(**options: Any) -> None:
    """Write the samples of several caches into one, TO: those of the first, then those of the next.

    The caches have the same columns, made by the same encoders with the same options. A sample that is in two of them
    is taken once; an id that means two samples is refused, and --prefix tells them apart. Killed at any moment and run
    again, it goes on. The caches are only read.

    To train on several caches without writing them anew: kcache train --mix.

    \b
      kcache merge photos drawings both
      kcache merge photos drawings both --prefix photos/ drawings/
    """
    from kcache.copies import MergeConfig
    from kcache.copies import merge as merge_caches

    with stopped_by_sigterm():
        report = merge_caches(make_config(MergeConfig, options))
    if not report.written:
        say(f"{report.to} holds all of it already: nothing was written.")
        return
    twice = f", {report.repeated:,} more came again and were left out" if report.repeated else ""
    say(
        f"Wrote {report.to}: {count(report.samples, 'sample')}{twice}; {', '.join(report.columns)}"
        f" ({count(report.written, 'file')})."
    )
    say(f"Next: kcache info {report.to}")
