"""`kcache train decoder`: CLIP image embedding -> latents, from a cache alone."""

from typing import Any

import click

from kcache.cli.options import make_config
from kcache.cli.train_options import print_report, train_options


@click.command()
@click.argument("cache")
@click.option(
    "--pretrained-decoder-model-name-or-path",
    metavar="NAME",
    help="The decoder to begin from: a hub id or a folder.  [default: kandinsky-community/kandinsky-2-2-decoder]",
)
@click.option("--resolution", type=click.IntRange(min=8), help="Which latents to train on.  [default: 512]")
@click.option(
    "--buckets",
    is_flag=True,
    default=None,
    help="Train on each picture's own aspect ratio, every update on one shape; encode with --buckets for it.",
)
@click.option(
    "--gradient-checkpointing", is_flag=True, default=None, help="Less memory for activations, a slower step."
)
@train_options
def decoder(**options: Any) -> int:
    """Train the decoder's UNet on the latents and image embeddings in CACHE.

    Neither the pictures nor CLIP and MoVQ are needed any more. Ctrl-C finishes the update, writes a checkpoint and says
    how to go on.

    \b
      kcache train decoder cache --output-dir my-decoder --resolution 512 --train-batch-size 8
      kcache train decoder cache --output-dir my-decoder --resume-from-checkpoint latest ...
      kcache train decoder cache --output-dir my-decoder --buckets --random-flip ...
    """
    from kcache.training.config import DecoderConfig
    from kcache.training.train import train

    return print_report(train(make_config(DecoderConfig, options)))
