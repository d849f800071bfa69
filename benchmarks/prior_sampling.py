"""Measures sampling from the prior: the stock forward at 77 tokens, trimmed, and with the text run once for all steps.

Run ``python benchmarks/prior_sampling.py`` for a small prior on a CPU (a minute), or with ``--size full`` on a GPU. The
sides take turns; printed are medians of their times and of the first's over theirs, with lowest and highest.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import diffusers
import torch
from architecture import PRIOR
from machine import add_json_option, describe, keep, spread
from prior_setting import SMALL, TOKENS

from kcache.devices import default_device, inference_dtype
from kcache.progress import hush_libraries
from kcache.training.kept_text import make_predictor
from kcache.training.trimming import run_prior, trimmed_length

STEPS, GUIDED = 25, 2
"""The pipeline's default, and the rows of one caption: itself and the empty one."""


def sides(model: Any, rows: int, longest: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """What is run for ``rows`` captions of up to ``longest`` tokens, by name; the scheduler's part is in none."""
    generator, width = torch.Generator().manual_seed(0), model.config.embedding_dim
    lengths = torch.randint(2, longest + 1, (rows,), generator=generator).to(device)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, model.dtype)

    embeds, hidden, noisy = normal(rows, width), normal(rows, TOKENS, width), normal(rows, width)
    times = [torch.full((rows,), 1000 // STEPS * step, device=device) for step in range(STEPS)]
    short = hidden[:, : trimmed_length(longest, TOKENS)]

    def stepwise(states: torch.Tensor) -> Any:
        return [run_prior(model, noisy, at, embeds, states, lengths) for at in times]

    def once() -> Any:
        predict = make_predictor(model, embeds, short, lengths)
        return [predict(noisy, at) for at in times]

    return {"77 tokens": lambda: stepwise(hidden), "trimmed": lambda: stepwise(short), "text run once": once}


def main() -> None:
    """Measure what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "full"], default="small")
    parser.add_argument("--device", help="the first GPU, else the CPU")
    parser.add_argument("--captions", type=int, nargs="+", default=[1, 8], help="sampled together, with guidance")
    parser.add_argument("--longest", type=int, default=25, help="tokens of the longest caption")
    parser.add_argument("--rounds", type=int, default=5)
    add_json_option(parser)
    options = parser.parse_args()
    machine, figures = describe("diffusers"), dict[str, Any]()
    device = torch.device(options.device or default_device())
    hush_libraries()
    with device:
        model = diffusers.PriorTransformer(**PRIOR | (SMALL["prior"] if options.size == "small" else {}))
    model = model.to(inference_dtype(device)).eval()
    print(f"{options.size} size on {device}, {model.dtype}, {STEPS} steps with guidance")
    for captions in options.captions:
        seconds = measure(sides(model, GUIDED * captions, options.longest, device), options.rounds, device)
        figures[f"{captions} captions, seconds"] = seconds
        first = next(iter(seconds.values()))
        for name, taken in seconds.items():
            ratios = [one / other for one, other in zip(first, taken, strict=True)]
            print(f"{captions:4} captions, {name:14} {median(taken) * 1e3:9.1f} ms {spread(ratios)}")
        keep(options, machine, figures)


@torch.no_grad()
def measure(run: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every side in each round, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in run}
    for number in range(rounds + 1):
        for name, side in run.items():
            began = time.perf_counter()
            side()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main()
