"""What a run leaves in OUT: the result, the best of its points, and the record and README that say how to use it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kcache.checkpoints import Checkpoint, training_record
from kcache.progress import logger
from kcache.shards import durable
from kcache.whole_folder import TEMPORARY, is_full, not_written, put_in_place, whole_folder

from .checkpointing import RETRY, TrainState
from .config import DecoderConfig, PriorConfig
from .export import readme
from .run_record import public_options
from .stages import Stage, checkpoint_name
from .weights import Weights

BEST = "best"
"""The folder in OUT with the weights of the best validation; a result in its own right."""


class Results:
    """Writes what a run leaves, each part whole or not at all. For the main process alone."""

    def __init__(self, config: PriorConfig | DecoderConfig, stage: Stage, weights: Weights) -> None:
        self._config, self._stage, self._weights = config, stage, weights
        self._output_dir = Path(config.output_dir)
        trained_from = Checkpoint(checkpoint_name(config)).base().name_or_path
        if Path(trained_from).is_dir():
            trained_from = str(Path(trained_from).resolve())  # so that the result works from any folder
        self._trained_from = trained_from

    def save(self, model: Any, state: TrainState, losses: dict[str, float]) -> None:
        """The weights as they are now, as the result."""
        with self._staging() as folder:
            self._weights.save(model, folder)
        self._describe(self._output_dir, state, losses)

    def save_best(self, model: Any, state: TrainState, loss: float) -> None:
        """The weights as they are now, as the best so far."""
        with whole_folder(self._output_dir / BEST, RETRY) as folder:
            self._weights.save(model, folder)
            self._describe(folder, state, {"held-out loss": loss})

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

    def promote_best(self, state: TrainState, losses: dict[str, float]) -> None:
        """Make the best so far the result."""
        with self._staging() as folder:
            shutil.copytree(self._output_dir / BEST, folder, dirs_exist_ok=True)
        self._describe(self._output_dir, state, losses)

    def is_written(self, step: int) -> bool:
        """Whether OUT holds the result of a run that ended after this update."""
        record = training_record(self._output_dir)
        return record.get("step") == step and (self._output_dir / self._weights.result).exists()

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

    def _describe(self, folder: Path, state: TrainState, losses: dict[str, float]) -> None:
        """``training.json``, which makes a folder one that can be begun from, and ``README.md``."""
        options = public_options(self._config) | {"seed": state.seed}
        record = {
            "stage": self._stage.name,
            "trained_from": self._trained_from,
            "step": state.step,
            "losses": losses,
            "options": options,
        }
        durable.replace(folder / "training.json", (json.dumps(record, indent=1) + "\n").encode())
        text = readme(self._output_dir, self._stage.name, self._trained_from, options)
        durable.replace(folder / "README.md", text.encode())
