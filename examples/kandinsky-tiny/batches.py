"""Endless shuffled batches of row numbers."""

import random
from collections.abc import Iterator


def shuffled(count: int, size: int, dice: random.Random) -> Iterator[list[int]]:
    """Rows 0..count-1 in a new order each pass; the rest of a pass that fills no batch is left out."""
    rows = list(range(count))
    while True:
        dice.shuffle(rows)
        yield from (rows[start : start + size] for start in range(0, count - size + 1, size))
