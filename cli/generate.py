"""`kcache generate`: pictures from prompts, with what was trained."""

from typing import Any

import click

from kcache.cli.options import Choice, make_config
from kcache.cli.say import say
from kcache.cli.sizes import count


@click.command()
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@click.option("--prior", metavar="OUT", help="A trained prior.  [default: kandinsky-community/kandinsky-2-2-prior]")
@click.option(
    "--decoder", metavar="OUT", help="A trained decoder.  [default: kandinsky-community/kandinsky-2-2-decoder]"
)
@click.option("--prior-lora-scale", type=float, help="How much of a LoRA given as --prior.  [default: 1]")
@click.option("--decoder-lora-scale", type=float, help="How much of a LoRA given as --decoder.  [default: 1]")
@click.option("-o", "--output", metavar="PNG", help="Where the grid is written.  [default: grid.png]")
@click.option("--num-images-per-prompt", type=click.IntRange(min=1), help="[default: 1]")
@click.option("--negative-prompt", help="What the picture should not be.")
@click.option("--prior-num-inference-steps", type=click.IntRange(min=1), help="[default: 25]")
@click.option("--prior-guidance-scale", type=click.FloatRange(min=0), help="[default: 4]")
@click.option("--num-inference-steps", type=click.IntRange(min=1), help="Of the decoder.  [default: 50]")
@click.option("--guidance-scale", type=click.FloatRange(min=0), help="Of the decoder.  [default: 4]")
@click.option(
    "--resolution", type=click.IntRange(min=8), help="Side in pixels.  [default: what it was trained at, or 512]"
)
@click.option(
    "--seed", type=click.IntRange(min=0), help="Of a prompt's first picture; the next one has seed + 1.  [default: 0]"
)
@click.option("--device", help="[default: the first GPU, else the CPU]")
@click.option("--dtype", type=Choice(["fp32", "fp16", "bf16"]), help="[default: fp16 on a GPU, fp32 on a CPU]")
def generate(**options: Any) -> None:
    """Make pictures of each PROMPT and write them as one grid, through the stock diffusers pipelines.

    --prior and --decoder take the --output-dir of a training run, with or without --lora, the folder of a pipeline, or
    a hub id.

    \b
      kcache generate "a red fox" --prior my-prior --decoder my-decoder -o fox.png
      kcache generate "a red fox" "a blue cup" --decoder my-decoder --num-images-per-prompt 4
      kcache generate "a red fox" --decoder my-lora --decoder-lora-scale 0.7
    """
    from kcache.generation import GenerateConfig
    from kcache.generation import generate as generate_pictures

    report = generate_pictures(make_config(GenerateConfig, options))
    made = count(report.pictures, "picture")
    say(f"Wrote {made} to {report.output} ({report.width} x {report.height} pixels).")
