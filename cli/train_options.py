"""The options that both trainers share, and those of the reference that are refused here or have no use."""

from collections.abc import Callable
from typing import Any

import click

from kcache.cli.options import Choice, Config, ListOption, make_config
from kcache.cli.sections import section

# A copy of kcache.training.config.SCHEDULES, which --help would have to load torch for.
SCHEDULES = [
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "piecewise_constant",
]

run = section("The run")
samples = section("Which samples, and how each is read")
update = section("The update")
lora = section("LoRA")
device = section("Speed and memory")
validation = section("Validation")
saving = section("Checkpoints")
telling = section("What is told of the run")

positive = click.IntRange(min=1)
share = click.FloatRange(0, 1, max_open=True)
above_zero = click.FloatRange(min=0, min_open=True)

_OPTIONS = [
    run("--output-dir", required=True, metavar="OUT", help="Folder for checkpoints and the result."),
    run(
        "--pretrained-prior-model-name-or-path",
        metavar="NAME",
        help="The prior: a hub id, a folder, or the OUT of a run.  [default: kandinsky-community/kandinsky-2-2-prior]",
    ),
    run(
        "--pretrained-decoder-model-name-or-path",
        metavar="NAME",
        help="The decoder, likewise.  [default: kandinsky-community/kandinsky-2-2-decoder]",
    ),
    run("--revision", help="Branch, tag or commit of the checkpoint on the hub."),
    run("--variant", help="Variant of the weights that training begins from, such as fp16."),
    run("--cache-dir", help="Where downloads from the hub are kept."),
    run("--seed", type=click.IntRange(0, 2**63 - 1), help="Fixes order, noise and timesteps.  [default: drawn]"),
    run("--num-train-epochs", type=positive, help="Passes over the samples.  [default: 100]"),
    run("--max-train-steps", type=positive, help="Updates; overrides --num-train-epochs."),
    samples(
        "--where",
        metavar="EXPRESSION",
        help="Train on the rows for which it holds: id, text, width and height, as in 'width >= 512'.",
    ),
    samples(
        "--sample-ids", type=click.Path(dir_okay=False), metavar="FILE", help="Train on the ids in FILE, one in a line."
    ),
    samples("--max-train-samples", type=positive, metavar="N", help="Train on N of them, chosen by --seed."),
    samples(
        "--mix",
        type=(str, click.FloatRange(0, 1, min_open=True, max_open=True)),
        multiple=True,
        metavar="CACHE SHARE",
        help="Take this share of all samples from another cache; an epoch stays one pass of the first.",
    ),
    samples(
        "--loss-weight",
        type=click.FloatRange(min=0),
        multiple=True,
        metavar="WEIGHT",
        help="What a sample of a --mix counts in the loss, one for each, in their order.  [default: 1]",
    ),
    samples(
        "--conditioning-dropout",
        type=click.FloatRange(0, 1),
        metavar="P",
        help="Replace the condition by the cached null one with this probability; 0.1 is usual.  [default: 0]",
    ),
    samples("--random-flip", is_flag=True, default=None, help="Mirror each sample or not; encode with --flip for it."),
    samples(
        "--random-crops",
        is_flag=True,
        default=None,
        help="Draw one of each sample's fixed crops, not the centre; encode with --random-crops N for it.",
    ),
    samples("--partial", is_flag=True, default=None, help="Train on what is encoded so far, if it is unfinished."),
    samples(
        "--ignore-encoder-mismatch",
        is_flag=True,
        default=None,
        help="Accept a cache whose encoders' weights are not those in the checkpoint's folder.",
    ),
    samples(
        "--check-crc/--no-check-crc", default=None, help="Compare every sample's crc32 as it is read.  [default: on]"
    ),
    update("--train-batch-size", type=positive, help="Samples per device and step.  [default: 1]"),
    update("--gradient-accumulation-steps", type=positive, help="Batches per update.  [default: 1]"),
    update("--learning-rate", type=click.FloatRange(min=0), help="[default: 1e-4]"),
    update("--lr-scheduler", type=Choice(SCHEDULES), help="Learning-rate schedule.  [default: constant]"),
    update("--lr-warmup-steps", type=click.IntRange(min=0), help="Updates of warm-up.  [default: 500]"),
    update("--lr-num-cycles", type=above_zero, help="Restarts of cosine_with_restarts, or waves of cosine."),
    update("--lr-power", type=above_zero, help="Of polynomial.  [default: 1]"),
    update("--lr-step-rules", metavar="RULES", help="Of piecewise_constant, such as 1:10,0.1:20,0.01."),
    update(
        "--optimizer",
        metavar="NAME",
        help="adamw, adamw8bit, adafactor, prodigy, schedulefree, sgd.  [default: adamw]",
    ),
    update(
        "--optimizer-args",
        cls=ListOption,
        metavar="NAME=VALUE",
        help="Options of the optimizer's own, such as d_coef=2 of prodigy.",
    ),
    update("--use-8bit-adam", is_flag=True, default=None, help="The same as --optimizer adamw8bit."),
    update("--adam-beta1", type=share, help="[default: 0.9]"),
    update("--adam-beta2", type=share, help="[default: 0.999]"),
    update("--adam-weight-decay", type=click.FloatRange(min=0), help="[default: 0]"),
    update("--adam-epsilon", type=click.FloatRange(min=0), help="[default: 1e-8]"),
    update("--max-grad-norm", type=above_zero, help="Gradients are clipped.  [default: 1]"),
    update("--snr-gamma", type=above_zero, help="Min-SNR weighting; 5.0 is usual."),
    update("--use-ema", is_flag=True, default=None, help="Keep a moving average of the weights; it is the result."),
    update("--ema-decay", type=share, help="[default: 0.9999]"),
    lora("--lora", is_flag=True, default=None, help="Train a LoRA, not the whole component."),
    lora("--rank", type=positive, help="[default: 4]"),
    lora("--lora-alpha", type=above_zero, help="Its outputs count alpha / rank.  [default: the rank]"),
    lora("--lora-dropout", type=share, help="[default: 0]"),
    lora(
        "--lora-targets",
        cls=ListOption,
        metavar="WHAT",
        help="attention, feed-forward (prior), convolutions (decoder), or names of modules.  [default: attention]",
    ),
    lora("--use-dora", is_flag=True, default=None, help="Learn the length of each weight apart from its direction."),
    device(
        "--mixed-precision",
        type=Choice(["no", "fp16", "bf16"]),
        help="Of forward and backward; weights stay fp32.  [default: accelerate's configuration]",
    ),
    device("--allow-tf32", is_flag=True, default=None, help="Faster fp32 matrix products on Ampere and later."),
    device("--gradient-checkpointing", is_flag=True, default=None, help="Less memory for activations, a slower step."),
    device(
        "--enable-xformers-memory-efficient-attention",
        is_flag=True,
        default=None,
        help="Attention of xformers in place of torch's; pip install 'kcache[xformers]'.",
    ),
    validation(
        "--validation-split",
        type=share,
        metavar="SHARE",
        help="Hold out this share of the samples, chosen by their ids, and measure on them.  [default: 0]",
    ),
    validation("--validation-samples", type=positive, help="Measure on so many of them at most.  [default: 512]"),
    validation(
        "--validation-prompts",
        cls=ListOption,
        metavar="TEXT",
        help="Make pictures of these; put CACHE before them.",
    ),
    validation("--validation-prompt", metavar="TEXT", help="The same, for a single one."),
    validation("--num-validation-images", type=positive, help="Of each prompt.  [default: 1; 4 with --lora]"),
    validation("--validation-epochs", type=positive, help="Epochs between.  [default: 5; 1 with --lora]"),
    validation("--validation-steps", type=positive, help="Updates between, in place of epochs."),
    validation(
        "--early-stopping",
        type=positive,
        metavar="N",
        help="End after N validations without a better loss; the result is the best.",
    ),
    validation(
        "--probe-samples",
        type=click.IntRange(min=0),
        help="Samples whose loss on fixed draws is measured before and after; 0: none.  [default: 256]",
    ),
    saving("--checkpointing-steps", type=positive, help="Updates between checkpoints.  [default: 500]"),
    saving("--checkpoints-total-limit", type=positive, help="Keep only the newest N.  [default: all]"),
    saving(
        "--resume-from-checkpoint", metavar="latest|PATH", help="Go on exactly where a checkpoint of this run stopped."
    ),
    saving(
        "--accept-new-snapshot",
        is_flag=True,
        default=None,
        help="Resume although the cache has changed since: on what it holds now; says what that changes.",
    ),
    telling("--logging-steps", type=positive, help="Updates between lines of metrics.  [default: 10]"),
    telling(
        "--report-to",
        metavar="TRACKER",
        help="tensorboard, wandb, comet_ml or all, beside OUT/metrics.jsonl.  [default: that alone]",
    ),
    telling("--tracker-project-name", metavar="NAME", help="[default: text2image-fine-tune]"),
    telling("--logging-dir", metavar="DIR", help="In OUT, for TensorBoard.  [default: logs]"),
    telling("--push-to-hub", is_flag=True, default=None, help="Upload the result, with a model card, when done."),
    telling("--hub-model-id", metavar="NAME", help="Where.  [default: the name of OUT]"),
    telling("--hub-token", metavar="TOKEN", help="[default: that of 'hf auth login']"),
    telling("--hub-private-repo", is_flag=True, default=None, help="Create the repository as a private one."),
]


