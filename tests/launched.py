"""Several processes on this machine: trainings in them, and what each left behind."""

import json
import os
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
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


LOADED = ["accelerate", "diffusers", "peft", "transformers", "kcache.training.train", "kcache.training.stages"]
"""What a process has imported from which the others are forked, so that none of them spends seconds on it."""


def together(folder: Path, jobs: Jobs, **environment: str) -> Done:
    """Run trainings in two processes, one after the other; what became of each by its name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    in_two_processes(_do_jobs, folder / "jobs.json", **environment)
    done: Done = json.loads((folder / "jobs.done.json").read_text())
    return done


def _do_jobs(jobs: Path) -> None:
    import together

    together.main(jobs)


def in_two_processes(function: Callable[[Path], None], path: Path, **environment: str) -> str:
    """Call ``function(path)`` in two processes that find each other as those of torchrun do; what both said.

    torchrun itself takes seconds for each of three processes to begin; `TORCHRUN` is for what depends on it.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    files = [path.with_name(f"{path.name}.said-{rank}") for rank in range(2)]
    arguments = [
        (function, path, file, {**_of_rank(rank), "MASTER_PORT": str(store.port), **environment})
        for rank, file in enumerate(files)
    ]
    ranks = [context.Process(target=_as_rank, args=one) for one in arguments]
    for process in ranks:
        process.start()
    _wait(ranks)
    said = "".join(file.read_text() for file in files if file.exists())
    assert [process.exitcode for process in ranks] == [0, 0], said
    return said


def _of_rank(rank: int) -> dict[str, str]:
    """What torchrun puts into the environment of a process."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    meeting = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}  # it is the parent's
    return {**{name: str(value) for name, value in ranks.items()}, **meeting}


def _as_rank(function: Callable[[Path], None], path: Path, said: Path, environment: dict[str, str]) -> None:
    """One of the two, whose output goes to a file."""
    os.environ |= environment
    with said.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    function(path)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _wait(processes: list[BaseProcess]) -> None:
    """Until both have ended; where one fails, the other is not waited for."""
    deadline = time.monotonic() + 600
    while any(process.is_alive() for process in processes):
        if any(process.exitcode for process in processes) or time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.02)


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
