"""The page that the demo ends with: pictures before and after, the style's dataset, and every command that was run."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kcache import __version__, pages
from kcache.report_pictures import data_uri
from kcache.shards import durable

SAMPLES = 24
"""Pictures of the style's dataset that the page shows."""


@dataclass(frozen=True)
class Step:
    """One command that the demo ran: what it shows, what would be typed, and how long it took."""

    title: str
    command: str
    seconds: float


def write_page(folder: Path, prompts: Sequence[str], steps: Sequence[Step]) -> Path:
    """Write ``demo.html`` into a demo's folder, in which ``before-after.png`` and ``stickers`` lie already."""
    style = pages.asset("report", "page.css")
    page = pages.render(
        pages.asset("demo", "page.html"),
        version=__version__,
        folder=str(folder),
        prompts=prompts,
        steps=steps,
        seconds=sum(step.seconds for step in steps),
        sheet=data_uri(folder / "before-after.png"),
        samples=_samples(folder / "stickers"),
        style=style,
        policy=pages.policy("", style),
    )
    path = folder / "demo.html"
    durable.replace(path, page.encode())
    return path


def _samples(stickers: Path) -> str:
    """Pictures at even distances through the style's dataset, on one sheet, as an address."""
    from PIL import Image

    from kcache.grids import grid

    paths = sorted(stickers.glob("*.png"))
    chosen = paths[:: max(1, len(paths) // SAMPLES)][:SAMPLES]
    written = io.BytesIO()
    grid([Image.open(path).convert("RGB") for path in chosen], columns=8).save(written, "WEBP", quality=88)
    return f"data:image/webp;base64,{base64.b64encode(written.getvalue()).decode()}"
