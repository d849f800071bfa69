"""Pictures put together on one sheet: a plain grid, or groups with labels below each picture and a caption."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

GAP = 4
"""Pixels between pictures that belong together."""

Color = tuple[int, int, int]
WHITE, PAPER, INK, GREY = (255, 255, 255), (242, 242, 240), (24, 24, 24), (104, 104, 104)
"""PAPER is that of a labelled sheet, darker than white so that pictures on white have an edge."""

SMALLEST = 128
"""Pictures with a shorter side are enlarged for a labelled sheet, by a whole factor and without smoothing."""

COLUMNS = 4
"""Pictures in a row of a labelled sheet; a group with more has a row of its own."""

CAPTION_LINES = 2


@dataclass(frozen=True)
class Group:
    """Pictures side by side, each with its label, over the caption that they share."""

    caption: str
    pictures: Sequence[Image.Image]
    labels: Sequence[str]


def grid(pictures: Sequence[Image.Image], columns: int, gap: int = GAP, paper: Color = WHITE) -> Image.Image:
    """Pictures in rows of ``columns``, each at the top left of its cell; a row is as high as its highest picture."""
    columns = min(columns, len(pictures))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    width, heights = max(picture.width for picture in pictures), [max(one.height for one in row) for row in rows]
    sheet = Image.new("RGB", (columns * (width + gap) - gap, sum(heights) + gap * (len(rows) - 1)), paper)
    for i, row in enumerate(rows):
        top = sum(heights[:i]) + i * gap
        for j, picture in enumerate(row):
            sheet.paste(picture, (j * (width + gap), top))
    return sheet


def labelled_sheet(sections: Sequence[tuple[str, Sequence[Group]]]) -> Image.Image:
    """Sections one below the other, each under its title, if it has one, and with all its groups laid out in rows.

    Letters that Pillow's own font lacks are drawn as empty boxes: it knows little more than Latin.
    """
    pictures = [picture for _, groups in sections for group in groups for picture in group.pictures]
    size = max(14, max(picture.width for picture in pictures) // 26)
    blocks = [_section(title, groups, size) for title, groups in sections if groups]
    sheet = _column(blocks, gap=2 * size)
    margin = size
    framed = Image.new("RGB", (sheet.width + 2 * margin, sheet.height + 2 * margin), PAPER)
    framed.paste(sheet, (margin, margin))
    return framed


def _section(title: str, groups: Sequence[Group], size: int) -> Image.Image:
    tiles = [_tile(group, size) for group in groups]
    columns = max(1, COLUMNS // max(len(group.pictures) for group in groups))
    body = grid(tiles, columns, size, PAPER)
    if not title:
        return body
    return _column([_text(title, body.width, round(1.25 * size), INK, lines=1), body], gap=size // 2)


def _tile(group: Group, size: int) -> Image.Image:
    cells = [_cell(picture, label, size) for picture, label in zip(group.pictures, group.labels, strict=True)]
    row = grid(cells, len(cells), GAP, PAPER)
    return _column([row, _text(group.caption, row.width, size, INK, CAPTION_LINES)], GAP)


def _cell(picture: Image.Image, label: str, size: int) -> Image.Image:
    picture = _enlarged(picture)
    if not label:
        return picture
    return _column([picture, _text(label, picture.width, size, GREY, lines=1)], GAP)


def _column(images: Sequence[Image.Image], gap: int) -> Image.Image:
    return grid(images, 1, gap, PAPER)


def _enlarged(picture: Image.Image) -> Image.Image:
    factor = -(-SMALLEST // min(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _text(text: str, width: int, size: int, color: Color, lines: int) -> Image.Image:
    """A strip of text in at most so many lines, cut with an ellipsis where it is longer."""
    font, line_height = _font(size), round(1.3 * size)
    wrapped = _wrapped(text, width, font, lines)
    strip = Image.new("RGB", (width, line_height * max(1, len(wrapped))), PAPER)
    draw = ImageDraw.Draw(strip)
    for i, line in enumerate(wrapped):
        draw.text((0, i * line_height), line, fill=color, font=font)
    return strip


def _wrapped(text: str, width: int, font: Any, lines: int) -> list[str]:
    """``text`` in at most so many lines of ``width`` pixels, broken between words where it can be."""
    rest = " ".join(text.split())
    wrapped: list[str] = []
    while rest and len(wrapped) < lines:
        if font.getlength(rest) <= width:
            return [*wrapped, rest]
        if len(wrapped) == lines - 1:
            return [*wrapped, rest[: _fitting(rest, width - font.getlength("…"), font)].rstrip() + "…"]
        end = _fitting(rest, width, font)
        space = rest.rfind(" ", 0, end + 1)
        end = space if space > 0 else end
        wrapped.append(rest[:end])
        rest = rest[end:].lstrip()
    return wrapped


def _fitting(text: str, width: float, font: Any) -> int:
    """How many letters of ``text`` are at most ``width`` pixels long; one at least."""
    end = 1
    while end < len(text) and font.getlength(text[: end + 1]) <= width:
        end += 1
    return end


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
