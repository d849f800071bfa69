"""TensorBoard, Weights & Biases and Comet: which ``--report-to`` means, and how each begins and is shown pictures."""

import difflib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kcache.shards import KcacheError, UsageError


class Picture(Protocol):
    """A picture with what it shows. ``image`` is one of Pillow."""

    @property
    def caption(self) -> str: ...
    @property
    def image(self) -> Any: ...


@dataclass(frozen=True)
class Tracker:
    """A service that accelerate can report to: its extra of kcache, and whether it keeps the command line."""

    extra: str
    keeps_command: bool
    begin: Callable[[Path, str, int], dict[str, Any]]
    """From OUT, the run's id and the update that it goes on from to the arguments that open it."""
    show: Callable[[Any, str, Sequence[Picture], int], None]
    """Send pictures to the opened tracker."""


def log_with(report_to: str | None) -> list[str]:
    """The names for ``Accelerator(log_with=...)`` of ``--report-to``: one, several with commas between, or ``all``.

    UsageError for a name that is none; KcacheError for one whose package is not installed.
    """
    asked = [name.strip() for name in (report_to or "").split(",") if name.strip()]
    for name in asked:
        if name not in (*TRACKERS, "all"):
            raise UsageError(f"--report-to {name} is not known; choose {', '.join(TRACKERS)} or all{_near(name)}")
    if "all" in asked:
        return _installed()
    for name in asked:
        if not _is_installed(name):
            raise KcacheError(
                f"--report-to {name} needs a package that is not installed; run"
                f" 'pip install kcache[{TRACKERS[name].extra}]'"
            )
    return list(dict.fromkeys(asked))


def refuse_token(names: Sequence[str], hub_token: str | None) -> None:
    """UsageError where a tracker would store ``--hub-token``: two of them keep the command line of every run."""
    keeping = [name for name in names if TRACKERS[name].keeps_command]
    if hub_token and keeping:
        raise UsageError(
            f"{' and '.join(keeping)} would store --hub-token with the command line; run 'hf auth login' once, or set"
            " HF_TOKEN, and leave --hub-token out"
        )


def _installed() -> list[str]:
    names = [name for name in TRACKERS if _is_installed(name)]
    if not names:
        extras = ",".join(tracker.extra for tracker in TRACKERS.values())
        raise KcacheError(
            f"--report-to all finds no tracker installed; run 'pip install kcache[{extras}]' or name fewer"
        )
    return names


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _near(name: str) -> str:
    nearest = difflib.get_close_matches(name, [*TRACKERS, "all"], n=1)
    return f". Did you mean '{nearest[0]}'?" if nearest else ""


def _begin_tensorboard(output_dir: Path, run_id: str, step: int) -> dict[str, Any]:
    # What an earlier process told of later updates is hidden: they are done again.
    return {"purge_step": step + 1} if step else {}


def _begin_wandb(output_dir: Path, run_id: str, step: int) -> dict[str, Any]:
    return {"dir": str(output_dir), "name": output_dir.resolve().name, "id": run_id, "resume": "allow"}


def _begin_comet(output_dir: Path, run_id: str, step: int) -> dict[str, Any]:
    import comet_ml

    config = comet_ml.ExperimentConfig(name=output_dir.resolve().name, offline_directory=str(output_dir / "comet"))
    return {"experiment_key": run_id, "experiment_config": config}


def _show_tensorboard(writer: Any, name: str, pictures: Sequence[Picture], step: int) -> None:
    import numpy as np

    for number, picture in enumerate(pictures):
        pixels_HWC = np.asarray(picture.image.convert("RGB"))
        writer.add_image(f"{name}/{number} {picture.caption}", pixels_HWC, step, dataformats="HWC")
    writer.flush()


def _show_wandb(run: Any, name: str, pictures: Sequence[Picture], step: int) -> None:
    import wandb

    run.log({name: [wandb.Image(picture.image, caption=picture.caption) for picture in pictures]}, step=step)


def _show_comet(experiment: Any, name: str, pictures: Sequence[Picture], step: int) -> None:
    for number, picture in enumerate(pictures):
        experiment.log_image(picture.image, name=f"{name}/{number} {picture.caption}", step=step)


TRACKERS = {
    "tensorboard": Tracker("tensorboard", False, _begin_tensorboard, _show_tensorboard),
    "wandb": Tracker("wandb", True, _begin_wandb, _show_wandb),
    "comet_ml": Tracker("comet", True, _begin_comet, _show_comet),
}
"""By the name that accelerate and the reference have for each, which is also the module to import."""
