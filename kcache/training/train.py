"""A training run: from a cache and a checkpoint to a trained component that loads in diffusers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from kcache.lora_file import LORA_FILE
from kcache.progress import logger
from kcache.runs import METRICS, read_lines
from kcache.shards import KcacheError, UsageError, layout

from . import checkpointing
from .checks import check_config
from .config import DecoderConfig, PriorConfig
from .engine import make_accelerator, require_agreement
from .mixture import open_caches, open_snapshots
from .outcome import BEST
from .run import TrainingRun, TrainReport
from .stages import make_stage
from .weights import make_weights


def train(config: PriorConfig | DecoderConfig) -> TrainReport:
    """Train one component from a cache alone, or go on from a checkpoint, and write the result to ``output_dir``.

    KcacheError, before anything is written, when cache, checkpoint and options do not fit together.
    """
    check_config(config)
    output_dir = Path(config.output_dir)
    caches = open_caches(config)
    accelerator = make_accelerator(config)
    if accelerator.mixed_precision != "no":
        config = replace(config, mixed_precision=accelerator.mixed_precision)  # the launcher may have chosen it
    if config.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    with _alone_in(output_dir, accelerator):
        resumed = _find_resumed(config, output_dir)
        stage = make_stage(config, *caches)
        weights = make_weights(config, stage.subfolder)
        snapshots = open_snapshots(caches, stage.columns, partial=config.partial)
        seen = {f"the cache {snapshot.cache.name} in state": snapshot.digest[:12] for snapshot in snapshots}
        require_agreement(accelerator, {"the checkpoint to go on from": str(resumed), **seen})
        return TrainingRun(config, accelerator, stage, weights, snapshots, resumed).train()


@contextmanager
def _alone_in(output_dir: Path, accelerator: Any) -> Iterator[None]:
    """Hold the lock of ``output_dir``: two runs in one folder would overwrite each other's checkpoints."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        yield
        return
    for path in (output_dir, *output_dir.parents):
        if path.is_file():
            raise KcacheError(f"{path} is a file; name a folder with --output-dir")
    output_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output_dir / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise KcacheError(f"another run is writing to {output_dir}; name another --output-dir") from None
    try:
        checkpointing.recover(output_dir)
        accelerator.wait_for_everyone()
        yield
    finally:
        if os.name != "nt":  # Windows does not let go of a file that is open; there the empty lock stays.
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        if not any(output_dir.iterdir()):
            output_dir.rmdir()  # refused before anything was written: leave nothing behind


def _find_resumed(config: PriorConfig | DecoderConfig, output_dir: Path) -> Path | None:
    if (output_dir / layout.ROOT_RECORD).exists():
        raise UsageError(f"{output_dir} is a cache; name another folder with --output-dir")
    if config.resume_from_checkpoint:
        found = checkpointing.find_checkpoint(output_dir, config.resume_from_checkpoint)
        if found is not None:
            return found
    results = (output_dir / name for name in ("prior", "unet", LORA_FILE, BEST))
    old = [path.name for path in (*checkpointing.checkpoints(output_dir), *results) if path.exists()]
    if old == [BEST] and config.resume_from_checkpoint:
        old = []  # a run that ended between its first validation and its first checkpoint is begun anew, as is its best
    if old and config.resume_from_checkpoint:
        stage = "prior" if isinstance(config, PriorConfig) else "decoder"
        raise KcacheError(
            f"{output_dir} holds a result ({old[0]}) and no checkpoint to go on from; start from it in another folder"
            f" with --pretrained-{stage}-model-name-or-path {output_dir}"
        )
    has_curves = any("loss" in line for line in read_lines(output_dir / METRICS))
    if has_curves and not old and not config.resume_from_checkpoint:
        old = [METRICS]  # of a run that ended before its first checkpoint
    if old:
        raise KcacheError(
            f"{output_dir} already holds a run ({', '.join(old[:3])}); go on with --resume-from-checkpoint latest,"
            " or name another --output-dir"
        )
    if config.resume_from_checkpoint:
        logger.info("no checkpoint in %s yet: starting a new run", output_dir)
    return None
