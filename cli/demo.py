"""`kcache demo`: all of it on pictures that come with kcache."""

import click


@click.command()
@click.argument("directory", default="kcache-demo", metavar="[DIR]")
@click.option("--prior-steps", type=click.IntRange(min=1), help="Updates of the prior.")
@click.option("--decoder-steps", type=click.IntRange(min=1), help="Updates of the decoder.")
def demo(directory: str, prior_steps: int | None, decoder_steps: int | None) -> None:
    """Encode pictures that ship with kcache, train both stages and make pictures, in a new folder DIR.

    Needs no network and no GPU; a few minutes on two CPU cores. Every command is printed before it is run, so that you
    can run it on your own data.

    \b
      kcache demo
      kcache demo /tmp/tour --decoder-steps 1000
    """
    from kcache.cli.options import make_config
    from kcache.demo import DemoConfig
    from kcache.demo import demo as run_demo

    given = {"directory": directory, "prior_steps": prior_steps, "decoder_steps": decoder_steps}
    grid = run_demo(make_config(DemoConfig, given), click.echo)
    click.echo(f"\nDone. Look at {grid}: one picture for each prompt of the last command.")
