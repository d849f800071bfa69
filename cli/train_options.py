"""The options that both trainers share, and the summary of a run."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kcache.cli.options import Choice

if TYPE_CHECKING:
    from kcache.training.run import TrainReport

# A copy of kcache.training.config.SCHEDULES, which --help would have to load torch for.
SCHEDULES = ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]

_OPTIONS = [
    click.option("--output-dir", required=True, metavar="OUT", help="Folder for checkpoints and the result."),
    click.option("--revision", help="Branch, tag or commit of the checkpoint on the hub."),
    click.option("--variant", help="Variant of the weights that training begins from, such as fp16."),
    click.option("--cache-dir", help="Where downloads from the hub are kept."),
    click.option(
        "--seed", type=click.IntRange(0, 2**63 - 1), help="Fixes order, noise and timesteps.  [default: drawn]"
    ),
    click.option("--train-batch-size", type=click.IntRange(min=1), help="Samples per device and step.  [default: 1]"),
    click.option(
        "--random-flip", is_flag=True, default=None, help="Mirror each sample or not; encode with --flip for it."
    ),
    click.option(
        "--random-crops",
        is_flag=True,
        default=None,
        help="Draw one of each sample's fixed crops, not the centre; encode with --random-crops N for it.",
    ),
    click.option("--num-train-epochs", type=click.IntRange(min=1), help="Passes over the samples.  [default: 100]"),
    click.option("--max-train-steps", type=click.IntRange(min=1), help="Updates; overrides --num-train-epochs."),
    click.option("--gradient-accumulation-steps", type=click.IntRange(min=1), help="Batches per update.  [default: 1]"),
    click.option("--learning-rate", type=click.FloatRange(min=0), help="Of AdamW.  [default: 1e-4]"),
    click.option("--lr-scheduler", type=Choice(SCHEDULES), help="Learning-rate schedule.  [default: constant]"),
    click.option("--lr-warmup-steps", type=click.IntRange(min=0), help="Updates of warm-up.  [default: 500]"),
    click.option("--snr-gamma", type=click.FloatRange(min=0, min_open=True), help="Min-SNR weighting; 5.0 is usual."),
    click.option("--adam-beta1", type=click.FloatRange(0, 1, max_open=True), help="[default: 0.9]"),
    click.option("--adam-beta2", type=click.FloatRange(0, 1, max_open=True), help="[default: 0.999]"),
    click.option("--adam-weight-decay", type=click.FloatRange(min=0), help="[default: 0]"),
    click.option("--adam-epsilon", type=click.FloatRange(min=0), help="[default: 1e-8]"),
    click.option(
        "--max-grad-norm", type=click.FloatRange(min=0, min_open=True), help="Gradients are clipped.  [default: 1]"
    ),
    click.option(
        "--mixed-precision",
        type=Choice(["no", "fp16", "bf16"]),
        help="Of forward and backward; weights stay fp32.  [default: accelerate's configuration]",
    ),
    click.option("--allow-tf32", is_flag=True, default=None, help="Faster fp32 matrix products on Ampere and later."),
    click.option(
        "--checkpointing-steps", type=click.IntRange(min=1), help="Updates between checkpoints.  [default: 500]"
    ),
    click.option(
        "--checkpoints-total-limit", type=click.IntRange(min=1), help="Keep only the newest N.  [default: all]"
    ),
    click.option(
        "--resume-from-checkpoint", metavar="latest|PATH", help="Go on exactly where a checkpoint of this run stopped."
    ),
    click.option(
        "--accept-new-snapshot",
        is_flag=True,
        default=None,
        help="Resume although the cache has changed since: on what it holds now; says what that changes.",
    ),
    click.option(
        "--logging-steps", type=click.IntRange(min=1), help="Updates between lines of metrics.  [default: 10]"
    ),
    click.option(
        "--probe-samples",
        type=click.IntRange(min=0),
        help="Samples whose loss on fixed draws is measured before and after; 0: none.  [default: 256]",
    ),
    click.option(
        "--check-crc/--no-check-crc", default=None, help="Compare every sample's crc32 as it is read.  [default: on]"
    ),
    click.option(
        "--partial", is_flag=True, default=None, help="Train on what is encoded so far, if the encode is unfinished."
    ),
    click.option(
        "--ignore-encoder-mismatch",
        is_flag=True,
        default=None,
        help="Accept a cache whose encoders' weights are not those in the checkpoint's folder.",
    ),
]


def train_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that both trainers share."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def print_report(report: "TrainReport") -> int:
    """What a run did and what comes next; returns the exit code."""
    stopped = report.step < report.max_steps
    if not report.is_main:
        return 130 if stopped else 0
    if stopped:
        click.echo(
            f"Stopped after update {report.step:,} of {report.max_steps:,}; all of it is in {report.checkpoint}.\n"
            "Go on with the same command and --resume-from-checkpoint latest"
        )
        return 130
    click.echo(f"Trained for {report.step:,} updates ({report.epochs:,.1f} epochs of {report.samples:,} samples).")
    if report.first_probe is not None and report.last_probe is not None:
        click.echo(f"Loss on fixed draws: {report.first_probe:.4f} before, {report.last_probe:.4f} after.")
    stage = {"prior": "prior", "unet": "decoder"}[report.component]
    other = {"prior": "--decoder my-decoder", "decoder": "--prior my-prior"}[stage]
    click.echo(
        f"The result is in {report.output_dir}/{report.component}; {report.output_dir}/README.md shows how diffusers"
        f' loads it.\nNext: kcache generate "a prompt" --{stage} {report.output_dir} {other} -o grid.png'
    )
    return 0
