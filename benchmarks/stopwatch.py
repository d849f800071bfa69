"""Runs a program as it is, notes the time and the memory that its updates take, and ends it after the last of them.

    python benchmarks/stopwatch.py RESULT WARM TIMED train.py --its-options ...
    python benchmarks/stopwatch.py RESULT WARM TIMED -m kcache train ...

The clock starts when the optimizer has made WARM updates and stops TIMED updates later: torch tells of each by its hook
for every optimizer. Nothing of the program is changed, and only these two moments wait for the GPU. What the program
would do after its last update, such as saving, is left out. RESULT is a JSON file; it is not there where the program
failed, or made too few updates.
"""

import json
import os
import resource
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


class Stopwatch:
    """Counts updates, and writes down what those after the first ``warm`` took."""

    def __init__(self, result: Path, warm: int, timed: int) -> None:
        self.result, self.warm, self.timed = result, warm, timed
        self.updates, self.began = 0, (0.0, 0.0)

    def updated(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """What torch calls after each update."""
        self.updates += 1
        if self.updates == self.warm:
            self.began = clocks()
        elif self.updates == self.warm + self.timed:
            self.finish(clocks())

    def finish(self, ended: tuple[float, float]) -> None:
        """Write the result and end the process."""
        wall, processor = (end - begin for begin, end in zip(self.began, ended, strict=True))
        cuda = torch.cuda.is_available()
        found = {
            "seconds": wall / self.timed,
            "processor seconds": processor / self.timed,
            "peak bytes": torch.cuda.max_memory_allocated() if cuda else peak_resident(),
        }
        self.result.write_text(json.dumps(found), encoding="utf-8")
        sys.stdout.flush()
        os._exit(0)


def clocks() -> tuple[float, float]:
    """The time when the GPU has done all it was told, and the processor time that this process has had."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter(), time.process_time()


def peak_resident() -> int:
    """The most bytes of the machine's memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Set the watch, and run what comes after it on the command line."""
    result, warm, timed, *program = sys.argv[1:]
    register_optimizer_step_post_hook(Stopwatch(Path(result), int(warm), int(timed)).updated)
    if program[0] == "-m":
        sys.path[0], sys.argv = str(Path.cwd()), program[1:]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(program[0]).parent), program
        runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main()
