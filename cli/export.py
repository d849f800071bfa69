"""`kcache export`: what was trained, or a cache, written anew for other programs."""

from pathlib import Path
from typing import Any

import click

from kcache.cli.options import Choice, ListOption, WholeNumber, make_config
from kcache.cli.say import say
from kcache.cli.sections import SectionedCommand, section
from kcache.cli.shell import stopped_by_sigterm
from kcache.cli.sizes import count, size

of_training = section("What a run left in OUT")
of_cache = section("A cache")


@click.command(cls=SectionedCommand)
@click.argument("source", metavar="OUT|CACHE")
@click.argument("to", required=False)
@of_training("--fuse", is_flag=True, default=None, help="Merge a LoRA into the weights that it was trained from.")
@of_training("--pipeline", is_flag=True, default=None, help="Write every component that the stock pipeline loads.")
@of_training(
    "--into",
    metavar="NAME",
    help="Add what the decoder has learned to the UNet of another pipeline: of inpainting, or a ControlNet.",
)
@of_training("--lora-scale", type=float, help="How much of the LoRA.  [default: 1]")
@of_training("--dtype", type=Choice(["fp32", "fp16", "bf16"]), help="Of what is written.  [default: fp32]")
@of_cache("--format", type=Choice(["webdataset"]), help="Tars in which all columns of a sample stand together.")
@of_cache("--columns", cls=ListOption, metavar="NAME", help="Only these; after the arguments.  [default: all]")
@of_cache("--shard-size", type=WholeNumber(min=1), help="Samples in a tar.  [default: as CACHE has]")
def export(source: str, to: str | None, **options: Any) -> None:
    """Write what a run left in OUT, or a CACHE, anew for other programs, into a folder TO.

    OUT: a LoRA merged into whole weights (--fuse), or all that the stock pipeline needs (--pipeline). TO does not exist
    yet and is OUT/fused or OUT/pipeline if it is not given. It is written whole or not at all.

    CACHE: WebDataset tars (--format webdataset) with a sample's captions and the features of all columns, which
    webdataset and what reads img2dataset's tars can read. Killed and run again, it goes on.

    \b
      kcache export my-lora --fuse
      kcache export my-lora my-model --pipeline --lora-scale 0.8 --dtype fp16
      kcache export my-decoder --pipeline --into kandinsky-community/kandinsky-2-2-decoder-inpaint
      kcache export cache tars --format webdataset
    """
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if Path(source, "kcache.json").is_file() or "://" in source:
        _export_cache(source, to, given)
    else:
        _export_result(source, to, given)


_OF_CACHE = ("format", "columns", "shard_size")


def _export_cache(cache: str, to: str | None, given: dict[str, Any]) -> None:
    from kcache.progress import bar
    from kcache.shards import Cache, UsageError
    from kcache.shards.joined import export_joined

    if strange := [name for name in given if name not in _OF_CACHE]:
        raise UsageError(f"{cache} is a cache, and {_option(strange[0])} is for what was trained; see --help")
    if "format" not in given or to is None:
        raise UsageError(
            f"{cache} is a cache: name a folder for its tars, as in 'kcache export {cache} TO --format webdataset'"
        )
    opened = Cache(cache)
    planned = sum(len(opened.planned_ids(shard)) for shard in range(opened.shard_count))
    with stopped_by_sigterm(), bar(planned, "sample", "export") as progress:
        done = export_joined(
            opened, Path(to), given.get("columns", ()), given.get("shard_size"), progress=progress.update
        )
    left_out = f"; {count(done.left_out, 'sample')} without features left out" if done.left_out else ""
    say(
        f"Wrote {count(done.written, 'tar')} of {done.tars:,} to {to} ({count(done.samples, 'sample')},"
        f" {size(done.nbytes)}){left_out}."
    )


def _export_result(output_dir: str, to: str | None, given: dict[str, Any]) -> None:
    from kcache.exporting import ExportConfig
    from kcache.exporting import export as export_result
    from kcache.shards import UsageError

    if strange := [name for name in given if name in _OF_CACHE]:
        raise UsageError(f"{_option(strange[0])} is for a cache, and {output_dir} is none (it has no kcache.json)")
    report = export_result(make_config(ExportConfig, {"output_dir": output_dir, "to": to, **given}))
    say(f"Wrote {report.to} ({size(report.nbytes)}); its README.md shows how diffusers loads it.")
    if report.pipeline in (None, "KandinskyV22Pipeline", "KandinskyV22PriorPipeline"):
        other = {"prior": "--decoder my-decoder", "decoder": "--prior my-prior"}[report.stage]
        say(f'Next: kcache generate "a prompt" --{report.stage} {report.to} {other} -o grid.png')


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
