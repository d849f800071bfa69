"""What torch compiles models with, and whether this machine has it."""

import importlib.util
import os
import shutil
from typing import TYPE_CHECKING

from kcache.shards.errors import UsageError

if TYPE_CHECKING:
    import torch

BACKEND = "inductor"


def require_compiler(device: "torch.device") -> None:
    """UsageError where this machine lacks what torch compiles for that device with."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise UsageError("--compile needs triton, which torch's builds for Linux bring along; leave it out here")
    elif not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise UsageError("--compile needs a C++ compiler on a CPU, and there is none; install g++, or leave it out")
