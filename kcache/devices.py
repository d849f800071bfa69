"""Which device and which precision, named as on the command line."""

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


def torch_dtype(name: str) -> "torch.dtype":
    """``fp32``, ``fp16`` or ``bf16`` as torch names it."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]
