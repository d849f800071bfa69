"""`kcache train prior`: caption -> CLIP image embedding, from a cache alone."""

from typing import Any

import click

from kcache.cli.options import Choice
from kcache.cli.reference_options import TrainCommand
from kcache.cli.train_options import device, make_train_config, positive, samples, train_options, update, validation
from kcache.cli.train_summary import print_report


@click.command(cls=TrainCommand)
@click.argument("cache")
@samples("--text-column", metavar="NAME", help="Which of the cache's captionings to train on.  [default: text]")
@samples(
    "--captions",
    type=Choice(["one", "all"]),
    help="Of several for an image: one drawn each time, or each in every epoch.  [default: one]",
)
@samples(
    "--trim-captions/--no-trim-captions",
    default=None,
    help="Run at the batch's longest caption instead of 77 tokens: the same result, faster.  [default: on]",
)
@samples(
    "--pack-captions",
    is_flag=True,
    default=None,
    help="Run the captions of a batch end to end, without any padding: the same result, from fewer tokens.",
)
@samples(
    "--group-by-length",
    is_flag=True,
    default=None,
    help="Batches of captions of about one length, so that less is padded; every sample is seen as often as without.",
)
@update(
    "--draws-per-sample",
    type=positive,
    help="Noise and timesteps for each sample of a batch: the text is run once for all, the loss is their mean."
    "  [default: 1]",
)
@device(
    "--compile",
    is_flag=True,
    default=None,
    help="Let torch compile the prior's blocks: some minutes at the start, then faster updates on a GPU.",
)
@validation("--resolution", type=click.IntRange(min=8), help="Side of validation pictures.  [default: 512]")
@train_options
def prior(**options: Any) -> int:
    """Train the prior on the text and image embeddings in CACHE, the folder that 'kcache encode' made.

    Neither the pictures nor the CLIP encoders are needed any more. Ctrl-C finishes the update, writes a checkpoint and
    says how to go on. Every option of the reference's scripts works; docs/migrating.md says what differs.

    \b
      kcache train prior cache --output-dir my-prior --train-batch-size 64 --max-train-steps 5000
      kcache train prior cache --output-dir my-prior --resume-from-checkpoint latest ...
      kcache train prior cache --output-dir my-lora --lora --rank 16 --learning-rate 1e-3
      kcache train prior cache --output-dir my-prior --validation-prompts "a red fox" "a bus"
      accelerate launch -m kcache train prior cache --output-dir my-prior
    """
    from kcache.training.config import PriorConfig
    from kcache.training.train import train

    return print_report(train(make_train_config(PriorConfig, options)))
