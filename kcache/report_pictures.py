"""The validation pictures of a report, inside the page: as they are, or smaller where they are large."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kcache.runs import Grid, Run

MOST = 60
"""Of a run's grids so many at most, at even distances, the first and the last among them."""

LARGE = 400_000
"""Bytes beyond which a grid becomes a WebP."""


def pictures(runs: dict[str, Run]) -> list[list[dict[str, Any]]]:
    """For each run its grids: ``step``, ``src`` (a data URI), and what stands in the ``cells``."""
    return [
        [
            {"step": grid.step, "src": data_uri(grid.path), "cells": [_cell(cell) for cell in grid.cells]}
            for grid in spread(run.grids)
        ]
        for run in runs.values()
    ]


def spread(grids: Sequence[Grid]) -> list[Grid]:
    """`MOST` of them at even distances."""
    if len(grids) <= MOST:
        return list(grids)
    return [grids[round(i * (len(grids) - 1) / (MOST - 1))] for i in range(MOST)]


def data_uri(path: Path) -> str:
    """A picture's bytes as an address."""
    data, kind = path.read_bytes(), "png"
    if len(data) > LARGE:
        data, kind = _as_webp(data), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _as_webp(png: bytes) -> bytes:
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture:
        small = picture.convert("RGB")
    small.thumbnail((2400, 16000))  # WebP ends at 16,383 pixels, and a page's pictures are looked at, not measured
    written = io.BytesIO()
    small.save(written, "WEBP", quality=88)
    return written.getvalue()


def _cell(cell: dict[str, Any]) -> dict[str, str]:
    return {name: str(cell[name]) for name in ("caption", "kind", "seed") if cell.get(name) is not None}
