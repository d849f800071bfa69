"""Checkpoints: whole or absent, without pickles, and enough to go on bit for bit."""

import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from kcache.progress import logger
from kcache.shards import KcacheError
from kcache.shards.records import dump_record, load_record
from kcache.whole_folder import OLD, TEMPORARY, whole_folder

from .weights import Weights

PREFIX = "checkpoint-"
RETRY = "run the same command with --resume-from-checkpoint latest"
"""What to do when a disk was full."""
_STATE, _TENSORS = "state.json", "optimizer.pt"


@dataclass(frozen=True)
class TrainState:
    """Where a run is, and what must be the same for it to go on exactly."""

    stage: str
    step: int
    seed: int
    global_batch: int
    snapshot: str
    columns: list[str]
    samples: int
    first_probe: float | None = None
    generations: dict[str, list[list[int]]] | None = None
    """The files that the snapshot pinned (None in checkpoints of older versions), to say what has changed since."""
    mixed: list[str] = field(default_factory=list)
    """The snapshots of the caches that are mixed in."""
    selection: dict[str, Any] | None = None
    """The options that chose the samples (None in checkpoints of older versions)."""
    chosen: str | None = None
    """What names the samples that were trained on."""
    windows: list[int | None] | None = None
    """The shards of each cache that are shuffled at a time (None in checkpoints of older versions: all of them)."""
    best_loss: float | None = None
    best_step: int | None = None
    worse: int = 0
    """Validations since the best one."""


def save_checkpoint(
    output_dir: Path, state: TrainState, model: Any, weights: Weights, tensors: dict[str, Any], limit: int | None
) -> Path:
    """Write ``checkpoint-STEP`` and, when it is safe, remove the oldest beyond ``limit``.

    It holds what is trained as the result has it, the optimizer (and average, and gradient scaler) as tensors, and the
    state.
    """
    path = output_dir / f"{PREFIX}{state.step}"
    with whole_folder(path, RETRY) as folder:
        weights.save(model, folder)
        torch.save(tensors, folder / _TENSORS)
        (folder / _STATE).write_bytes(dump_record(asdict(state)))
    if limit is not None:
        # What was just saved stays, even where a run resumed from an older checkpoint left later ones beside it.
        others = [other for other in checkpoints(output_dir) if other != path]
        for old in others[: max(0, len(others) + 1 - limit)]:
            half = output_dir / f"{TEMPORARY}{old.name}"  # a kill leaves it whole, or for `recover` to clear up
            os.rename(old, half)
            shutil.rmtree(half)
    return path


def load_state(path: Path) -> TrainState:
    """The state in a checkpoint. KcacheError when it is not one."""
    if not (path / _STATE).is_file():
        raise KcacheError(
            f"{path} is not a kcache checkpoint; give --resume-from-checkpoint latest or a checkpoint-N folder"
        )
    return TrainState(**load_record(path / _STATE))


def load_tensors(path: Path) -> dict[str, Any]:
    """Optimizer and scaler of a checkpoint. Loads tensors and plain values only, never a pickled object."""
    try:
        tensors: dict[str, Any] = torch.load(path / _TENSORS, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different class for each kind of damage.
        raise _unreadable(path / _TENSORS, error) from error
    return tensors


def _unreadable(path: Path, error: Exception) -> KcacheError:
    kind = type(error).__name__
    return KcacheError(
        f"{path} does not load (cut, damaged, or not what kcache wrote: {kind}); resume from another checkpoint"
    )


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    found = [p for p in output_dir.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix(PREFIX)))


def find_checkpoint(output_dir: Path, wanted: str) -> Path | None:
    """The checkpoint that ``--resume-from-checkpoint`` names; None for ``latest`` where there is none yet."""
    if wanted == "latest":
        found = checkpoints(output_dir)
        return found[-1] if found else None
    for path in (Path(wanted), output_dir / wanted):
        if path.is_dir():
            return path
    have = ", ".join(p.name for p in checkpoints(output_dir)) or "none"
    raise KcacheError(f"there is no checkpoint {wanted} (in {output_dir}: {have}); give 'latest' or one of these")


def refuse_other(path: Path, saved: TrainState, now: TrainState, changes: str, accept_new_snapshot: bool) -> None:
    """KcacheError naming the first thing that differs between a checkpoint and the run that would go on from it.

    ``changes`` says how the snapshots differ; ``accept_new_snapshot`` lets them.
    """
    if changes and saved.stage == now.stage and saved.columns == now.columns and len(saved.mixed) == len(now.mixed):
        if not accept_new_snapshot:
            raise KcacheError(
                f"the cache is not what {path} was trained on ({changes}); go on with the cache as it is now by"
                " --accept-new-snapshot, or start a new run in another --output-dir"
            )
        logger.warning("the cache is not what %s was trained on (%s); going on with it as it is now", path, changes)
        saved = replace(saved, snapshot=now.snapshot, samples=now.samples, mixed=now.mixed, chosen=now.chosen)
    for name, remedy in _REMEDIES.items():
        old, new = getattr(saved, name), getattr(now, name)
        if old is not None and old != new:
            one, other = _shown(name, old, new)
            raise KcacheError(f"{path} was made with {name} {one} and this run has {other}; {remedy}")


_ANOTHER_CACHE = "the cache is another or has changed; start a new run in another --output-dir"
_REMEDIES = {
    "stage": "resume it with the other trainer",
    "columns": "give the options that choose columns (--resolution, --text-column, views) as they were",
    "snapshot": _ANOTHER_CACHE,
    "samples": _ANOTHER_CACHE,
    "mixed": "give --mix as it was",
    "selection": "give the options that choose samples as they were, or start a new run in another --output-dir",
    "chosen": "what chooses the samples has changed in the cache; start a new run in another --output-dir",
    "global_batch": "choose --train-batch-size and --gradient-accumulation-steps so that their product, times the"
    " number of processes, is the same",
    "seed": "leave --seed out, or give the same",
}
"""What must be the same, and what to do where it is not; None in a checkpoint of an older version is not compared."""


def _shown(name: str, old: Any, new: Any) -> tuple[Any, Any]:
    """Two values that differ, as a sentence has room for them."""
    if name in ("snapshot", "chosen"):
        return old[:12], new[:12]
    if name == "mixed":
        return f"of {len(old)} further caches", f"{len(new)}"
    if name == "selection":
        different = [key for key in old | new if old.get(key) != new.get(key)]
        return tuple(", ".join(f"{key} {part.get(key)}" for key in different) for part in (old, new))  # type: ignore[return-value]
    return old, new


def recover(output_dir: Path) -> None:
    """Clear up after a run that was killed while it wrote: finish the exchange of a folder, drop a half-written one."""
    for aside in output_dir.glob(f"{OLD}*"):
        name = output_dir / aside.name.removeprefix(OLD)
        shutil.rmtree(aside) if name.exists() else os.rename(aside, name)
    for half in output_dir.glob(f"{TEMPORARY}*"):
        shutil.rmtree(half) if half.is_dir() else half.unlink()
