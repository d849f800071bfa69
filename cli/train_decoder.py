"""`kcache train decoder`: CLIP image embedding -> latents, from a cache alone."""

from typing import Any

import click

from kcache.cli.reference_options import TrainCommand
from kcache.cli.train_options import device, make_train_config, samples, train_options
from kcache.cli.train_summary import print_report


@click.command(cls=TrainCommand)
@click.argument("cache")
@samples("--resolution", type=click.IntRange(min=8), help="Train on the latents of this side.  [default: 512]")
@samples(
    "--buckets",
    is_flag=True,
    default=None,
    help="Train on each picture's own aspect ratio, every update on one shape; encode with --buckets for it.",
)
@device(
    "--channels-last",
    is_flag=True,
    default=None,
    help="Lay pictures out as tensor cores read them; on some GPUs convolutions are quicker so.",
)
@train_options
def decoder(**options: Any) -> int:
    """Train the decoder's UNet on the latents and image embeddings in CACHE, the folder that 'kcache encode' made.

    Neither the pictures nor CLIP and MoVQ are needed any more. Ctrl-C finishes the update, writes a checkpoint and says
    how to go on. Every option of the reference's scripts works; docs/migrating.md says what differs.

    \b
      kcache train decoder cache --output-dir my-decoder --resolution 512 --train-batch-size 8
      kcache train decoder cache --output-dir my-decoder --resume-from-checkpoint latest ...
      kcache train decoder cache --output-dir my-decoder --buckets --random-flip ...
      kcache train decoder cache --output-dir my-lora --lora --rank 16 --learning-rate 1e-3
    """
    from kcache.training.config import DecoderConfig
    from kcache.training.train import train

    return print_report(train(make_train_config(DecoderConfig, options)))
