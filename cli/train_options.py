"""The options that both trainers share, under their headings, and how they become a run's configuration."""

from collections.abc import Callable
from typing import Any

import click

from kcache.cli.options import Choice, Config, ListOption, make_config
from kcache.cli.reference_options import takes_reference_options
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
    run("--output-dir", required=True, metavar="OUT", help="The folder for checkpoints, metrics and the result."),
    run(
        "--pretrained-prior-model-name-or-path",
        metavar="NAME",
        help="The prior to train, or to validate a decoder with: a hub id, a folder, or the OUT of a run."
        "  [default: kandinsky-community/kandinsky-2-2-prior]",
    ),
    run(
        "--pretrained-decoder-model-name-or-path",
        metavar="NAME",
        help="The decoder to train, or to validate a prior with, likewise."
        "  [default: kandinsky-community/kandinsky-2-2-decoder]",
    ),
    run("--revision", metavar="NAME", help="Branch, tag or commit of the trained checkpoint on the hub."),
    run("--variant", metavar="NAME", help="Variant of the weights that training begins from, such as fp16."),
    run("--cache-dir", metavar="DIR", help="Where downloads from the hub are kept."),
    run(
        "--seed",
        type=click.IntRange(0, 2**63 - 1),
        help="Fixes the order, noise and timesteps, whatever the number of GPUs.  [default: drawn, and kept]",
    ),
    run("--num-train-epochs", type=positive, help="Passes over the samples.  [default: 100]"),
    run("--max-train-steps", type=positive, help="Updates of the weights; overrides --num-train-epochs."),
    samples(
        "--where",
        metavar="EXPRESSION",
        help="Train on the rows for which it holds: id, text, width and height, as in 'width >= 512'.",
    ),
    samples(
        "--sample-ids", type=click.Path(dir_okay=False), metavar="FILE", help="Train on the ids in FILE, one in a line."
    ),
    samples("--max-train-samples", type=positive, help="Train on N of them, chosen by --seed.  [default: all]"),
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
        "--local-cache",
        metavar="DIR",
        help="Where shards of a CACHE in an object store are kept.  [default: ~/.cache/kcache/stores]",
    ),
    samples(
        "--local-cache-size",
        metavar="SIZE",
        help="The most bytes of them, as in 50GB; where not all fit, some are shuffled at a time.  [default: 32GB]",
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
    update("--train-batch-size", type=positive, help="Samples per device and batch.  [default: 1]"),
    update("--gradient-accumulation-steps", type=positive, help="Batches per update.  [default: 1]"),
    update("--learning-rate", type=click.FloatRange(min=0), help="The rate after warm-up.  [default: 1e-4]"),
    update(
        "--lr-scheduler",
        type=Choice(SCHEDULES),
        metavar="NAME",
        help=f"How the rate goes on: {', '.join(SCHEDULES)}.  [default: constant]",
    ),
    update(
        "--lr-warmup-steps",
        type=click.IntRange(min=0),
        help="Updates in which the rate rises from 0; constant has no warm-up.  [default: 500]",
    ),
    update(
        "--lr-num-cycles",
        type=above_zero,
        help="Restarts of cosine_with_restarts, or waves of cosine.  [default: 1; half a wave]",
    ),
    update("--lr-power", type=above_zero, help="The power of polynomial.  [default: 1]"),
    update(
        "--lr-step-rules",
        metavar="RULES",
        help="The steps of piecewise_constant, such as 1:10,0.1:20,0.01: a tenth of the rate from update 10 on, a"
        " hundredth from 20 on.",
    ),
    update(
        "--optimizer",
        metavar="NAME",
        help="adamw, adamw8bit, adafactor, prodigy, schedulefree or sgd.  [default: adamw]",
    ),
    update(
        "--optimizer-args",
        cls=ListOption,
        metavar="NAME=VALUE",
        help="Options of the optimizer's own, such as d_coef=2 of prodigy.",
    ),
    update(
        "--use-8bit-adam",
        is_flag=True,
        default=None,
        help="The same as --optimizer adamw8bit: a quarter of AdamW's memory; pip install 'kcache[bitsandbytes]'.",
    ),
    update("--adam-beta1", type=share, help="Decay of the mean of the gradients.  [default: 0.9]"),
    update("--adam-beta2", type=share, help="Decay of the mean of their squares.  [default: 0.999]"),
    update("--adam-weight-decay", type=click.FloatRange(min=0), help="Weight decay.  [default: 0]"),
    update("--adam-epsilon", type=click.FloatRange(min=0), help="Keeps AdamW from dividing by 0.  [default: 1e-8]"),
    update(
        "--max-grad-norm",
        type=click.FloatRange(min=0),
        help="Longer gradients are scaled down to this; 0: they are not.  [default: 1]",
    ),
    update("--snr-gamma", type=above_zero, help="Weigh the loss by Min-SNR; 5.0 is usual.  [default: off]"),
    update("--use-ema", is_flag=True, default=None, help="Keep a moving average of the weights; it is the result."),
    update(
        "--ema-decay", type=share, help="What the average keeps of itself in an update, at most.  [default: 0.9999]"
    ),
    lora("--lora", is_flag=True, default=None, help="Train a LoRA, not the whole component."),
    lora("--rank", type=positive, help="The width of its matrices.  [default: 4]"),
    lora("--lora-alpha", type=above_zero, help="Its outputs count alpha / rank.  [default: the rank]"),
    lora("--lora-dropout", type=share, help="Of its inputs, this share is dropped.  [default: 0]"),
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
        metavar="DTYPE",
        help="no, fp16 or bf16, for forward and backward; the weights stay as they are.  [default: as accelerate is"
        " configured]",
    ),
    device("--allow-tf32", is_flag=True, default=None, help="Faster fp32 matrix products on Ampere and later."),
    device(
        "--low-memory",
        is_flag=True,
        default=None,
        help="Short for --weights-dtype bf16 --optimizer adamw8bit --update-in-backward --max-grad-norm 0"
        " --gradient-checkpointing; with --lora for --base-dtype bf16 --gradient-checkpointing. Any of them may be"
        " given otherwise.",
    ),
    device("--gradient-checkpointing", is_flag=True, default=None, help="Less memory for activations, a slower step."),
    device(
        "--weights-dtype",
        type=Choice(["fp32", "bf16"]),
        metavar="DTYPE",
        help="What the trained component is held, computed and saved in; bf16 is updated with stochastic rounding."
        "  [default: fp32]",
    ),
    device(
        "--base-dtype",
        type=Choice(["fp32", "bf16"]),
        metavar="DTYPE",
        help="What the frozen weights beside a LoRA are held in.  [default: fp32]",
    ),
    device(
        "--update-in-backward",
        is_flag=True,
        default=None,
        help="Update each weight as soon as its gradient is known, and keep none: with --max-grad-norm 0, one batch per"
        " update, one GPU.",
    ),
    device(
        "--offload-optimizer",
        is_flag=True,
        default=None,
        help="Keep the optimizer's states in the machine's memory; each visits the GPU for its update.",
    ),
    device(
        "--enable-xformers-memory-efficient-attention",
        is_flag=True,
        default=None,
        help="The decoder's attention by xformers in place of torch's; pip install 'kcache[xformers]'.",
    ),
    validation(
        "--validation-split",
        type=share,
        metavar="SHARE",
        help="Hold out this share of the samples, chosen by their ids, and measure on them.  [default: 0]",
    ),
    validation("--validation-samples", type=positive, help="Measure on N of them at most.  [default: 512]"),
    validation(
        "--validation-prompts",
        cls=ListOption,
        metavar="TEXT",
        help="Make pictures of these prompts, into OUT/validation; put CACHE before them.",
    ),
    validation("--validation-prompt", metavar="TEXT", help="One prompt more, as the LoRA scripts spell it."),
    validation("--num-validation-images", type=positive, help="Pictures of each prompt.  [default: 1; 4 with --lora]"),
    validation(
        "--validation-guidance-scale",
        type=click.FloatRange(min=0),
        help="Of prior and decoder; 1 for models that were trained without dropped conditions.  [default: 4]",
    ),
    validation("--validation-epochs", type=positive, help="Validate every N epochs.  [default: 5; 1 with --lora]"),
    validation("--validation-steps", type=positive, help="Validate every N updates, in place of epochs."),
    validation(
        "--early-stopping",
        type=positive,
        metavar="N",
        help="End after N validations without a better loss; the result is the best.",
    ),
    validation(
        "--probe-samples",
        type=click.IntRange(min=0),
        help="Samples whose loss on fixed draws is measured before and after; 0 for none.  [default: 256]",
    ),
    saving(
        "--checkpointing-steps", type=positive, help="A checkpoint every N updates, and at the end.  [default: 500]"
    ),
    saving("--checkpoints-total-limit", type=positive, help="Keep only the newest N.  [default: all]"),
    saving(
        "--resume-from-checkpoint",
        metavar="latest|PATH",
        help="Go on exactly where a checkpoint of this run stopped; latest begins anew where there is none.",
    ),
    saving(
        "--accept-new-snapshot",
        is_flag=True,
        default=None,
        help="Resume although the cache has changed since: on what it holds now; says what that changes.",
    ),
    telling("--logging-steps", type=positive, help="A line of OUT/metrics.jsonl every N updates.  [default: 10]"),
    telling(
        "--report-to",
        metavar="TRACKER",
        help="tensorboard, wandb, comet_ml or all, beside OUT/metrics.jsonl.  [default: none]",
    ),
    telling(
        "--tracker-project-name", metavar="NAME", help="The project in the tracker.  [default: text2image-fine-tune]"
    ),
    telling("--logging-dir", metavar="DIR", help="The folder of TensorBoard, in OUT.  [default: logs]"),
    telling("--push-to-hub", is_flag=True, default=None, help="Upload the result, with a model card, when done."),
    telling("--hub-model-id", metavar="NAME", help="The repository on the hub.  [default: the name of OUT]"),
    telling("--hub-token", metavar="TOKEN", help="The token to upload with.  [default: that of 'hf auth login']"),
    telling("--hub-private-repo", is_flag=True, default=None, help="Create the repository as a private one."),
]


def train_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a `TrainCommand` the options that both trainers share, and those of the reference that went elsewhere."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return takes_reference_options(command)


def make_train_config(config: type[Config], options: dict[str, Any]) -> Config:
    """The frozen options of a run: ``--validation-prompt`` is one more of them, ``--low-memory`` short for some."""
    if (prompt := options.pop("validation_prompt")) is not None:
        options["validation_prompts"] = (*options["validation_prompts"], prompt)
    if options.pop("low_memory"):
        from kcache.training.low_memory import with_low_memory

        options = with_low_memory(options)
    if not options["lora_targets"]:
        options["lora_targets"] = None  # the default
    return make_config(config, options)
