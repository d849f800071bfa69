"""Measures how many bytes of state each optimizer keeps for a parameter, in Kandinsky's two kinds of network.

Run ``python benchmarks/optimizer_states.py``; it prints the numbers of docs/optimizers.md within two minutes.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from architecture import PRIOR, UNET
from machine import add_json_option, describe, keep

from kcache.shards import KcacheError
from kcache.training.config import PriorConfig
from kcache.training.optimizers import OPTIMIZERS, make_optimizer, optimizer_state

SMALL_PRIOR = PRIOR | {"num_layers": 1}
SMALL_UNET = UNET | {
    "block_out_channels": (96, 192, 288, 384),
    "attention_head_dim": 32,
    "cross_attention_dim": 192,
    "encoder_hid_dim": 320,
}
"""One block of the prior, and the UNet at a quarter of its widths: as at full size, 75% of it are convolutions."""
ARGS = {"sgd": [(), ("momentum=0.9",)], "prodigy": [(), ("slice_p=11",)]}


def size(state: Any) -> int:
    """Bytes of all tensors in ``state``, however they are nested."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    return sum(map(size, state.values())) if isinstance(state, Mapping) else 0


def bytes_per_parameter(model: torch.nn.Module, optimizer: str, args: tuple[str, ...]) -> float:
    """State after two updates, over the parameters that the optimizer trains."""
    config = PriorConfig(cache="", output_dir="", optimizer=optimizer, optimizer_args=args, learning_rate=1.0)
    made = make_optimizer(config, model.parameters(), torch.device("cpu"))
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        made.step()
    return size(optimizer_state(made, config)["state"]) / sum(p.numel() for p in model.parameters())


def main() -> None:
    """Print a row for each optimizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_json_option(parser)
    options = parser.parse_args()
    machine, figures = describe("diffusers", "bitsandbytes"), dict[str, list[float] | str]()
    print("optimizer                  prior   decoder   (bytes of state for a parameter)")
    for name in OPTIMIZERS:
        for args in ARGS.get(name, [()]):
            prior, unet = diffusers.PriorTransformer(**SMALL_PRIOR), diffusers.UNet2DConditionModel(**SMALL_UNET)
            try:
                measured = [bytes_per_parameter(model, name, args) for model in (prior, unet)]
            except KcacheError as error:
                print(f"{name:24} {error}")
                figures[name] = str(error)
                continue
            figures[" ".join([name, *args])] = measured
            print(f"{' '.join([name, *args]):24}" + "".join(f"{value:9.2f}" for value in measured), flush=True)
    keep(options, machine, figures)


if __name__ == "__main__":
    main()
