"""Where everything that a run measures goes: ``OUT/metrics.jsonl``, ``OUT/run.json`` and the trackers."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kcache.progress import logger
from kcache.runs import METRICS, RECORD, read_lines, read_record
from kcache.shards import KcacheError, durable

from .config import TrainConfig
from .run_record import flat_options, make_record
from .trackers import TRACKERS, Picture, log_with, refuse_token


class Metrics:
    """The lines, records and trackers of one run; all of it on the main process, and nothing on the others."""

    def __init__(self, config: TrainConfig, accelerator: Any, output_dir: Path) -> None:
        """UsageError where a tracker would store a secret; nothing is written or opened yet."""
        self._config, self._accelerator, self._output_dir = config, accelerator, output_dir
        self._names = log_with(config.report_to)
        refuse_token(self._names, config.hub_token)
        self._trackers: list[Any] = []

    def start(self, run: dict[str, Any]) -> None:
        """Begin at the update ``run["step"]``: lines of later ones are taken out, since these are done again.

        ``run`` goes into ``run.json`` beside the options and versions; the report reads ``stage``, ``max_steps``,
        ``samples``, ``global_batch``, ``seed`` and ``caches`` of it (see `run_record`). KcacheError where a tracker
        does not start.
        """
        if not self._accelerator.is_main_process:
            return
        step = int(run["step"])
        _take_out_later_lines(self._output_dir / METRICS, step)
        record = make_record(self._config, run, read_record(self._output_dir) if step else {})
        durable.replace(self._output_dir / RECORD, (json.dumps(record, indent=1) + "\n").encode())
        if self._names:
            self._start_trackers(record["id"], step)

    def log(self, values: dict[str, Any], step: int) -> None:
        """One line of ``metrics.jsonl``, and the same to the trackers. What is not a finite number is null there."""
        if not self._accelerator.is_main_process:
            return
        values = {name: value for name, value in values.items() if name != "step"}
        line = {"step": step, **{name: _finite(value) for name, value in values.items()}}
        with open(self._output_dir / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        told = {name: value for name, value in values.items() if value is not None}
        self._tell("takes no numbers", lambda tracker: tracker.log(told, step=step))

    def pictures(self, name: str, pictures: Sequence[Picture], step: int) -> None:
        """Send pictures with their captions to the trackers; ``name`` is what they are listed under."""
        if pictures:
            self._tell(
                "takes no pictures",
                lambda tracker: TRACKERS[tracker.name].show(tracker.tracker, name, pictures, step),
            )

    def finish(self) -> None:
        """Close the trackers. Safe before `start`, after an error, and twice."""
        trackers, self._trackers = self._trackers, []
        for tracker in trackers:
            try:
                tracker.finish()
            except Exception as error:  # each library raises its own; what was measured is in metrics.jsonl
                logger.warning("%s did not close (%s); metrics.jsonl has all that was measured", tracker.name, error)

    def _start_trackers(self, run_id: str, step: int) -> None:
        begun = {name: TRACKERS[name].begin(self._output_dir, run_id, step) for name in self._names}
        for path in (value for arguments in begun.values() for key, value in arguments.items() if key == "dir"):
            Path(path).mkdir(parents=True, exist_ok=True)
        try:
            self._accelerator.init_trackers(self._config.tracker_project_name, flat_options(self._config), begun)
        except Exception as error:  # each library raises its own
            self._trackers = [tracker for tracker in self._accelerator.trackers if hasattr(tracker, "tracker")]
            cause = " ".join(str(error).split()).rstrip(". ") or type(error).__name__
            raise KcacheError(
                f"--report-to {self._config.report_to} does not start ({cause}); log in as it says, choose another"
                " tracker, or leave --report-to out: OUT/metrics.jsonl has everything"
            ) from error
        self._trackers = list(self._accelerator.trackers)
        logger.info("reporting to %s", ", ".join(self._names))

    def _tell(self, trouble: str, say: Callable[[Any], None]) -> None:
        """Tell every tracker; one that fails is left out from now on, since hours of training are worth more."""
        for tracker in list(self._trackers):
            try:
                say(tracker)
            except Exception as error:  # each library raises its own
                self._trackers.remove(tracker)
                logger.warning(
                    "%s %s any more (%s) and is left out from here on; metrics.jsonl goes on",
                    tracker.name,
                    trouble,
                    " ".join(str(error).split()),
                )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _take_out_later_lines(path: Path, step: int) -> None:
    """Keep the lines up to an update, whole or as it was; of a run that begins anew, none."""
    if not path.is_file():
        return
    kept = [line for line in read_lines(path) if 0 < step >= line["step"]]
    durable.replace(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
