"""What `kcache train` says when it is done: what was trained, how well, and what comes next."""

from typing import TYPE_CHECKING

from kcache.cli.say import say

if TYPE_CHECKING:
    from kcache.training.run import TrainReport


def print_report(report: "TrainReport") -> int:
    """What a run did and what comes next; returns the exit code.

    The main process speaks for all, and so does its code: a launcher would take another for a failure, and end the main
    process before it has spoken.
    """
    if not report.is_main:
        return 0
    if not report.finished:
        say(
            f"Stopped after update {report.step:,} of {report.max_steps:,}; all of it is in {report.checkpoint}.",
            "Go on with the same command and --resume-from-checkpoint latest",
        )
        return 130
    early = f" of {report.max_steps:,}, as no validation was better" if report.ended_early else ""
    say(f"Trained for {report.step:,} updates{early} ({report.epochs:,.1f} epochs of {report.samples:,} samples).")
    if report.first_probe is not None and report.last_probe is not None:
        say(f"Loss on fixed draws: {report.first_probe:.4f} before, {report.last_probe:.4f} after.")
    if report.best_loss is not None:
        where = f"these weights are in {report.output_dir}/best"
        where += ", and are the result" if report.result_is_best else ""
        say(f"Held-out loss: {report.best_loss:.4f} at best, after update {report.best_step:,}; {where}.")
        if report.best_step == 0:
            say("That is before any training: no update made it better.")
    stage = {"prior": "prior", "unet": "decoder"}[report.component]
    other = {"prior": "--decoder my-decoder", "decoder": "--prior my-prior"}[stage]
    say(
        f"The result is in {report.output_dir}/{report.result}; {report.output_dir}/README.md shows how diffusers"
        " loads it.",
        f'Next: kcache generate "a prompt" --{stage} {report.output_dir} {other} -o grid.png',
        f"      kcache report {report.output_dir} -o report.html",
    )
    return 0
