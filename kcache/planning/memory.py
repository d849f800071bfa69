"""How many bytes training holds at most: weights, gradients, states, averages and activations, and when they meet."""

from dataclasses import dataclass

from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.ema import PART
from kcache.training.optimizers import is_one_by_one

from .counting import Segment
from .passes import Pass

Config = PriorConfig | DecoderConfig

STATES = {"adamw": 8.0, "adamw8bit": 2.03, "sgd": 0.0}
"""Bytes of state for a trained number; in 8 bits with one scale for 256 of them. See benchmarks/optimizer_states.py."""


@dataclass(frozen=True)
class Memory:
    """Bytes on the device: parts that lie there all the time, and the most that there is at any time of an update."""

    weights: int
    states: int
    average: int
    gradients: int
    """All of them; 0 where each is used as soon as it is known."""
    activations: int
    """What the forward pass leaves for backward."""
    peak: int


def memory(config: Config, counted: Pass, batch: int, *, autocast: bool) -> Memory:
    """Of an update of ``batch`` samples at once, as `kcache.training` does it with these options."""
    segments = counted.segments(batch)
    is_checkpointed = config.gradient_checkpointing
    size = 2 if config.weights_dtype == "bf16" else 4
    states = 0 if config.offload_optimizer else round(STATES[config.optimizer] * counted.trained)
    average = 4 * counted.trained if config.use_ema else 0
    gradients = 0 if config.update_in_backward else size * counted.trained
    held = counted.weights + states + average
    kept = [segment.kept_outside if is_checkpointed else segment.kept for segment in segments]
    forward = sum(kept) + (_casts(counted) if autocast and is_checkpointed else 0)
    peaks = [
        forward,
        _backward(config, segments, kept, size),
        gradients + round(_update(config, size) * counted.largest),
        4 * min(counted.trained, max(PART, counted.largest)) if config.use_ema else 0,  # what the average takes in
    ]
    return Memory(counted.weights, states, average, gradients, forward, held + max(peaks))


def _casts(counted: Pass) -> int:
    """Copies of weights in bf16, which autocast holds until the forward pass is over."""
    return sum(segment.inside for segment in counted.none)


def _backward(config: Config, segments: list[Segment], kept: list[int], size: int) -> int:
    """The most that backward holds: it lets activations go and makes gradients, from the last segment to the first."""
    most, gradients, left = 0, 0, sum(kept)
    for segment, mine in zip(reversed(segments), reversed(kept), strict=True):
        again = segment.inside if config.gradient_checkpointing else 0
        now = left + again + segment.largest + 2 * segment.output  # gradients of what is kept, and of both ends
        if config.update_in_backward:
            now += round((size + _update(config, size)) * segment.largest_trained)
        else:
            gradients += size * segment.trained
        most, left = max(most, now + gradients), left - mine
    return most


def _update(config: Config, size: int) -> float:
    """Bytes that an update needs for a number of the tensor that it is at, beside its weight and gradient."""
    if not is_one_by_one(config):
        return 0.0
    states = STATES[config.optimizer] if config.offload_optimizer else 0.0
    return (8.0 if size == 2 else 0.0) + states  # weight and gradient in fp32
