"""`kcache train prior`: caption -> CLIP image embedding, from a cache alone."""

from typing import Any

import click

from kcache.cli.options import Choice
from kcache.cli.sections import SectionedCommand
from kcache.cli.train_options import make_train_config, samples, train_options, validation
from kcache.cli.train_summary import print_report


@click.command(cls=SectionedCommand)
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
@validation("--resolution", type=click.IntRange(min=8), help="Of validation pictures.  [default: 512]")
@train_options
def prior(**options: Any) -> int:
    """Train the prior on the text and image embeddings in CACHE.

    Neither the pictures nor the CLIP encoders are needed any more. Ctrl-C finishes the update, writes a checkpoint and
    says how to go on.

    \b
      kcache train prior cache --output-dir my-prior --train-batch-size 64 --max-train-steps 5000
      kcache train prior cache --output-dir my-prior --resume-from-checkpoint latest ...
      kcache train prior cache --output-dir my-lora --lora --rank 16 --learning-rate 1e-3
      kcache train prior cache --output-dir my-prior --validation-split 0.02 --validation-prompts "a red fox"
      accelerate launch -m kcache train prior cache --output-dir my-prior
    """
    from kcache.training.config import PriorConfig
    from kcache.training.train import train

    return print_report(train(make_train_config(PriorConfig, options)))
