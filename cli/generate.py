"""`kcache generate`: pictures from prompts, with what was trained."""

from typing import Any

import click

from kcache.cli.options import Choice, make_config
from kcache.cli.say import say
from kcache.cli.sections import SectionedCommand, section
from kcache.cli.sizes import count

subject = section("Of what")
source = section("From a picture")
model = section("With what")
how = section("How")
where = section("Where to")


@click.command(cls=SectionedCommand)
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@subject(
    "--prompts-file",
    metavar="FILE",
    help="A prompt a line; empty lines and those that begin with # are left out. Of a .jsonl, an object a line with"
    " 'prompt' or 'mix', and if need be 'negative_prompt' and 'seed'.",
)
@subject(
    "--mix",
    multiple=True,
    metavar="THING=WEIGHT",
    help="A prompt or a picture file that goes into one picture with those of the other --mix; weights are divided by"
    " their sum. A picture alone: more pictures like it.",
)
@subject("--negative-prompt", help="What the pictures should not be; counts where guidance is above 1.")
@subject(
    "--seed", type=click.IntRange(min=0), help="Of a prompt's first picture; the next one has seed + 1.  [default: 0]"
)
@subject("--num-images-per-prompt", type=click.IntRange(min=1), help="[default: 1]")
@source("--init-image", metavar="FILE", help="A picture to begin from, instead of noise; its shape is kept.")
@source(
    "--strength",
    type=click.FloatRange(min=0, max=1, min_open=True),
    help="How much of it is painted anew, above 0 and up to 1.  [default: 0.3, and 1 with a mask]",
)
@source(
    "--mask-image",
    metavar="FILE",
    help="Inpainting: of the --init-image, what is white here is painted anew and the rest keeps its pixels. A decoder"
    " with 9 input channels was trained for that and is told of the mask; one with 4, as kcache trains them, is not:"
    " there the rest is put back after each step (RePaint).",
)
@model("--prior", metavar="OUT", help="A trained prior.  [default: kandinsky-community/kandinsky-2-2-prior]")
@model("--decoder", metavar="OUT", help="A trained decoder.  [default: kandinsky-community/kandinsky-2-2-decoder]")
@model("--prior-lora-scale", type=float, help="How much of a LoRA given as --prior.  [default: 1]")
@model("--decoder-lora-scale", type=float, help="How much of a LoRA given as --decoder.  [default: 1]")
@how("--prior-num-inference-steps", type=click.IntRange(min=1), help="[default: 25]")
@how("--prior-guidance-scale", type=click.FloatRange(min=0), help="[default: 4]")
@how("--num-inference-steps", type=click.IntRange(min=1), help="Of the decoder.  [default: 50]")
@how("--guidance-scale", type=click.FloatRange(min=0), help="Of the decoder.  [default: 4]")
@how("--scheduler", type=Choice(["ddpm", "ddim", "dpmsolver"]), help="Of the decoder.  [default: its own]")
@how(
    "--resolution",
    type=click.IntRange(min=8),
    help="Side in pixels; of an --init-image, about the shorter side.  [default: what it was trained at, or 512]",
)
@how("--batch-size", type=click.IntRange(min=1), help="Pictures in one forward.  [default: 1]")
@how("--device", help="[default: the first GPU, else the CPU]")
@how(
    "--offload",
    is_flag=True,
    default=None,
    help="For a GPU of 8 GB: only the parts that work together are on it, the others wait in the machine's memory.",
)
@how("--dtype", type=Choice(["fp32", "fp16", "bf16"]), help="[default: fp16 on a GPU, fp32 on a CPU]")
@where(
    "-o",
    "--output",
    metavar="PNG|FOLDER/",
    help="One picture or a grid, over a file that is there; or, with a slash at its end, a new folder with a file for"
    " each, and grid.png. A PNG alone knows how it was made.  [default: grid.png]",
)
@where("--captions", is_flag=True, default=None, help="Draw prompts and seeds below the pictures of the grid.")
@where(
    "--metadata/--no-metadata",
    default=None,
    help="Write into each PNG how it was made, for 'kcache info PNG'.  [default: on]",
)
def generate(**options: Any) -> None:
    """Make pictures of each PROMPT, through the stock diffusers pipelines.

    --prior and --decoder take the --output-dir of a training run, with or without --lora, the folder of a pipeline, or
    a hub id. docs/generating.md shows what comes out.

    \b
      kcache generate "a red fox" --prior my-prior --decoder my-decoder -o fox.png
      kcache generate "a red fox" "a blue cup" --decoder my-decoder --num-images-per-prompt 4
      kcache generate --prompts-file prompts.txt --batch-size 8 -o pictures/
      kcache generate "a red fox" --decoder my-lora --decoder-lora-scale 0.7
      kcache generate "a red fox" --init-image photo.png --strength 0.7
      kcache generate "a hat" --init-image photo.png --mask-image mask.png
      kcache generate --mix "a fox=0.6" --mix photo.png=0.4
    """
    from kcache.generating.config import GenerateConfig
    from kcache.generating.generate import generate as generate_pictures

    report = generate_pictures(make_config(GenerateConfig, options))
    made = count(report.pictures, "picture")
    if not report.folder:
        say(f"Wrote {made} to {report.output} ({report.width} x {report.height} pixels).")
    elif report.width:
        say(f"Wrote {made} to {report.output}, and all of them to grid.png ({report.width} x {report.height} pixels).")
    else:
        say(f"Wrote {made} to {report.output}; too many for a grid.")
