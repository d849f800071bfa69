"""One page on one or several training runs: HTML that holds everything it shows and asks the network for nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kcache import __version__, pages, report_curves, report_pictures, report_tables
from kcache.runs import METRICS, Run, read_run
from kcache.shards import KcacheError, UsageError, durable


@dataclass(frozen=True)
class ReportConfig:
    """The options of ``kcache report``."""

    outs: tuple[str, ...]
    output: str = "report.html"


@dataclass(frozen=True)
class WrittenReport:
    """What was written."""

    output: str
    runs: int
    pictures: int
    bytes: int


def report(config: ReportConfig) -> WrittenReport:
    """Write the page. Runs that go on or were killed are shown as far as they are; KcacheError for what is no run."""
    if not config.outs:
        raise UsageError("no run was named; give the --output-dir of one: kcache report OUT -o report.html")
    output = Path(config.output)
    if output.is_dir() or any(parent.is_file() for parent in output.parents):
        raise KcacheError(f"{output} cannot be a page: it is a folder, or lies below a file; choose another with -o")
    folders = list({Path(out).resolve(): Path(out) for out in config.outs}.values())
    for folder in folders:
        _require_run(folder)
    runs = {name: read_run(folder) for name, folder in zip(distinct_names(folders), folders, strict=True)}
    page = render(runs, datetime.now(UTC)).encode()
    durable.replace(output, page)
    return WrittenReport(str(output), len(runs), sum(len(run.grids) for run in runs.values()), len(page))


def render(runs: dict[str, Run], made: datetime) -> str:
    """The page on some runs, by the names that it shows them under."""
    charts = report_curves.charts(runs)
    data = {"runs": list(runs), "charts": charts, "pictures": report_pictures.pictures(runs)}
    script = "\n".join(pages.asset("report", name) for name in ("chart.js", "page.js"))
    style = pages.asset("report", "page.css")
    return pages.render(
        pages.asset("report", "page.html"),
        made=made,
        version=__version__,
        runs=runs,
        sections=list(dict.fromkeys(chart["section"] for chart in charts)),
        tables=report_tables,
        data=data,
        script=script,
        style=style,
        policy=pages.policy(script, style),
    )


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell the folders apart: ``a`` and ``b``, or ``one/out`` and ``two/out``."""
    whole = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _require_run(folder: Path) -> None:
    if (folder / METRICS).is_file():
        return
    if not folder.is_dir():
        raise KcacheError(f"{folder} is not a folder; name the --output-dir of a training run")
    inside = any(folder.glob(f"*/{METRICS}"))
    hint = f"; it holds runs, so name these: kcache report {folder}/*" if inside else ""
    raise KcacheError(f"{folder} has no {METRICS}, which 'kcache train' writes into its --output-dir{hint}")
