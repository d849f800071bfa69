"""`kcache export`: a LoRA merged into whole weights, or a whole pipeline, from what was trained."""

from typing import Any

import click

from kcache.cli.options import Choice, make_config
from kcache.cli.sizes import size


@click.command()
@click.argument("output_dir", metavar="OUT")
@click.argument("to", required=False)
@click.option("--fuse", is_flag=True, default=None, help="Merge a LoRA into the weights that it was trained from.")
@click.option("--pipeline", is_flag=True, default=None, help="Write every component that the stock pipeline loads.")
@click.option(
    "--into",
    metavar="NAME",
    help="Add what the decoder has learned to the UNet of another pipeline: of inpainting, or a ControlNet.",
)
@click.option("--lora-scale", type=float, help="How much of the LoRA.  [default: 1]")
@click.option("--dtype", type=Choice(["fp32", "fp16", "bf16"]), help="Of what is written.  [default: fp32]")
def export(**options: Any) -> None:
    """Write what a run left in OUT anew, into a folder TO that does not exist yet.

    TO is OUT/fused or OUT/pipeline if it is not given. It is written whole or not at all.

    \b
      kcache export my-lora --fuse
      kcache export my-lora my-model --pipeline --lora-scale 0.8 --dtype fp16
      kcache export my-decoder --pipeline --into kandinsky-community/kandinsky-2-2-decoder-inpaint
    """
    from kcache.exporting import ExportConfig
    from kcache.exporting import export as export_result

    report = export_result(make_config(ExportConfig, options))
    click.echo(f"Wrote {report.to} ({size(report.nbytes)}); its README.md shows how diffusers loads it.")
    if report.pipeline in (None, "KandinskyV22Pipeline", "KandinskyV22PriorPipeline"):
        other = {"prior": "--decoder my-decoder", "decoder": "--prior my-prior"}[report.stage]
        click.echo(f'Next: kcache generate "a prompt" --{report.stage} {report.to} {other} -o grid.png')
