"""When a run validates: by updates or by epochs, before the first update and after the last."""

from collections.abc import Callable
from fractions import Fraction

from .config import TrainConfig


def validation_steps(config: TrainConfig, epoch: Fraction, global_batch: int, max_steps: int) -> Callable[[int], bool]:
    """Whether to validate after an update; ``epoch`` is the number of samples in one.

    By epochs as the reference does it: after the first one, and after every ``validation_epochs`` from there on (5, and
    1 for a LoRA).
    """
    every = config.validation_epochs or (1 if config.lora else 5)

    def due(step: int) -> bool:
        if step in (0, max_steps):
            return True
        if config.validation_steps is not None:
            return step % config.validation_steps == 0
        begun, done = (int(s * global_batch / epoch) for s in (step - 1, step))
        return any((number - 1) % every == 0 for number in range(begun + 1, done + 1))

    return due
