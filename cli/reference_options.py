"""The reference's options that kcache has elsewhere or has no use for: each is taken, and answered with a sentence."""

import shlex
from collections.abc import Callable
from typing import Any

import click

from kcache.cli.options import dashes_for_underscores
from kcache.cli.sections import SectionedCommand

DATASET = ("dataset_name", "train_data_dir")
"""What `kcache encode` takes as its first argument; the reference prefers the first of them."""
OF_ENCODING = (*DATASET, "dataset_config_name", "image_column", "caption_column")

_NO_USE = {
    "dataloader_num_workers": "one thread reads ahead of the step, and nothing is decoded",
    "local_rank": "the launcher says it in the environment",
}


class TrainCommand(SectionedCommand):
    """A trainer that answers the options of encoding, all at once, with the command that takes them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does it; UsageError where an option belongs to encoding, before anything else is missed."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        if any(name in given for name in OF_ENCODING) and not set(args).intersection(ctx.help_option_names):
            raise click.UsageError(_where_it_went(given, with_resolution=self.name == "decoder"), ctx)
        return super().parse_args(ctx, args)


def _where_it_went(given: dict[str, Any], *, with_resolution: bool) -> str:
    names = [name for name in OF_ENCODING if name in given]
    dataset = next((given[name] for name in DATASET if name in given), "DATASET")
    more = [name for name in names if name not in DATASET] + ["resolution"] * (
        with_resolution and "resolution" in given
    )
    options = [word for name in more for word in (_spelled(name), str(given[name]))]
    be, their = ("is", "its") if len(names) == 1 else ("are", "their")
    return (
        f"{' and '.join(map(_spelled, names))} {be} about the dataset, which training does not read; encode once, and"
        f" train with CACHE in {their} place: {shlex.join(['kcache', 'encode', dataset, 'CACHE', *options])}"
    )


def takes_reference_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a trainer, which must be a `TrainCommand`, the options that it has elsewhere or no use for."""
    for name in OF_ENCODING:
        command = _hidden(name)(command)
    for name in _NO_USE:
        command = _hidden(name, type=int, callback=_say_without_use)(command)
    return command


def takes_dataset_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let `kcache encode` answer the reference's names for its first argument."""
    for name in DATASET:
        command = _hidden(name, is_eager=True, callback=_say_that_it_is_first)(command)
    return command


def _hidden(name: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(_spelled(name), hidden=True, expose_value=False, **options)


def _spelled(name: str) -> str:
    return f"--{dashes_for_underscores(name)}"


def _say_without_use(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
    if value is not None and param.name:
        click.echo(f"{_spelled(param.name)} is accepted and has no effect: {_NO_USE[param.name]}", err=True)


def _say_that_it_is_first(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None and param.name:
        line = shlex.join(["kcache", "encode", value, "CACHE"])
        raise click.UsageError(f"{_spelled(param.name)} is the first argument here: {line}", ctx)
