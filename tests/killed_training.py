"""Trainings in forked children, each killed with SIGKILL at a random moment; test_survival.py runs it as a program.

Usage: ``python killed_training.py JOBS.json``. A job has a stage, options, and how often to kill; the undisturbed run
goes to OUT-undisturbed. This process has loaded everything before it forks, so that a kill costs no start of Python.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from killed import start, wait
from tqdm import tqdm

from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.loop import Geometry
from kcache.training.sources import MicroBatch
from kcache.training.train import train

MOST, LONGEST = 4, 0.08
"""Updates after which a child is killed, at most, and seconds after the last of them."""

Config = PriorConfig | DecoderConfig


def run_and_tell(config: Config, pipe: int) -> None:
    """One training that tells of each update."""
    micro_batches = Geometry.micro_batches

    def told(*given: Any) -> Iterator[MicroBatch]:
        for batch in micro_batches(*given):
            os.write(pipe, b"x")
            yield batch

    Geometry.micro_batches = told  # type: ignore[method-assign]
    train(config)


def killed_after(config: Config, updates: int, seconds: float) -> int:
    """One training that is killed so many seconds after an update was read; returns its exit code."""
    told, tell = os.pipe()
    pid = start(lambda: run_and_tell(config, tell))
    os.close(tell)
    for _ in range(1 + updates):
        os.read(told, 1)  # nothing, and at once, where the child has ended
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.close(told)
    return wait(pid)


def kill_again_and_again(config: Config, kills: int, seed: int) -> dict[str, Any]:
    """Kill a training and go on from its last checkpoint, over and over; then let it come to its end."""
    moments, out = random.Random(seed), Path(config.output_dir)
    undisturbed = replace(config, output_dir=f"{out}-undisturbed", resume_from_checkpoint=None)
    codes = [wait(start(lambda: train(undisturbed)))]
    steps, halves = [], 0
    for _ in range(kills):
        code = killed_after(config, moments.randint(0, MOST), moments.uniform(0, LONGEST))
        if code != -signal.SIGKILL:
            break
        steps.append(max((int(p.name.split("-")[1]) for p in out.glob("checkpoint-*")), default=0))
        halves += any(out.glob(".tmp-*"))
    codes.append(wait(start(lambda: train(config))))
    return {"codes": codes, "steps": steps, "halves": halves}


def main() -> None:
    """Do the jobs in the file that was named."""
    torch.set_num_threads(1)  # a thread pool would not survive the fork
    tqdm.monitor_interval = 0
    configs: dict[str, Any] = {"prior": PriorConfig, "decoder": DecoderConfig}
    answers = {}
    for name, job in json.loads(Path(sys.argv[1]).read_text()).items():
        config = configs[job["stage"]](**job["options"])
        train(replace(config, output_dir=f"{config.output_dir}-warm", max_train_steps=1))  # loads what is to be loaded
        answers[name] = kill_again_and_again(config, job["kills"], job["seed"])
    print(json.dumps(answers))  # noqa: T201  (the answer)


if __name__ == "__main__":
    main()
