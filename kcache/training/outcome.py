"""What a run leaves in OUT: the result, the best of its points, and the record and README that say how to use it."""

import json
import shutil
from pathlib import Path
from typing import Any

from kcache.shards import durable
from kcache.whole_folder import TEMPORARY, put_in_place, whole_folder

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
        staging = self._output_dir / f"{TEMPORARY}result"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        self._weights.save(model, staging)
        put_in_place(staging / self._weights.result, self._output_dir / self._weights.result)
        staging.rmdir()
        self._describe(self._output_dir, state)
        write_card(self._output_dir)

    def save_best(self, model: Any, state: TrainState) -> None:
        """The weights as they are now, as the best so far."""
        with whole_folder(self._output_dir / BEST, RETRY) as folder:
            self._weights.save(model, folder)
            self._describe(folder, state)

    def promote_best(self, state: TrainState) -> None:
        """Make the best so far the result."""
        staging = self._output_dir / f"{TEMPORARY}result"
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(self._output_dir / BEST, staging)
        put_in_place(staging / self._weights.result, self._output_dir / self._weights.result)
        shutil.rmtree(staging)
        self._describe(self._output_dir, state)
        write_card(self._output_dir)

    def prepare_upload(self) -> None:
        """Make the repository that ``--push-to-hub`` asks for; KcacheError before any training where that fails."""
        self._repo_id = hub.prepare(self._config)

    def upload(self) -> None:
        """Upload the result where that was asked for."""
        if self._repo_id is not None:
            hub.upload(self._config, self._repo_id, self._output_dir)

    def _describe(self, folder: Path, state: TrainState) -> None:
        """``training.json``, which makes a folder one that can be begun from."""
        options = public_options(self._config) | {"seed": state.seed}
        record = {"stage": self._stage.name, "trained_from": self._trained_from, "step": state.step, "options": options}
        durable.replace(folder / "training.json", (json.dumps(record, indent=1) + "\n").encode())
