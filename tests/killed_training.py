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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from faults.killed import start, wait
from tqdm import tqdm

from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.loop import Objective
from kcache.training.objectives import Batch
from kcache.training.train import train

MOST, LONGEST = 4, 0.1
"""Updates after which a child is killed, at most, and seconds after the last of them."""

Config = PriorConfig | DecoderConfig


def run_and_tell(config: Config, pipe: int) -> None:
    """One training that tells of each update."""
    forward = Objective.forward

    def told(objective: Objective, batch: Batch) -> torch.Tensor:
        if objective.training:
            os.write(pipe, b"x")
        return forward(objective, batch)

    Objective.forward = told  # type: ignore[method-assign]
    train(config)


def killed_after(config: Config, updates: int, seconds: float, writing: bool) -> int:
    """One training that is killed so many seconds after an update began; returns its exit code.

    With ``writing`` it is killed as soon as something is half written after that update.
    """
    told, tell = os.pipe()
    pid = start(lambda: run_and_tell(config, tell))
    os.close(tell)
    alive = all(os.read(told, 1) for _ in range(1 + updates))  # nothing, and at once, where the child has ended
    if writing:
        while alive and not any(Path(config.output_dir).glob(".tmp-*")):
            alive = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    else:
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
    for number in range(kills):
        updates, seconds = moments.randint(0, MOST), moments.uniform(0, LONGEST)
        code = killed_after(config, updates, seconds, writing=number % 3 == 2)
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
