"""Which device and which precision, named as on the command line."""

import math
from typing import TYPE_CHECKING

from kcache.shards.errors import KcacheError

if TYPE_CHECKING:
    import torch

DTYPES = ("fp32", "fp16", "bf16")


def default_device() -> "torch.device":
    """The first CUDA device, else Apple's GPU, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def find_device(name: str | None) -> "torch.device":
    """The device of that name, or `default_device`. KcacheError when this machine has no such device."""
    import torch

    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise KcacheError(
            f"there is no device '{name}' here; 'kcache doctor' shows those that there are, and cpu is always one"
        ) from None
    return device


def default_batch_size(device: "torch.device") -> int:
    """How many pictures or captions an encoder takes at once where nobody said: 16, and on CUDA what the card may hold.

    There 2 for each GiB of memory, from 8 to 128 and rounded down to a power of two, so that cards of one kind agree:
    MoVQ in fp16 is reckoned to take 0.3 GiB for a picture of 512 px (four activations of 128 channels), beside 4 GB of
    weights. Where it takes more, batches are halved.
    """
    import torch

    if device.type != "cuda":
        return 16
    gibibytes = torch.cuda.get_device_properties(device).total_memory / 2**30
    return max(8, min(128, 1 << int(math.log2(2 * gibibytes))))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or this machine had too little memory, in any of the ways that torch has."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "out of memory", "ALLOC_FAILED")
"""What the CPU's allocator, Apple's GPU, cuBLAS and cuDNN say; all are plain RuntimeErrors."""


def free_memory(device: "torch.device") -> None:
    """Give back what torch keeps of a GPU's memory for later, so that smaller tensors find room in one piece."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def inference_dtype(device: "torch.device") -> "torch.dtype":
    """What frozen models compute in where nobody said: fp16 on CUDA, fp32 elsewhere."""
    import torch

    return torch.float16 if device.type == "cuda" else torch.float32


def torch_dtype(name: str) -> "torch.dtype":
    """``fp32``, ``fp16`` or ``bf16`` as torch names it."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]
