"""Counts what one training step computes, with the frozen encoders and without.

Run ``python benchmarks/flops.py``; nothing is computed, so it takes seconds and no memory.
"""

import argparse
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from architecture import PRIOR, models
from machine import add_json_option, describe, keep
from torch.utils.flop_counter import FlopCounterMode

from kcache.training.shared_text import attend_for_all_heads, places_of, run_draws
from kcache.training.trimming import run_prior, trimmed_length


def gflop(function: Callable[[], Any]) -> float:
    """GFLOP (a multiply-add is two) of one call, on the meta device: counted, not run."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


def count() -> dict[str, float]:
    """GFLOP for one sample of every part of a step."""
    with torch.device("meta"):
        model = models()
        pixels, tokens = torch.zeros(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.long)
        one, embed = torch.zeros(1, dtype=torch.long), torch.zeros(1, 1280)

        def prior(length: int) -> None:
            hidden, lengths = torch.zeros(1, length, 1280), torch.full((1,), length)
            run_prior(model["prior"], embed, one, embed, hidden, lengths).sum().backward()

        def unet(side: int) -> None:
            condition = {"image_embeds": embed}
            model["unet"](torch.zeros(1, 4, side, side), one, None, added_cond_kwargs=condition).sample.sum().backward()

        def movq(side: int) -> None:
            model["movq"].encode(torch.zeros(1, 3, side, side))

        frozen = torch.no_grad()
        counts = {
            "text": gflop(frozen(lambda: model["text"](tokens))),
            "vision": gflop(frozen(lambda: model["vision"](pixels))),
        }
        for side in (512, 768):
            counts[f"movq-{side}"] = gflop(frozen(lambda side=side: movq(side)))
            counts[f"unet-{side}"] = gflop(lambda side=side: unet(side // 8))
        counts |= {"prior-77": gflop(lambda: prior(77)), "prior-16": gflop(lambda: prior(16))}
        for name, one_model in model.items():
            parameters = sum(p.numel() for p in one_model.parameters())
            print(f"{name:8} {parameters / 1e9:5.2f} B parameters, {parameters * 2 / 1e9:4.1f} GB in fp16")
    return counts


def count_draws(batch: int = 64, shortest: int = 8, longest: int = 25) -> dict[tuple[int, bool], float]:
    """GFLOP for one sample of the prior's step, by the number of draws and whether captions are packed.

    The captions of a batch have all lengths from ``shortest`` to ``longest`` equally often, on average.
    """
    lengths, length = np.random.default_rng(0).integers(shortest, longest + 1, batch), trimmed_length(longest, 77)
    counts = {}
    with torch.device("meta"):
        model = diffusers.PriorTransformer(**PRIOR)
        attend_for_all_heads(model)
        text, hidden = torch.zeros(batch, 1280), torch.zeros(batch, length, 1280)

        def step(draws: int, places: Any) -> None:
            noisy, timesteps = torch.zeros(batch, draws, 1280), torch.zeros(batch, draws, dtype=torch.long)
            run_draws(model, noisy, timesteps, text, hidden, timesteps[:, 0], places).sum().backward()

        for draws in (1, 8):
            for pack in (False, True):
                places = torch.zeros(len(places_of(lengths, length, draws)), dtype=torch.long) if pack else None
                counts[draws, pack] = gflop(lambda draws=draws, places=places: step(draws, places)) / batch
    return counts


def main() -> None:
    """Print the table that the README shows, and what draws that share a caption cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_json_option(parser)
    options = parser.parse_args()
    c = count()
    prior = c["text"] + c["vision"]
    print("\nGFLOP for one sample      text  vision    MoVQ  trained fwd+bwd  reference step / cached step")
    row = "{:24} {:5.0f}  {:6.0f}  {:6.0f}  {:15.0f}  {:.2f}x"
    for length in (77, 16):
        trained = c[f"prior-{length}"]
        ratio = (prior + c["prior-77"]) / trained
        print(row.format(f"prior, {length} tokens cached", c["text"], c["vision"], 0, trained, ratio))
    for side in (512, 768):
        movq, trained = c[f"movq-{side}"], c[f"unet-{side}"]
        ratio = (c["vision"] + movq + trained) / trained
        print(row.format(f"decoder, {side} px", 0, c["vision"], movq, trained, ratio))
    print("\nprior, batch of 64 captions of 8 to 25 tokens    GFLOP/sample  reference step / it, samples  noise draws")
    draws_counted = {}
    for (draws, pack), trained in count_draws().items():
        name = f"{'packed' if pack else 'trimmed'}, {draws} draw{'s' if draws > 1 else ''}"
        draws_counted[name] = trained
        ratio = (prior + c["prior-77"]) / trained
        print(f"{name:48} {trained:12.0f} {ratio:27.2f}x {draws * ratio:10.1f}x")
    keep(options, describe("diffusers", "transformers"), {"GFLOP of a sample": c | draws_counted})


if __name__ == "__main__":
    main()
