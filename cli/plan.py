"""`kcache plan`: what fits a GPU, with which options, how large the cache becomes, and how long training takes."""

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from kcache.cli.options import make_config
from kcache.cli.say import say
from kcache.cli.sizes import count, duration, size

if TYPE_CHECKING:
    from kcache.planning.plan import Plan, Way

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


class Bytes(click.ParamType[int]):
    """A size such as 8GB or 7.5GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bytes of it; without a unit the number counts gigabytes, as graphics cards are called."""
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", str(value).upper())
        if found is None:
            self.fail(f"'{value}' is no size such as 8GB", param, ctx)
        number, unit = found.groups()
        return round(float(number) * _UNITS[unit or "G"])


@click.command()
@click.argument("source", metavar="CACHE|DATASET")
@click.option("--vram", type=Bytes(), metavar="SIZE", help="Memory of the GPU, such as 8GB.  [default: the device's]")
@click.option(
    "--device",
    metavar="NAME",
    help="How fast it is: rtx-3070, rtx-3080, rtx-3090, rtx-4080, rtx-4090, rtx-a6000, a10, l4, l40s, a100, h100, h200,"
    " or here, which measures this machine.  [default: times are not said]",
)
@click.option(
    "--train-batch-size", type=click.IntRange(min=1), metavar="N", help="Samples at once.  [default: by size]"
)
@click.option(
    "--resolution",
    type=click.IntRange(min=8),
    metavar="N",
    help="Of the decoder.  [default: the smallest in CACHE; 512 for a DATASET]",
)
@click.option(
    "--tokens",
    type=click.IntRange(2, 77),
    metavar="N",
    help="Of the captions of a batch at most.  [default: those of the longest]",
)
@click.option(
    "--draws-per-sample",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of noise for each caption of the prior, as in 'kcache train prior'.  [default: 1]",
)
@click.option("--rank", type=click.IntRange(min=1), metavar="N", help="Of a LoRA.  [default: 4]")
@click.option(
    "--utilisation",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    help="What training reaches of the device's speed.  [default: 0.4 of a data sheet's, 0.7 of what was measured]",
)
@click.option("--caption-column", metavar="NAME", help="Where a DATASET has the captions, as in 'kcache encode'.")
@click.option("--image-column", metavar="NAME", help="Where it has the pictures, likewise.")
@click.option(
    "--pretrained-prior-model-name-or-path",
    metavar="NAME",
    help="The prior to train.  [default: kandinsky-community/kandinsky-2-2-prior]",
)
@click.option(
    "--pretrained-decoder-model-name-or-path",
    metavar="NAME",
    help="The decoder to train.  [default: kandinsky-community/kandinsky-2-2-decoder]",
)
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON object.")
def plan(as_json: bool, **options: Any) -> int:
    """Say what of the prior and the decoder, whole and as a LoRA, can be trained on a GPU, and what it takes.

    Nothing is computed: the models are run without data, and every tensor that they would hold is counted. Exit code 1
    where nothing fits.

    \b
      kcache plan cache --vram 8GB
      kcache plan my-pictures --vram 12GB                    before anything is encoded
      kcache plan cache --vram 24GB --device rtx-3090
      kcache plan cache --vram 24GB --train-batch-size 64 --json
    """
    from kcache.planning.plan import PlanConfig
    from kcache.planning.plan import plan as make_plan

    made = make_plan(make_config(PlanConfig, options))
    if as_json:
        click.echo(json.dumps(asdict(made), indent=1))
    else:
        _print(made)
    return 0 if any(way.fits for way in made.ways) else 1


def _print(made: "Plan") -> None:
    source = made.source
    verb = "holds" if source.encoded else "becomes a cache of about"
    total = sum(column.bytes for column in source.columns)
    say(f"{source.path}: {count(source.samples, 'sample')}; {verb} {size(total)}")
    for column in source.columns:
        say(f"  {column.name:16} {size(column.bytes):>10}, {size(round(column.per_sample))} for a sample")
    if source.tokens:
        say(f"  the longest caption has {source.tokens} tokens")
    say(f"Of {size(made.vram)} on the GPU {size(made.usable)} can be used, beside CUDA itself and gaps.")
    for way in made.ways:
        _print_way(way)
    if made.speed:
        say(
            "",
            f"Times are for {made.speed.name}: {made.utilisation:.0%} of {made.speed.operations / 1e12:,.1f}"
            f" TFLOP/s ({made.speed.source}), which is assumed; --utilisation says otherwise.",
        )


def _print_way(way: "Way") -> None:
    what = f"{way.stage}, {'a LoRA' if way.lora else 'the whole'}"
    what += f", {way.resolution} px" if way.resolution else ""
    held = way.memory
    parts = [
        (held.weights, "weights"),
        (held.gradients, "gradients"),
        (held.states, "optimizer"),
        (held.average, "average"),
        (held.activations, "activations"),
    ]
    shown = ", ".join(f"{name} {size(nbytes)}" for nbytes, name in parts if nbytes)
    if not way.fits:
        say("", f"{what}: does not fit; with {' '.join(way.options)} a batch of {way.batch} takes {size(held.peak)}")
        say(f"  ({shown})")
        return
    say("", f"{what}: {size(held.peak)} at a batch of {way.batch} ({shown})")
    if way.update_seconds is not None and way.epoch_seconds is not None:
        say(f"  an update in {way.update_seconds:.2g} s, an epoch in {duration(way.epoch_seconds)}")
    else:
        tera = way.operations >= 1e11
        amount = f"{way.operations / 1e12:,.1f} TFLOP" if tera else f"{way.operations / 1e9:,.2g} GFLOP"
        say(f"  an update computes {amount}")
    say(f"  {way.command}")
