"""What a run leaves in OUT: the result, the best of its points, and the record and README that say how to use it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kcache.checkpoints import training_record
from kcache.progress import logger
from kcache.shards import durable
from kcache.whole_folder import TEMPORARY, is_full, not_written, put_in_place, whole_folder

from . import hub
from .card import write_card
from .checkpointing import RETRY, TrainState
from .config import DecoderConfig, PriorConfig
from .run_record import public_options
from .stages import Stage, start_of
from .weights import Weights

BEST = "best"
"""The folder in OUT with the weights of the best validation; a result in its own right."""


class Outcome:
    """Writes what a run leaves, each part whole or not at all. For the main process alone."""

    def __init__(self, config: PriorConfig | DecoderConfig, stage: Stage, weights: Weights) -> None:
        self._config, self._stage, self._weights = config, stage, weights
        self._output_dir = Path(config.output_dir)
        self._repo_id: str | None = None
        # A LoRA belongs to the very weights it was trained on; a component stands for itself, wherever it began.
        start = start_of(config)
        trained_from = start.name_or_path if config.lora else start.base().name_or_path
        if Path(trained_from).is_dir():
            trained_from = str(Path(trained_from).resolve())  # so that the result works from any folder
        self._trained_from = trained_from

    def save(self, model: Any, state: TrainState) -> None:
        """The weights as they are now, as the result."""
        with self._staging() as folder:
            self._weights.save(model, folder)
        self._describe(self._output_dir, state, state.step)
        write_card(self._output_dir)

    def save_best(self, model: Any, state: TrainState) -> None:
        """The weights as they are now, as the best so far."""
        with whole_folder(self._output_dir / BEST, RETRY) as folder:
            self._weights.save(model, folder)
            self._describe(folder, state, state.step)

    def with_known_best(self, state: TrainState) -> TrainState:
        """A resumed ``state``, without its best where OUT/best holds another: the run went on after that checkpoint.

        The same updates find the same best again; others find their own.
        """
        held = training_record(self._output_dir / BEST).get("step")
        if state.best_step is None or state.best_step == held:
            return state
        logger.warning(
            "%s is of update %s and the checkpoint knows of update %s as the best: the best is looked for anew",
            self._output_dir / BEST,
            held,
            state.best_step,
        )
        return replace(state, best_loss=None, best_step=None, worse=0)

    def promote_best(self, state: TrainState) -> None:
        """Make the best so far the result."""
        assert state.best_step is not None
        with self._staging() as folder:
            shutil.copytree(self._output_dir / BEST, folder, dirs_exist_ok=True)
        self._describe(self._output_dir, state, state.best_step)
        write_card(self._output_dir)

    def is_written(self, step: int) -> bool:
        """Whether OUT holds the result of a run that ended after this update."""
        record = training_record(self._output_dir)
        return record.get("ended") == step and (self._output_dir / self._weights.result).exists()

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        """A folder that is filled; the result in it is put in its place when all of it lies on stable storage."""
        result = self._output_dir / self._weights.result
        staging = self._output_dir / f"{TEMPORARY}result"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
            put_in_place(staging / self._weights.result, result)
        except Exception as error:
            if is_full(self._output_dir, error):
                raise not_written(result, RETRY) from error
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def prepare_upload(self) -> None:
        """Make the repository that ``--push-to-hub`` asks for; KcacheError before any training where that fails."""
        self._repo_id = hub.prepare(self._config)

    def upload(self) -> None:
        """Upload the result where that was asked for."""
        if self._repo_id is not None:
            hub.upload(self._config, self._repo_id, self._output_dir)

    def _describe(self, folder: Path, state: TrainState, step: int) -> None:
        """``training.json``, which makes a folder one to begin from: it has the weights after update ``step``."""
        options = public_options(self._config) | {"seed": state.seed}
        record = {
            "stage": self._stage.name,
            "trained_from": self._trained_from,
            "step": step,
            "ended": state.step,
            "options": options,
        }
        durable.replace(folder / "training.json", (json.dumps(record, indent=1) + "\n").encode())
