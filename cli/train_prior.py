"""`kcache train prior`: caption -> CLIP image embedding, from a cache alone."""

from typing import Any

import click

from kcache.cli.options import make_config
from kcache.cli.train_options import print_report, train_options


@click.command()
@click.argument("cache")
@click.option(
    "--pretrained-prior-model-name-or-path",
    metavar="NAME",
    help="The prior to begin from: a hub id or a folder.  [default: kandinsky-community/kandinsky-2-2-prior]",
)
@click.option("--text-column", metavar="NAME", help="Which of the cache's captionings to train on.  [default: text]")
@click.option(
    "--trim-captions/--no-trim-captions",
    default=None,
    help="Run at the batch's longest caption instead of 77 tokens: the same result, faster.  [default: on]",
)
@train_options
def prior(**options: Any) -> int:
    """Train the prior on the text and image embeddings in CACHE.

    Neither the pictures nor the CLIP encoders are needed any more. Ctrl-C finishes the update, writes a checkpoint and
    says how to go on.

    \b
      kcache train prior cache --output-dir my-prior --train-batch-size 64 --max-train-steps 5000
      kcache train prior cache --output-dir my-prior --resume-from-checkpoint latest ...
      kcache train prior cache --output-dir my-prior --text-column text-sks --random-flip ...
      accelerate launch -m kcache train prior cache --output-dir my-prior
    """
    from kcache.training.config import PriorConfig
    from kcache.training.train import train

    return print_report(train(make_config(PriorConfig, options)))
