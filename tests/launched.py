"""Several processes on this machine: trainings in them, and what each left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
TORCHRUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ACCELERATE = [sys.executable, "-W", "ignore", "-m", "accelerate.commands.launch"]
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}
"""What ``accelerate launch`` puts into the environment of processes that shard the weights."""

Jobs = dict[str, dict[str, Any]]
Done = dict[str, dict[str, Any]]


def together(folder: Path, jobs: Jobs, **environment: str) -> Done:
    """Run trainings in two processes, one after the other; what became of each by its name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    line = [*TORCHRUN, str(Path(__file__).with_name("together.py")), str(folder / "jobs.json")]
    ran = subprocess.run(line, cwd=ROOT, env=environ(**environment), capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    done: Done = json.loads((folder / "jobs.done.json").read_text())
    return done


def environ(**more: str) -> dict[str, str]:
    """The environment of a process that finds kcache in this checkout."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths, **more}


def updates(out: Path) -> list[dict[str, float]]:
    """What ``metrics.jsonl`` tells, but for what the machine has a part in."""
    of_the_machine = {"samples_per_second", "data_wait", "peak_memory_bytes"}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in of_the_machine} for line in lines]


def result(out: Path) -> dict[str, torch.Tensor]:
    """The trained weights in OUT."""
    (file,) = [*out.glob("*/diffusion_pytorch_model.safetensors"), *out.glob("pytorch_lora_weights.safetensors")]
    return load_file(file)
