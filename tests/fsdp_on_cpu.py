"""The command line with accelerate told that processes on a CPU are of a kind that it shards models among.

accelerate has FSDP for GPUs only, while torch's works on a CPU as well (gloo). With this, all else is as on GPUs.
"""

import os

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from kcache.cli.main import main


def allow() -> None:
    """To be called before accelerate looks for devices."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda self, *_: ("gloo", DistributedType.MULTI_GPU)
    torch.distributed.init_process_group("gloo")


def forget() -> None:
    """Let accelerate find out anew what it is to do, which it does once in a process."""
    AcceleratorState._reset_state()
    if PartialState._shared_state:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


if __name__ == "__main__":
    allow()
    main()
