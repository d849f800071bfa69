"""Draws docs/pictures/schedules.svg: the learning rate over a run for every ``--lr-scheduler``.

Run ``python benchmarks/schedule_picture.py`` in the root of the checkout; it takes seconds.
"""

from pathlib import Path
from typing import Any

import torch

from kcache.training.config import PriorConfig
from kcache.training.schedules import make_schedule

UPDATES, WARM_UP, WIDTH, HEIGHT, MARGIN, COLUMNS = 200, 30, 190, 70, 24, 3
SHOWN: dict[str, dict[str, Any]] = {
    "constant": {},
    "constant_with_warmup": {},
    "linear": {},
    "cosine": {},
    "cosine, --lr-num-cycles 1.5": {"lr_num_cycles": 1.5},
    "cosine_with_restarts, --lr-num-cycles 3": {"lr_num_cycles": 3.0},
    "polynomial, --lr-power 3": {"lr_power": 3.0},
    "piecewise_constant, 1:60,0.5:120,0.1": {"lr_step_rules": "1:60,0.5:120,0.1"},
}


def rates(name: str, given: dict[str, Any]) -> list[float]:
    """The rate of every update, as a share of ``--learning-rate``."""
    warm_up = {} if name in ("constant", "piecewise_constant") else {"lr_warmup_steps": WARM_UP}
    config = PriorConfig(cache="", output_dir="", lr_scheduler=name, **warm_up, **given)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    schedule, seen = make_schedule(config, optimizer, UPDATES, 0), []
    for _ in range(UPDATES):
        seen.append(schedule.get_last_lr()[0] / config.learning_rate)
        optimizer.step()
        schedule.step()
    return seen


def draw(place: int, title: str, values: list[float]) -> str:
    """One curve with its frame and title, at its place among all."""
    left, top = MARGIN + place % COLUMNS * (WIDTH + MARGIN), 2 * MARGIN + place // COLUMNS * (HEIGHT + 2 * MARGIN)
    points = " ".join(
        f"{left + WIDTH * update / (UPDATES - 1):.1f},{top + HEIGHT * (1 - value):.1f}"
        for update, value in enumerate(values)
    )
    return (
        f'<text x="{left}" y="{top - 7}">{title}</text>'
        f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#aaa"/>'
        f'<polyline points="{points}" fill="none" stroke="#c2410c" stroke-width="2"/>'
    )


def main() -> None:
    """Write the picture."""
    curves = [draw(i, title, rates(title.split(",")[0], given)) for i, (title, given) in enumerate(SHOWN.items())]
    rows = -(-len(curves) // COLUMNS)
    width, height = MARGIN + COLUMNS * (WIDTH + MARGIN), rows * (HEIGHT + 2 * MARGIN) + MARGIN
    size, font = f'width="{width}" height="{height}"', 'font-family="sans-serif" font-size="10"'
    head, ground = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>', f'<rect {size} fill="white"/>'
    Path("docs/pictures/schedules.svg").write_text("\n".join([head, ground, *curves, "</svg>"]) + "\n", "utf-8")


if __name__ == "__main__":
    main()
