"""What `kcache encode` says when it is done: what was encoded or would be, why, and what to look at."""

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from kcache.cli.sizes import count, duration, size

if TYPE_CHECKING:
    from kcache.encoding.config import EncodeConfig
    from kcache.encoding.report import EncodeReport

SHOWN = 10
"""Samples that are named one by one; of more it is said how many."""


def print_dry_run(config: "EncodeConfig", report: "EncodeReport") -> None:
    """What would be encoded, column by column, with its size, its time and the reasons."""
    width = max([12, *map(len, report.estimates)])
    for name, cost in report.estimates.items():
        known = cost.samples - cost.unplanned
        changed = report.counts[name]["changed"]
        reasons = [
            (cost.unplanned, "not in the cache yet"),
            (changed, "changed"),
            (known - changed, "lacking this column"),
        ]
        why = ", ".join(f"{n:,} {reason}" for n, reason in reasons if n) or "nothing to do"
        verb = "would refuse" if name in report.refused else "would encode"
        click.echo(
            f"{name:{width}} {verb} {count(cost.samples, 'sample')}, about {size(cost.bytes)} of features,"
            f" in about {duration(cost.seconds)}: {why}"
        )
    bytes_, seconds = (sum(getattr(cost, key) for cost in report.estimates.values()) for key in ("bytes", "seconds"))
    click.echo(
        f"{'total':{width}} about {size(bytes_)} of features, in about {duration(seconds)} of encoding here;"
        " nothing was written"
    )
    for name, why in report.refused.items():
        click.echo(f"{name} was encoded otherwise: {why}")
    _print_reasons(report)
    _print_warnings(config, report)


def _print_reasons(report: "EncodeReport") -> None:
    by_reason: dict[str, list[str]] = {}
    for sample, reason in report.changed.items():
        by_reason.setdefault(reason, []).append(sample)
    by_reason |= {"picture renamed, features stay": [f"{old} -> {new}" for new, old in report.renamed.items()]}
    for reason, samples in by_reason.items():
        if samples:
            click.echo(f"{reason}: {_named(samples)}")


def _named(samples: Sequence[str]) -> str:
    more = f" and {len(samples) - SHOWN:,} more" if len(samples) > SHOWN else ""
    return f"{count(len(samples), 'sample')}: {', '.join(samples[:SHOWN])}{more}"


def print_summary(config: "EncodeConfig", report: "EncodeReport") -> None:
    """What was done, what was set aside, and what comes next."""
    done = ", ".join(f"{name} {number:,}" for name, number in report.encoded.items() if number)
    rate = f" ({report.pictures / report.seconds:,.1f} images/s)" if report.pictures else ""
    if done:
        click.echo(f"Encoded {done} in {report.seconds:,.0f} s{rate}.")
    else:
        click.echo(f"{config.cache} is up to date: nothing to encode.")
    if report.renamed:
        click.echo(f"{count(len(report.renamed), 'picture')} renamed: known by the new name, nothing encoded.")
    _print_warnings(config, report)
    for number, command in enumerate(_next_commands(config)):
        click.echo(f"{'     ' if number else 'Next:'} {command}")


def _next_commands(config: "EncodeConfig") -> list[str]:
    """The training commands that this cache has the columns for, with the checkpoints that it was encoded with."""
    from kcache.shards import Cache

    columns, cache = Cache(config.cache).column_names(), shlex.quote(config.cache)
    prior, decoder = config.pretrained_prior_model_name_or_path, config.pretrained_decoder_model_name_or_path
    from_prior = f" --pretrained-prior-model-name-or-path {shlex.quote(prior)}" if prior else ""
    from_decoder = f" --pretrained-decoder-model-name-or-path {shlex.quote(decoder)}" if decoder else ""
    texts = sorted((name for name in columns if name.split("-")[0] == "text"), key=len)
    resolutions = sorted(int(n.removeprefix("latents-")) for n in columns if n.removeprefix("latents-").isdigit())
    commands = []
    if texts and "image" in columns:
        text = "" if texts[0] == "text" else f" --text-column {texts[0]}"
        commands.append(f"kcache train prior {cache} --output-dir my-prior{from_prior}{text}")
    if resolutions and "image" in columns:
        size_ = next((n for n in config.resolution if n in resolutions), resolutions[0])
        commands.append(f"kcache train decoder {cache} --output-dir my-decoder --resolution {size_}{from_decoder}")
    return commands


def _print_warnings(config: "EncodeConfig", report: "EncodeReport") -> None:
    """What a reader of the summary may have to act on."""
    if report.gone and config.prune:
        click.echo(f"Taken out, for they are gone from the dataset: {_named(report.gone)}", err=True)
    elif report.gone:
        click.echo(f"Gone from the dataset, or not to be read any more: {_named(report.gone)}", err=True)
        click.echo("  The cache keeps them and training uses them; --prune takes them out.", err=True)
    if report.cut:
        click.echo(f"{count(len(report.cut), 'caption')} longer than 77 tokens, cut as in the reference:", err=True)
        _print_listed({sample: f"{tokens} tokens" for sample, tokens in report.cut.items()}, config, "--cut-captions")
    if report.empty_captions:
        click.echo(f"{count(report.empty_captions, 'empty caption')}, encoded as the empty prompt.", err=True)
    if report.animated:
        click.echo(f"Animated, the first frame was encoded: {_named(report.animated)}", err=True)
    for name, number in report.upscaled.items():
        if number and name.startswith("latents"):
            click.echo(
                f"{count(number, 'picture')} enlarged by more than {config.max_upscale:g} for {name}:"
                " what it learns from them is blurred.",
                err=True,
            )
    if report.set_aside:
        click.echo(f"Set aside {count(len(report.set_aside), 'sample')} (exit code 3):", err=True)
        _print_listed(report.set_aside, config, "--set-aside")


def _print_listed(why: Mapping[str, str], config: "EncodeConfig", option: str) -> None:
    for sample, reason in list(why.items())[:SHOWN]:
        click.echo(f"  {sample}: {reason}", err=True)
    if len(why) > SHOWN:
        click.echo(f"  and {len(why) - SHOWN:,} more; 'kcache info {config.cache} {option}' lists them", err=True)
