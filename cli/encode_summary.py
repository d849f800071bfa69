"""What `kcache encode` says when it is done: what was encoded or would be, why, and what to look at."""

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kcache.cli.say import say
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
            (len(report.taken_out), "to be taken out"),
        ]
        why = ", ".join(f"{n:,} {reason}" for n, reason in reasons if n) or "nothing to do"
        verb = "would refuse" if name in report.refused else "would encode"
        say(
            f"{name:{width}} {verb} {count(cost.samples, 'sample')}, about {size(cost.disk)} on disk"
            f" ({size(cost.bytes)} of features), in about {duration(cost.seconds)}: {why}"
        )
    say(f"{'total':{width}} {_total(report)}; nothing was written")
    for name, why in report.refused.items():
        say(f"{name} was encoded otherwise: {why}")
    _print_reasons(report)
    _print_warnings(config, report)


def _total(report: "EncodeReport") -> str:
    costs = report.estimates.values()
    disk, features = sum(cost.disk for cost in costs), sum(cost.bytes for cost in costs)
    if not any(cost.samples for cost in costs):
        on_disk = f"about {size(disk)} on disk, and " if disk else ""
        return f"{on_disk}nothing to encode, which takes about {duration(report.in_all)} here to find out"
    return (
        f"about {size(disk)} on disk ({size(features)} of features), in about {duration(report.in_all)} here,"
        f" {duration(report.beginning)} of it to begin and {duration(report.reading)} to read pictures"
    )


def _print_reasons(report: "EncodeReport") -> None:
    by_reason = _by_reason(report.changed) | {
        "picture renamed, features stay": [f"{old} -> {new}" for new, old in report.renamed.items()]
    }
    for reason, samples in by_reason.items():
        if samples:
            say(f"{reason}: {_named(samples)}")


def _named(samples: Sequence[str]) -> str:
    more = f" and {len(samples) - SHOWN:,} more" if len(samples) > SHOWN else ""
    return f"{count(len(samples), 'sample')}: {', '.join(samples[:SHOWN])}{more}"


def print_summary(config: "EncodeConfig", report: "EncodeReport") -> None:
    """What was done, what was set aside, and what comes next."""
    done = ", ".join(f"{name} {number:,}" for name, number in report.encoded.items() if number)
    rate = f" ({report.pictures / report.seconds:,.1f} images/s)" if report.pictures else ""
    if done:
        say(f"Encoded {done} in {report.seconds:,.0f} s{rate}.")
    elif report.shards_written:
        say(f"{config.cache} was brought up to date, with nothing to encode{_written(report)}.")
    else:
        say(f"{config.cache} is up to date: nothing to encode.")
    if report.renamed:
        say(f"{count(len(report.renamed), 'picture')} renamed: known by the new name, nothing encoded.")
    _print_warnings(config, report)
    if report.samples and len(report.set_aside) == report.samples:
        say(f"Nothing to train on yet: {config.cache} has no sample. Mend what was set aside, and run this again.")
        return
    for number, command in enumerate(_next_commands(config)):
        say(f"{'     ' if number else 'Next:'} {command}")


def _written(report: "EncodeReport") -> str:
    """What a run changed that encoded nothing."""
    counted = [(len(report.taken_out), "taken out"), (len(report.set_aside), "set aside")]
    said = ", ".join(f"{count(number, 'sample')} {what}" for number, what in counted if number)
    return f": {said}" if said else ""


def _next_commands(config: "EncodeConfig") -> list[str]:
    """The training commands that this cache has the columns for, with the checkpoints that it was encoded with."""
    from kcache.encoded_with import encoded_with
    from kcache.shards import Cache

    opened, cache = Cache(config.cache), shlex.quote(config.cache)
    columns = opened.column_names()
    recorded = encoded_with((name, opened.column(name).notes) for name in columns)
    prior = config.pretrained_prior_model_name_or_path or recorded.get("prior")
    decoder = config.pretrained_decoder_model_name_or_path or recorded.get("decoder")
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
    _print_lacking(config.cache, report)
    without = {*report.taken_out, *(sample for samples in report.lacking.values() for sample in samples)}
    kept = {sample: why for sample, why in report.gone.items() if sample not in without}
    if kept:
        say(f"Gone, and kept with their features: {count(len(kept), 'sample')}", err=True)
        _print_listed(kept)
        say("  Training uses them; --prune takes them out.", err=True)
    if report.taken_out:
        verb = "Would be taken out" if config.dry_run else "Taken out"
        say(f"{verb} of the cache: {count(len(report.taken_out), 'sample')}", err=True)
        _print_listed(report.taken_out)
    if report.cut:
        say(f"{count(len(report.cut), 'caption')} longer than 77 tokens, cut as in the reference:", err=True)
        tokens = {sample: f"{tokens} tokens" for sample, tokens in report.cut.items()}
        _print_listed(tokens, f"'kcache info {config.cache} --cut-captions' lists them")
    if report.empty_captions:
        say(f"{count(report.empty_captions, 'empty caption')}, encoded as the empty prompt.", err=True)
    if report.animated:
        say(f"Animated, the first frame was encoded: {_named(report.animated)}", err=True)
    for name, number in report.upscaled.items():
        if number and name.startswith("latents"):
            say(
                f"{count(number, 'picture')} enlarged by more than {config.max_upscale:g} for {name}:"
                " what it learns from them is blurred.",
                err=True,
            )
    if report.set_aside:
        found = f", {report.found_bad:,} of them counted above as new or changed" if report.found_bad else ""
        say(f"Set aside {count(len(report.set_aside), 'sample')} (exit code 3){found}:", err=True)
        _print_listed(report.set_aside, f"'kcache info {config.cache} --set-aside' lists them")


def _print_lacking(cache: str, report: "EncodeReport") -> None:
    """Samples that cannot be encoded any more and whose features are lost."""
    for name, samples in report.lacking.items():
        say(f"Gone, and without features in {name}: {count(len(samples), 'sample')}", err=True)
        _print_listed({sample: report.gone.get(sample, "its features are lost") for sample in samples})
        say(
            f"  Training leaves them out; 'kcache verify {cache} --repair --dataset DATASET' brings them back from a"
            " dataset that has them, --prune takes them out.",
            err=True,
        )


def _print_listed(why: Mapping[str, str], all_of_them: str = "") -> None:
    """Samples with their reasons; those with the same reason on one line. ``all_of_them`` says who names the rest."""
    groups = list(_by_reason(why).items())
    for reason, samples in groups[:SHOWN]:
        say(f"  {samples[0]}: {reason}" if len(samples) == 1 else f"  {reason}: {_named(samples)}", err=True)
    unnamed = len(why) - sum(min(len(samples), SHOWN) for _, samples in groups[:SHOWN])
    if unnamed and all_of_them:
        say(f"  {unnamed:,} of them not named here; {all_of_them}", err=True)


def _by_reason(why: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for sample, reason in why.items():
        groups.setdefault(reason, []).append(sample)
    return groups
