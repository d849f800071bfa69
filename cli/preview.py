"""`kcache preview`: what is in a cache, as a page to look at."""

from typing import Any

import click

from kcache.cli.say import say
from kcache.cli.sizes import count, size


@click.command()
@click.argument("cache")
@click.option("-o", "--output", metavar="FILE", help="Where the page goes.  [default: page.html]")
@click.option("--rows", type=click.IntRange(min=1), metavar="N", help="So many samples, drawn at random.")
@click.option("--pictures/--no-pictures", default=None, help="Decode pictures from the latents.  [default: pictures]")
@click.option(
    "--picture-size", type=click.IntRange(16, 1024), metavar="N", help="Longer side in pixels.  [default: 128]"
)
@click.option(
    "--pretrained-decoder-model-name-or-path",
    metavar="CHECKPOINT",
    help="Whose MoVQ decodes: a folder, or a hub name.  [default: the one that the cache was encoded with]",
)
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Pictures that are decoded at once.")
@click.option("--device", help="[default: the first GPU, else the CPU]")
def preview(**options: Any) -> None:
    """Write a page that shows what is in CACHE: pictures, captions, and what is odd about them.

    The pictures are decoded from the latents, so they are what training sees. A click shows a picture's nearest
    neighbours by CLIP embedding. Filters show the same file twice, pictures that are almost equal, captions that were
    cut at the text encoder's end, samples that were set aside and why, and embeddings of an unusual norm.

    Up to some thousands of samples the page is one file; beyond, a folder beside it holds the rest: page-files, for
    page.html. It opens in any browser from the disk and asks the network for nothing. It shows your pictures and
    captions: share it as you would share these.

    \b
      kcache preview cache -o page.html
      kcache preview cache --rows 1000
      kcache preview cache --no-pictures
    """
    from kcache.cli.options import make_config
    from kcache.preview import PreviewConfig
    from kcache.preview import preview as write_preview

    written = write_preview(make_config(PreviewConfig, options))
    held = f"{count(written.samples, 'sample')}, {count(written.pictures, 'picture')}, {size(written.bytes)}"
    beside = f" with {count(written.files, 'file')} in {written.folder}" if written.files else ""
    say(f"Wrote {written.output}{beside} ({held}).", f"Open {written.output} in a browser.")
