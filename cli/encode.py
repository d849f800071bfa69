"""`kcache encode`: a dataset's captions and images through the frozen encoders into a cache."""

import shlex
from typing import TYPE_CHECKING, Any

import click

from kcache.cli.options import Choice, ListOption, make_config
from kcache.cli.sizes import size

if TYPE_CHECKING:
    from kcache.encoding.config import EncodeConfig
    from kcache.encoding.encode import EncodeReport


@click.command()
@click.argument("dataset")
@click.argument("cache")
@click.option(
    "--pretrained-prior-model-name-or-path",
    metavar="NAME",
    help="Where the CLIP encoders come from: a hub id or a folder.  [default: kandinsky-community/kandinsky-2-2-prior]",
)
@click.option(
    "--pretrained-decoder-model-name-or-path",
    metavar="NAME",
    help="Where MoVQ comes from: a hub id or a folder.  [default: kandinsky-community/kandinsky-2-2-decoder]",
)
@click.option("--revision", help="Branch, tag or commit on the hub, for both checkpoints.")
@click.option("--variant", help="Variant of the weights, such as fp16.")
@click.option("--cache-dir", help="Where downloads from the hub are kept.")
@click.option(
    "--resolution",
    cls=ListOption,
    type=click.IntRange(min=8),
    help="Side of the pictures for MoVQ, in pixels; several make a column each.  [default: 512]",
)
@click.option(
    "--columns", cls=ListOption, help="Only these columns: text, image, latents (of every --resolution) or latents-N."
)
@click.option("--format", type=Choice(["tar", "h5"]), help="WebDataset or HDF5 shards.  [default: tar]")
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    help="Samples in a shard; a kill costs about one shard's encoding.  [default: 256]",
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Samples that an encoder takes at once.  [default: 16]")
@click.option(
    "--encode-dtype",
    type=Choice(["fp32", "fp16", "bf16"]),
    help="What the encoders compute in.  [default: fp16 on a GPU, fp32 on a CPU]",
)
@click.option("--store-dtype", type=Choice(["fp16", "fp32"]), help="What is stored.  [default: fp16]")
@click.option("--device", help="Such as cuda:1 or cpu.  [default: the first GPU, else the CPU]")
@click.option(
    "--alpha",
    type=Choice(["white", "drop"]),
    help="Transparent pixels: on white, or as the reference.  [default: white]",
)
@click.option("--image-column", help="The image column of a datasets table.  [default: image]")
@click.option("--caption-column", help="The caption column of a table or metadata file.  [default: text]")
@click.option("--dataset-config-name", help="The configuration of a hub dataset.")
@click.option("--split", help="The split of a datasets table.  [default: train]")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Threads that decode pictures.  [default: cores, at most 8]"
)
@click.option("--dry-run", is_flag=True, help="Say what would be encoded, why, and how large it is; encode nothing.")
def encode(**options: Any) -> int:
    """Encode the captions and images of DATASET into CACHE, once.

    DATASET is a folder of pictures with metadata.jsonl or metadata.csv (columns file_name and text), or with a text
    file beside each picture; a folder that the datasets library saved; or the name of a dataset on the hub.

    What CACHE already holds is not encoded again. Killed at any moment and run again, it goes on from the last shard
    that was committed. Exit code 3: done, but some samples were set aside (unreadable pictures, missing captions).

    \b
      kcache encode my-pictures cache
      kcache encode my-pictures cache --resolution 512 768   adds the column latents-768
      kcache encode user/dataset cache --caption-column caption --format h5
    """
    from kcache.encoding.config import EncodeConfig
    from kcache.encoding.encode import encode as encode_dataset

    config = make_config(EncodeConfig, options)
    report = encode_dataset(config)
    if config.dry_run:
        _print_dry_run(report)
        _print_warnings(config, report)
    else:
        _print_summary(config, report)
    return 3 if report.set_aside else 0


def _print_dry_run(report: "EncodeReport") -> None:
    """What would be encoded, column by column, with its size."""
    unplanned = sum(sample not in report.set_aside for sample in report.work.new_ids)
    for name, nbytes in report.estimated_bytes.items():
        count = report.work.counts[name]["new"]
        reasons = {"not in the cache yet": unplanned, "in shards that lack this column": count - unplanned}
        why = ", ".join(f"{n:,} {reason}" for reason, n in reasons.items() if n) or "nothing to do"
        click.echo(f"{name:12} would encode {count:,} samples, about {size(nbytes)} of features: {why}")
    click.echo(f"{'total':12} about {size(sum(report.estimated_bytes.values()))} of features; nothing was written")


def _print_summary(config: "EncodeConfig", report: "EncodeReport") -> None:
    """What was done, what was set aside, and what comes next."""
    done = ", ".join(f"{name} {count:,}" for name, count in report.encoded.items() if count)
    rate = f" ({report.pictures / report.seconds:,.1f} images/s)" if report.pictures else ""
    if done:
        click.echo(f"Encoded {done} in {report.seconds:,.0f} s{rate}.")
    else:
        click.echo(f"{config.cache} is up to date: nothing to encode.")
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
    latents = [f"latents-{n}" for n in config.resolution or (512,) if f"latents-{n}" in columns]
    commands = []
    if {"text", "image"} <= set(columns):
        commands.append(f"kcache train prior {cache} --output-dir my-prior{from_prior}")
    if latents and "image" in columns:
        resolution = latents[0].removeprefix("latents-")
        commands.append(f"kcache train decoder {cache} --output-dir my-decoder --resolution {resolution}{from_decoder}")
    return commands


def _print_warnings(config: "EncodeConfig", report: "EncodeReport") -> None:
    """What a reader of the summary may have to act on."""
    if report.work.gone:
        gone = f"{len(report.work.gone):,} samples are gone from the dataset"
        click.echo(f"{gone}; the cache keeps them and training uses them.", err=True)
    if report.cut_captions:
        click.echo(
            f"{report.cut_captions:,} captions are longer than 77 tokens and were cut, as in the reference.", err=True
        )
    if report.empty_captions:
        click.echo(f"{report.empty_captions:,} captions are empty and were encoded as the empty prompt.", err=True)
    if report.set_aside:
        click.echo(f"Set aside {len(report.set_aside):,} samples (exit code 3):", err=True)
        for sample, reason in list(report.set_aside.items())[:10]:
            click.echo(f"  {sample}: {reason}", err=True)
        if len(report.set_aside) > 10:
            more = len(report.set_aside) - 10
            click.echo(f"  and {more:,} more; 'kcache info {config.cache} --set-aside' lists them", err=True)
