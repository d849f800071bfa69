"""The learning rate of both trainings: a short linear warm-up, then half a cosine down to a hundredth."""

import math

WARM_UP = 0.03
FLOOR = 0.01


def cosine(step: int, steps: int) -> float:
    """The factor on the learning rate at `step` of `steps`."""
    warm = max(1, int(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2
