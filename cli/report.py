"""`kcache report`: training runs on one page, to look at and to send to somebody."""

import click

from kcache.cli.say import say
from kcache.cli.sizes import count, size


@click.command()
@click.argument("outs", nargs=-1, required=True, metavar="OUT...")
@click.option("-o", "--output", metavar="FILE", help="Where the page goes.  [default: report.html]")
def report(outs: tuple[str, ...], output: str | None) -> None:
    """Write one page on the runs in OUT: curves, validation pictures over time, options, and where the data came from.

    The page is one file that holds everything it shows: it opens in any browser and asks the network for nothing.
    Several OUTs stand side by side, with the options that differ. A run that goes on, or was killed, is shown as far as
    it is.

    \b
      kcache report my-prior -o report.html
      kcache report sweep/* -o sweep.html
    """
    from kcache.cli.options import make_config
    from kcache.report import ReportConfig
    from kcache.report import report as write_report

    written = write_report(make_config(ReportConfig, {"outs": outs, "output": output}))
    held = f"{count(written.runs, 'run')}, {count(written.pictures, 'grid')} of pictures, {size(written.bytes)}"
    say(f"Wrote {written.output} ({held}); open it in a browser.")
