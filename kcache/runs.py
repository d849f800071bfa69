"""An OUT read back: what a run measured, what it was asked for and the pictures it made, in whatever state it is."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kcache.checkpoints import training_record
from kcache.shards.errors import KcacheError

METRICS, RECORD, PICTURES = "metrics.jsonl", "run.json", "validation"
"""The files and the folder in OUT that tell of a run: a line for each measurement, what began, grids of pictures."""

_GRID = re.compile(r"step-(\d+)\.png")

Line = dict[str, Any]


@dataclass(frozen=True)
class Series:
    """One quantity over a run. ``values`` are None where a line had no finite number."""

    steps: list[int]
    values: list[float | None]

    @property
    def finite(self) -> list[tuple[int, float]]:
        """``(step, value)`` of those that are numbers."""
        return [(step, value) for step, value in zip(self.steps, self.values, strict=True) if value is not None]


@dataclass(frozen=True)
class Grid:
    """One grid of validation pictures; each cell says its ``caption``, ``kind`` and ``seed``."""

    step: int
    path: Path
    cells: list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """What lies in one OUT; a run that goes on or was killed has no ``training``, an old one no ``record``."""

    folder: Path
    record: dict[str, Any]
    training: dict[str, Any]
    lines: list[Line]
    grids: list[Grid]

    @cached_property
    def series(self) -> dict[str, Series]:
        """Every quantity by its name. Of two lines of one update the later holds."""
        points: dict[str, dict[int, float | None]] = {}
        for line in self.lines:
            for name, value in line.items():
                if name != "step" and not isinstance(value, bool) and (value is None or isinstance(value, int | float)):
                    points.setdefault(name, {})[int(line["step"])] = value
        ordered = {name: sorted(found.items()) for name, found in points.items()}
        return {name: Series([s for s, _ in pairs], [v for _, v in pairs]) for name, pairs in ordered.items()}

    @property
    def stage(self) -> str:
        """``prior``, ``decoder``, or nothing where no record says it."""
        return str(self.record.get("stage") or self.training.get("stage") or "")

    @property
    def options(self) -> dict[str, Any]:
        """What the run was asked for."""
        return dict(self.record.get("options") or self.training.get("options") or {})

    @property
    def step(self) -> int:
        """The last update that a line tells of."""
        return max((int(line["step"]) for line in self.lines), default=0)

    @property
    def max_steps(self) -> int | None:
        """How many updates were asked for, where a record says it."""
        steps = self.record.get("max_steps") or self.options.get("max_train_steps")
        return int(steps) if steps else None

    @property
    def finished(self) -> bool:
        """Whether the run has a result and no update is left to do."""
        if "ended" in self.training:
            return self.step <= int(self.training["ended"])
        return bool(self.training) and (self.max_steps is None or self.step >= self.max_steps)

    @property
    def result_step(self) -> int:
        """The update whose weights are the result: the last one, or the best where training ended by it."""
        return int(self.training.get("step", self.step))

    @property
    def result_grid(self) -> Grid | None:
        """The pictures that were made with the weights of the result, or the last ones before."""
        return next((grid for grid in reversed(self.grids) if grid.step <= self.result_step), None)

    def best(self, name: str, *, highest: bool = False) -> tuple[int, float] | None:
        """``(step, value)`` of the best of a quantity, the first of equals; None where there is none."""
        points = self.series[name].finite if name in self.series else []
        return (max if highest else min)(points, key=lambda point: point[1], default=None)

    def last(self, name: str) -> float | None:
        """The last number of a quantity."""
        points = self.series[name].finite if name in self.series else []
        return points[-1][1] if points else None

    def first(self, name: str) -> float | None:
        """The first number of a quantity."""
        points = self.series[name].finite if name in self.series else []
        return points[0][1] if points else None


def read_run(folder: Path) -> Run:
    """Read an OUT, as far as it is written. KcacheError where a record in it is not one."""
    lines = list(read_lines(folder / METRICS))
    return Run(folder, read_record(folder), training_record(folder), lines, read_grids(folder))


def read_record(folder: Path) -> dict[str, Any]:
    """The ``run.json`` of an OUT, or nothing. KcacheError where it is not JSON."""
    path = folder / RECORD
    try:
        return dict(json.loads(path.read_bytes())) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise KcacheError(f"{path} is not a JSON object ({error}); remove it: the run goes on without it") from None


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a ``metrics.jsonl`` that are whole: the last one may have been cut as the run was killed."""
    if not path.is_file():
        return
    for text in path.read_text("utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and type(line.get("step")) is int:
            yield line


def read_grids(folder: Path) -> list[Grid]:
    """The grids of validation pictures in an OUT, in the order of their updates."""
    found = [(match, path) for path in (folder / PICTURES).glob("*.png") if (match := _GRID.fullmatch(path.name))]
    grids = [Grid(int(match[1]), path, _cells(path.with_suffix(".json"))) for match, path in found]
    return sorted(grids, key=lambda grid: grid.step)


def _cells(path: Path) -> list[dict[str, Any]]:
    """What stands in each cell of a grid; nothing where a run was killed between the picture and its record."""
    try:
        cells = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    cells = cells.get("cells") if isinstance(cells, dict) else cells
    return [cell for cell in cells if isinstance(cell, dict)] if isinstance(cells, list) else []
