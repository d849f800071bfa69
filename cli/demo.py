"""`kcache demo`: all of it on pictures that come with kcache."""

import click


@click.command()
@click.argument("directory", default="kcache-demo", metavar="[DIR]")
@click.option("--prompt", multiple=True, metavar="TEXT", help="What to draw; give it several times for several.")
@click.option("--prompts", default="", metavar="TEXT;TEXT", help="Several of them at once, with semicolons between.")
@click.option("--prior-steps", type=click.IntRange(min=1), help="Updates of the prior.")
@click.option("--decoder-steps", type=click.IntRange(min=1), help="Updates of the decoder.")
def demo(
    directory: str, prompt: tuple[str, ...], prompts: str, prior_steps: int | None, decoder_steps: int | None
) -> None:
    """Teach a small Kandinsky 2.2 a new style and draw prompts before and after, in a new folder DIR.

    Needs no network and no GPU; a few minutes on two CPU cores. Every command is printed before it is run, so that you
    can run it on your own data. The model knows the names of emoji, and little more.

    \b
      kcache demo
      kcache demo --prompt "red apple" --prompt "man astronaut"
      kcache demo /tmp/tour --prompts "red apple; fox" --decoder-steps 1000
    """
    from kcache.cli.options import make_config
    from kcache.demo import DemoConfig
    from kcache.demo import demo as run_demo

    asked = (*prompt, *(text for text in prompts.split(";") if text.strip()))
    given = {
        "directory": directory,
        "prompt": asked or None,
        "prior_steps": prior_steps,
        "decoder_steps": decoder_steps,
    }
    drawn = run_demo(make_config(DemoConfig, given), click.echo)
    click.echo(f"\nDone. Look at {drawn.sheet}, or open {drawn.page} in a browser.")
