"""How long an update takes: from what it computes and moves, and how fast a device does that."""

from kcache.training.config import DecoderConfig, PriorConfig

from .devices import Speed
from .memory import STATES
from .passes import Pass

UTILISATION = 0.4
"""The share of a data sheet's operations a second that training is taken to reach; of what was measured here, more."""
UTILISATION_OF_MEASURED = 0.7
LINK = 20e9
"""Bytes a second between host and GPU, one way: PCIe 4.0 x16 with pinned memory, about."""


def operations(config: PriorConfig | DecoderConfig, counted: Pass, batch: int) -> int:
    """Of an update: forward, and backward twice as much; half of it for frozen weights, once more where run again."""
    passes = (2 if config.lora else 3) + int(config.gradient_checkpointing)
    return passes * counted.flops * batch


def seconds(config: PriorConfig | DecoderConfig, counted: Pass, batch: int, speed: Speed, utilisation: float) -> float:
    """Of an update: its operations, then what the optimizer reads and writes once, and states that come and go."""
    state, size = STATES[config.optimizer], 2 if config.weights_dtype == "bf16" else 4
    moved = counted.trained * (3 * size + 2 * state + (12 if config.use_ema else 0))
    offloaded = counted.trained * 2 * state / LINK if config.offload_optimizer else 0.0
    return operations(config, counted, batch) / (speed.operations * utilisation) + moved / speed.bandwidth + offloaded
