"""The command line with accelerate told that processes on a CPU are of a kind that it shards models among.

accelerate has FSDP for GPUs only, and torch's works on a CPU as well (gloo). With this, everything else is as on GPUs.
"""

import os

import torch

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from kcache.cli.main import main

PartialState._prepare_backend = lambda self, *_: ("gloo", DistributedType.MULTI_GPU)

if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    main()
