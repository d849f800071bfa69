"""Trainings one after the other in one of several processes; `launched.together` calls `main` in each of them.

Each job is a stage, its options and whether to expect an error; the main process writes, beside the file of jobs, what
became of each. With ACCELERATE_USE_FSDP the weights are sharded.
"""

import json
import os
from pathlib import Path
from typing import Any

import fsdp_on_cpu
from accelerate.state import AcceleratorState

from kcache.shards import KcacheError
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.train import train

SHARDED = os.environ.get("ACCELERATE_USE_FSDP") == "true"
CONFIGS = {"prior": PriorConfig, "decoder": DecoderConfig}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One training, as the command line would do it, or the sentence with which it was refused."""
    fsdp_on_cpu.forget() if SHARDED else AcceleratorState._reset_state()  # the precision may be another
    options = {name: tuple(map(_tuple, value)) if isinstance(value, list) else value for name, value in job.items()}
    config: Any = CONFIGS[options.pop("stage")](**options)
    try:
        return {"step": train(config).step}
    except KcacheError as error:
        return {"refused": str(error)}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def main(jobs: Path) -> None:
    """Do the jobs in a file."""
    if SHARDED:
        fsdp_on_cpu.allow()
    done = {name: run(job) for name, job in json.loads(jobs.read_text()).items()}
    if os.environ["RANK"] == "0":
        jobs.with_suffix(".done.json").write_text(json.dumps(done))
