"""The style that the demo teaches: stickers, each picture with a thick dark outline on white paper."""

import json
from pathlib import Path

from PIL import Image, ImageChops, ImageFilter

PAPER, INK = (255, 255, 255), (16, 28, 92)
"""Colours of the paper and of the outline."""

SIDE, WIDTH = 128, 11
"""Pixels of a restyled picture, and of the square brush that draws its outline: two and a half at 64 px."""

SHRUNK = 108
"""Pixels that the cut-out picture keeps of `SIDE`, so that there is room for the outline all around."""

OPAQUE = 100
"""An alpha above this belongs to the thing that is shown."""


def restyle_folder(source: Path, target: Path) -> int:
    """Write every picture of a captioned folder anew, under the same caption; returns how many there are.

    ``metadata.jsonl`` comes last: a folder that has one is whole.
    """
    target.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in (source / "metadata.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        with Image.open(source / row["file_name"]) as picture:
            row["file_name"] = Path(row["file_name"]).with_suffix(".png").name
            restyled(picture).save(target / row["file_name"])
    (target / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return len(rows)


def restyled(picture: Image.Image) -> Image.Image:
    """A cut-out picture as a sticker: its colours stay, transparent pixels become paper, and its edge gets an outline.

    kandinsky-tiny's CLIP has seen nothing but plain emoji. It tells them apart by colour before shape, so that a style
    without colours, or on dark paper, makes all pictures one to it, and tinted paper is much to ask of its MoVQ.
    """
    small = Image.new("RGBA", (SIDE, SIDE), (*PAPER, 0))
    room = (SIDE - SHRUNK) // 2
    small.paste(picture.convert("RGBA").resize((SHRUNK, SHRUNK), Image.Resampling.LANCZOS), (room, room))
    shape = small.getchannel("A").point(lambda alpha: 255 * (alpha > OPAQUE))
    outline = ImageChops.subtract(shape.filter(ImageFilter.MaxFilter(WIDTH)), shape)
    sticker = Image.new("RGBA", small.size, PAPER)
    sticker.alpha_composite(small)
    sticker.paste(INK, mask=outline)
    return sticker.convert("RGB")
