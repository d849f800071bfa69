"""The state that a run starts from: new, or as a checkpoint left it."""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kcache.progress import logger
from kcache.shards import Snapshot
from kcache.shards.local_cache import LocalCache

from .changes import describe_changes
from .checkpointing import TrainState, refuse_other
from .chosen import selection_record
from .config import TrainConfig
from .loop import Geometry
from .low_memory import refuse_accumulation
from .mixture import Mixture
from .stages import Stage
from .windows import WindowSizes, kept_sizes, window_sizes


def make_geometry(config: TrainConfig, accelerator: Any, saved: TrainState | None) -> Geometry:
    """As the options say; going on from ``saved`` with other processes, an update keeps its samples where it can."""
    geometry = Geometry(
        config.train_batch_size,
        config.gradient_accumulation_steps,
        accelerator.num_processes,
        accelerator.process_index,
    )
    kept = geometry.keeping(saved.global_batch) if saved else geometry
    if kept != geometry and accelerator.is_main_process:
        logger.info(
            "--gradient-accumulation-steps is %d instead of %d, so that an update has %d samples as before",
            kept.accumulation,
            geometry.accumulation,
            kept.global_batch,
        )
    refuse_accumulation(config, kept.accumulation)
    accelerator.gradient_accumulation_steps = kept.accumulation  # the environment may say otherwise
    return kept


def make_seed(config: TrainConfig, accelerator: Any, saved: TrainState | None) -> int:
    """The seed that was asked for, or the checkpoint's, or one that nobody chose, the same in every process."""
    from accelerate.utils import broadcast

    if config.seed is not None:
        return config.seed
    if saved is not None:
        return saved.seed
    return int(broadcast(torch.tensor(secrets.randbits(31), device=accelerator.device)).item())


def make_windows(snapshots: Sequence[Snapshot], local: LocalCache | None, saved: TrainState | None) -> WindowSizes:
    """What fits into the local cache, or as the run that is gone on with has it: it is part of the order."""
    fitting = window_sizes(snapshots, local)
    if saved is None or len(saved.windows or fitting) != len(fitting):  # of other caches: it is refused further on
        return fitting
    return kept_sizes(saved.windows or [None] * len(snapshots), fitting)


def first_state(config: TrainConfig, stage: Stage, mixture: Mixture, geometry: Geometry, seed: int) -> TrainState:
    """A run before its first update."""
    first, *others = mixture.samples.snapshots
    return TrainState(
        stage=stage.name,
        step=0,
        seed=seed,
        global_batch=geometry.global_batch,
        snapshot=first.digest,
        columns=list(stage.columns),
        samples=len(first),
        generations=first.generations,
        mixed=[other.digest for other in others],
        selection=selection_record(config),
        chosen=mixture.digest,
        windows=mixture.windows,
    )


def resumed_state(checkpoint: Path, saved: TrainState, now: TrainState, mixture: Mixture, accept: bool) -> TrainState:
    """A run as ``saved`` left it. KcacheError where what it was trained on, or how, is not what ``now`` would be.

    ``accept`` lets the caches differ, and says how.
    """
    changes = _changes(saved, now, mixture.samples.snapshots)
    refuse_other(checkpoint, saved, now, changes, accept)
    return replace(
        now,
        step=saved.step,
        first_probe=saved.first_probe,
        best_loss=saved.best_loss,
        best_step=saved.best_step,
        worse=saved.worse,
    )


def _changes(saved: TrainState, now: TrainState, snapshots: Sequence[Snapshot]) -> str:
    """How the caches are not what they were, or nothing."""
    changes = []
    if saved.snapshot != now.snapshot:
        changes.append(describe_changes(saved.generations, saved.samples, snapshots[0]))
    mixed = zip(saved.mixed, now.mixed, snapshots[1:], strict=False)
    changes += [f"{snapshot.cache.name} has changed" for old, new, snapshot in mixed if old != new]
    return "; ".join(changes)
