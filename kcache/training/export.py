"""The result of a run: the trained component in the hub's layout, the record of the run, and a model card."""

import json
from pathlib import Path
from typing import Any

from kcache.checkpoints import Checkpoint
from kcache.shards import durable

from .card import write_card
from .checkpointing import whole_folder
from .run_record import SECRETS
from .stages import Stage


def save_result(output_dir: Path, model: Any, stage: Stage, trained_from: str, options: dict[str, Any]) -> None:
    """Write ``prior/`` or ``unet/``, ``training.json`` and ``README.md``, each whole or not at all."""
    with whole_folder(output_dir / stage.subfolder) as folder:
        model.save_pretrained(str(folder), safe_serialization=True)
    save_record(output_dir, stage, trained_from, options)


def save_record(output_dir: Path, stage: Stage, trained_from: str, options: dict[str, Any]) -> None:
    """Write ``training.json`` and ``README.md`` for a result that lies in ``output_dir``, a component or a LoRA."""
    trained_from = Checkpoint(trained_from).base().name_or_path
    if Path(trained_from).is_dir():
        trained_from = str(Path(trained_from).resolve())  # so that the result works from any folder
    told = {name: value for name, value in options.items() if name not in SECRETS}
    record = {"stage": stage.name, "trained_from": trained_from, "options": told}
    durable.replace(output_dir / "training.json", (json.dumps(record, indent=1) + "\n").encode())
    write_card(output_dir)
