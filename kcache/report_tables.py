"""The tables of a report: scores, the options that differ, all options, and what a run was made from."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

from kcache.runs import Run


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and the number that its column is sorted by."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Column:
    """A column of the scores. ``highest``: whether more is better."""

    title: str
    cells: list[Cell]
    highest: bool = False

    @property
    def best(self) -> float | None:
        """The best number of the column, where several runs have one."""
        values = [cell.value for cell in self.cells if cell.value is not None]
        return (max if self.highest else min)(values) if len(values) > 1 else None


def scores(runs: dict[str, Run]) -> list[Column]:
    """What runs are compared by, those columns that any run has."""
    all_runs = list(runs.values())
    columns = [
        Column("best validation loss", [_best(run, "validation_loss") for run in all_runs]),
        Column("loss on fixed draws", [_probe(run) for run in all_runs]),
        Column("last training loss", [_last(run, "loss") for run in all_runs]),
        Column("best cosine", [_best(run, "validation_cosine", highest=True) for run in all_runs], highest=True),
        Column("best R@1", [_best(run, "validation_r1", highest=True) for run in all_runs], highest=True),
        Column("best R@5", [_best(run, "validation_r5", highest=True) for run in all_runs], highest=True),
        Column("samples/s", [_speed(run) for run in all_runs], highest=True),
    ]
    return [column for column in columns if any(cell.value is not None for cell in column.cells)]


def ranked(runs: dict[str, Run]) -> list[int]:
    """The runs from the best to the worst by the first column of `scores`; those without a score last."""
    columns = scores(runs)
    if not columns:
        return list(range(len(runs)))
    values = [cell.value for cell in columns[0].cells]
    return sorted(range(len(runs)), key=lambda i: (values[i] is None, values[i] or 0.0))


def state(run: Run) -> str:
    """How far a run is."""
    of = f" of {run.max_steps:,}" if run.max_steps else ""
    return f"finished, {run.step:,} updates" if run.finished else f"unfinished, update {run.step:,}{of}"


def facts(run: Run) -> Iterator[tuple[str, str]]:
    """One run in a few words."""
    yield "state", state(run)
    if samples := run.record.get("samples"):
        yield "samples", f"{samples:,}"
    if best := run.best("validation_loss"):
        yield "best validation loss", f"{best[1]:.4f} at update {best[0]:,}"
    first, last = run.first("probe_loss"), run.last("probe_loss")
    if first is not None and last is not None and len(run.series["probe_loss"].finite) > 1:
        yield "loss on fixed draws", f"{first:.4f} before, {last:.4f} after"
    elif (loss := run.last("loss")) is not None:
        yield "last training loss", f"{loss:.4f}"
    if speed := _speed(run).value:
        yield "samples per second", f"{speed:,.1f}"


def differing(runs: dict[str, Run]) -> list[tuple[str, list[str]]]:
    """The options that are not the same in all runs, and what each run has; where it writes is no difference."""
    names = dict.fromkeys(name for run in runs.values() for name in run.options)
    table = [(name, [said(run.options.get(name)) for run in runs.values()]) for name in names if name != "output_dir"]
    return [(name, values) for name, values in table if len(set(values)) > 1]


def given(run: Run) -> list[tuple[str, str]]:
    """The options that are other than when they are left out; of a run without such a record, all."""
    changed = run.record.get("changed")
    return [(name, said(value)) for name, value in run.options.items() if changed is None or name in changed]


def defaults(run: Run) -> list[tuple[str, str]]:
    """The other options."""
    shown = dict(given(run))
    return [(name, said(value)) for name, value in run.options.items() if name not in shown]


def caches(run: Run) -> list[dict[str, Any]]:
    """The caches that a run read, each with what makes it that one."""
    return [
        {"root": str(cache.get("root", "")), "facts": list(_cache_facts(cache))}
        for cache in run.record.get("caches") or []
    ]


def starts(run: Run) -> list[tuple[str, int, str]]:
    """When a run was started or gone on with, from which update, and by which command."""
    return [
        (moment(str(start.get("time", ""))), int(start.get("step", 0)), start.get("command") or "from Python")
        for start in run.record.get("starts") or []
    ]


def moment(text: str) -> str:
    """``2026-11-24 21:52 UTC`` of a time as records have it."""
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return text


def versions(runs: dict[str, Run]) -> list[tuple[str, list[str]]]:
    """For each package what every run used."""
    found = [run.record.get("versions") or {} for run in runs.values()]
    names = dict.fromkeys(name for versions in found for name in versions)
    return [(name, [str(versions.get(name, "")) for versions in found]) for name in names]


def are_equal(versions: list[tuple[str, list[str]]]) -> bool:
    """Whether all runs used the same of every package."""
    return all(len(set(used)) == 1 for _, used in versions)


def said(value: Any) -> str:
    """An option's value as people write it."""
    if value is None or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(" ".join(map(str, item)) if isinstance(item, list | tuple) else str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cache_facts(cache: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in cache.items():
        if name == "columns" and isinstance(value, dict):
            for column, made in value.items():
                yield column, f"{str(made.get('fingerprint', ''))[:12]} from {made.get('from') or 'unknown'}"
        elif name == "snapshot":
            yield name, str(value)[:12]
        elif name != "root" and value is not None:
            yield name, f"{value:,}" if type(value) is int else said(value)


def _best(run: Run, name: str, *, highest: bool = False) -> Cell:
    best = run.best(name, highest=highest)
    return Cell(f"{best[1]:.4f} at {best[0]:,}", best[1]) if best else Cell("–")


def _last(run: Run, name: str) -> Cell:
    last = run.last(name)
    return Cell("–") if last is None else Cell(f"{last:.4f}", last)


def _probe(run: Run) -> Cell:
    """The loss on fixed draws after training; before it, it says nothing of the run."""
    last = run.last("probe_loss") if "probe_loss" in run.series and len(run.series["probe_loss"].finite) > 1 else None
    return Cell("–") if last is None else Cell(f"{last:.4f}", last)


def _speed(run: Run) -> Cell:
    rates = (
        [value for _, value in run.series["samples_per_second"].finite] if "samples_per_second" in run.series else []
    )
    return Cell(f"{median(rates):,.1f}", median(rates)) if rates else Cell("–")
