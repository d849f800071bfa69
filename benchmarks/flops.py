"""Counts what one training step computes, with the frozen encoders and without.

Run ``python benchmarks/flops.py``; nothing is computed, so it takes seconds and no memory.
"""

from collections.abc import Callable
from typing import Any

import torch
from architecture import models
from torch.utils.flop_counter import FlopCounterMode

from kcache.training.trimming import run_prior


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


def main() -> None:
    """Print the table that the README shows."""
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


if __name__ == "__main__":
    main()
