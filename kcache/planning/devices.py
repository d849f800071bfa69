"""How fast GPUs are by their makers' data sheets, and how fast this machine multiplies matrices."""

import time
from dataclasses import dataclass

import torch

from kcache.shards import UsageError


@dataclass(frozen=True)
class Speed:
    """What bounds an update: matrix products in bf16 (operations a second) and the device's memory (bytes a second)."""

    name: str
    operations: float
    bandwidth: float
    memory: int
    """Bytes that it has."""
    source: str


def _of(name: str, teraflops: float, bandwidth: float, gigabytes: int, source: str) -> Speed:
    return Speed(name, teraflops * 1e12, bandwidth * 1e9, gigabytes * 10**9, source)


_GA102 = "NVIDIA Ampere GA102 GPU architecture whitepaper"
_ADA = "NVIDIA Ada GPU architecture whitepaper"

DEVICES = {
    "rtx-3070": _of("GeForce RTX 3070", 40.6, 448, 8, _GA102),
    "rtx-3080": _of("GeForce RTX 3080", 59.5, 760, 10, _GA102),
    "rtx-3090": _of("GeForce RTX 3090", 71.2, 936, 24, _GA102),
    "rtx-4080": _of("GeForce RTX 4080", 97.5, 717, 16, _ADA),
    "rtx-4090": _of("GeForce RTX 4090", 165.2, 1008, 24, _ADA),
    "rtx-a6000": _of("RTX A6000", 154.8, 768, 48, "NVIDIA RTX A6000 data sheet"),
    "a10": _of("A10", 125.0, 600, 24, "NVIDIA A10 data sheet"),
    "l4": _of("L4", 121.0, 300, 24, "NVIDIA L4 data sheet"),
    "l40s": _of("L40S", 362.0, 864, 48, "NVIDIA L40S data sheet"),
    "a100": _of("A100 SXM 80 GB", 312.0, 2039, 80, "NVIDIA A100 data sheet"),
    "h100": _of("H100 SXM", 989.4, 3350, 80, "NVIDIA H100 data sheet"),
    "h200": _of("H200 SXM", 989.4, 4800, 141, "NVIDIA H200 data sheet"),
}
"""Dense bf16 products summed in fp32, which is what training does, without the sparsity that data sheets double."""

HERE = "here"
"""What ``--device`` calls the machine that the command runs on."""
_SIDE = {"cuda": 8192, "cpu": 1024}
_SECONDS = 0.5


def find_speed(name: str) -> Speed:
    """The device of a name in `DEVICES`, or this machine's, measured within a second. UsageError for another name."""
    if name == HERE:
        return measure()
    if name not in DEVICES:
        raise UsageError(f"--device '{name}' is none of {', '.join(DEVICES)}, and {HERE} for this machine, measured")
    return DEVICES[name]


def measure() -> Speed:
    """Matrix products of this machine in what it trains in (bf16 on CUDA, else fp32), and copies in its memory."""
    from kcache.devices import default_device

    device = default_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    side = _SIDE.get(device.type, 2048)
    matrix, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    products = _repeated(lambda: torch.mm(matrix, matrix, out=other), device)
    copies = _repeated(lambda: other.copy_(matrix), device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"this machine's {device.type}"
    return Speed(
        name,
        operations=2 * side**3 * products,
        bandwidth=2 * matrix.nbytes * copies,
        memory=memory_here(),
        source="measured now, as products of matrices and copies of them",
    )


def memory_here() -> int:
    """Bytes of the GPU's memory, or of this machine's where it has none."""
    import psutil

    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return int(psutil.virtual_memory().total)


def _repeated(function: object, device: torch.device) -> float:
    """How often in a second ``function`` is done."""
    assert callable(function)
    function()  # the first takes longer
    _wait(device)
    began, times = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < _SECONDS or times < 2:
        function()
        _wait(device)
        times += 1
    return times / passed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