def train_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that both trainers share, and the refusal of those that belong to encoding."""
    for option in reversed([*_OPTIONS, *_ENCODING, *_WITHOUT_USE]):
        command = option(command)
    return command


def make_train_config(config: type[Config], options: dict[str, Any]) -> Config:
    """The frozen options of a run. ``--validation-prompt`` is one more of ``--validation-prompts``."""
    if (prompt := options.pop("validation_prompt")) is not None:
        options["validation_prompts"] = (*options["validation_prompts"], prompt)
    if not options["lora_targets"]:
        options["lora_targets"] = None  # the default
    return make_config(config, options)


def _belongs_to_encoding(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise click.UsageError(
            f"{param.opts[0]} is about the dataset, which training does not read: give"
            f" {_GIVE[param.opts[0]].format(value)} and train from CACHE",
            ctx,
        )


_GIVE = {
    "--dataset-name": "'kcache encode {} CACHE'",
    "--dataset-config-name": "--dataset-config-name {} to 'kcache encode'",
    "--train-data-dir": "'kcache encode {} CACHE'",
    "--image-column": "--image-column {} to 'kcache encode'",
    "--caption-column": "--caption-column {} to 'kcache encode'",
}

_ENCODING = [
    click.option(name, hidden=True, expose_value=False, callback=_belongs_to_encoding)  # as the reference spells them
    for name in _GIVE
]


def _say_without_use(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
    if value is not None:
        click.echo(f"{param.opts[0]} is accepted and has no effect: {_NO_USE[param.opts[0]]}", err=True)


_NO_USE = {
    "--dataloader-num-workers": "one thread reads ahead of the step, and nothing is decoded",
    "--local-rank": "the launcher says it in the environment",
}

_WITHOUT_USE = [
    click.option(name, hidden=True, expose_value=False, type=int, callback=_say_without_use) for name in _NO_USE
]
