"""The charts of a report: which quantities stand in which, and their curves in some thousand points."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kcache.runs import Run, Series

POINTS = 1500
"""A longer curve is drawn as means, with the range between the lowest and highest of each."""


@dataclass(frozen=True)
class Quantity:
    """How one quantity is shown. ``best``: whether the ``lowest`` or ``highest`` is marked; ``noisy``: smoothed."""

    title: str
    section: str
    unit: str = ""
    best: str = ""
    noisy: bool = False


QUANTITIES = {
    "loss": Quantity("Training loss", "Loss", noisy=True),
    "validation_loss": Quantity("Validation loss", "Loss", best="lowest"),
    "probe_loss": Quantity("Loss on fixed draws", "Loss"),
    "validation_cosine": Quantity("Cosine similarity, sampled to true", "Validation", best="highest"),
    "validation_r1": Quantity("Retrieval, R@1", "Validation", "share", best="highest"),
    "validation_r5": Quantity("Retrieval, R@5", "Validation", "share", best="highest"),
    "learning_rate": Quantity("Learning rate", "The update"),
    "gradient_norm": Quantity("Gradient norm", "The update", noisy=True),
    "samples_per_second": Quantity("Samples per second", "Speed and memory", noisy=True),
    "data_wait": Quantity("Waiting for data", "Speed and memory", "share", noisy=True),
    "peak_memory_bytes": Quantity("Peak memory", "Speed and memory", "bytes"),
}
"""In the order of the page; what a run measured beside these comes last, under its own name."""

_BAND = re.compile(r"validation_loss_(\d+)_(\d+)")


def charts(runs: dict[str, Run]) -> list[dict[str, Any]]:
    """Every chart as the page's script takes it. Lines of one chart differ by colour: runs, or bands of one run."""
    names = dict.fromkeys(name for run in runs.values() for name in run.series)
    bands = sorted((name for name in names if _BAND.fullmatch(name)), key=_band)
    known = [name for name in QUANTITIES if name in names]
    others = [name for name in names if name not in QUANTITIES and name not in bands]
    made = [_chart(QUANTITIES[name], _by_run(runs, name)) for name in known]
    made += _band_charts(runs, bands)
    made += [_chart(Quantity(name.replace("_", " "), "Also measured"), _by_run(runs, name)) for name in others]
    order = list(dict.fromkeys(quantity.section for quantity in QUANTITIES.values()))
    return sorted(made, key=lambda chart: order.index(chart["section"]) if chart["section"] in order else len(order))


def curve(series: Series) -> dict[str, list[Any]]:
    """``steps`` and ``values``; of more than `POINTS`, means of equal parts with their ``low`` and ``high``."""
    steps, values = series.steps, series.values
    if len(steps) <= POINTS:
        return {"steps": steps, "values": [_short(value) for value in values]}
    parts = [slice(len(steps) * i // POINTS, len(steps) * (i + 1) // POINTS) for i in range(POINTS)]
    found = [[value for value in values[part] if value is not None] for part in parts]
    return {
        "steps": [steps[part][-1] for part in parts],
        "values": [_short(sum(some) / len(some)) if some else None for some in found],
        "low": [_short(min(some, default=None)) for some in found],
        "high": [_short(max(some, default=None)) for some in found],
    }


def _by_run(runs: dict[str, Run], name: str) -> Iterator[dict[str, Any]]:
    for i, (run_name, run) in enumerate(runs.items()):
        if name in run.series:
            yield {"run": i, "label": run_name, "colour": i, **curve(run.series[name])}


def _band_charts(runs: dict[str, Run], bands: list[str]) -> list[dict[str, Any]]:
    """The bands of one run beside each other; of several runs a chart for each band."""
    if len(runs) > 1:
        return [
            _chart(Quantity(f"Validation loss, {_said(name)}", "Validation"), _by_run(runs, name)) for name in bands
        ]
    lines = [line | {"label": _said(name), "colour": i} for i, name in enumerate(bands) for line in _by_run(runs, name)]
    return [_chart(Quantity("Validation loss by timestep", "Validation"), iter(lines))] if lines else []


def _chart(quantity: Quantity, lines: Iterator[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": quantity.title,
        "section": quantity.section,
        "unit": quantity.unit,
        "best": quantity.best,
        "noisy": quantity.noisy,
        "lines": list(lines),
    }


def _band(name: str) -> int:
    match = _BAND.fullmatch(name)
    return int(match[1]) if match else 0


def _said(name: str) -> str:
    return "timesteps {} to {}".format(*name.split("_")[-2:])


def _short(value: float | None) -> float | None:
    """Six digits: more than a screen shows, and half the size of the page."""
    return None if value is None else float(f"{value:.6g}")
