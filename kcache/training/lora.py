"""A LoRA in a model: which of its layers are adapted, and the adapters that are put there."""

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kcache.lora_file import ADAPTER
from kcache.shards import UsageError

from .config import TrainConfig

TARGETS = {
    "attention": ("to_q", "to_k", "to_v", "to_out", "add_k_proj", "add_v_proj"),
    "feed-forward": ("ff",),
    "convolutions": ("conv1", "conv2", "conv_shortcut"),
}
"""What ``--lora-targets`` calls by one name, as names of modules of the prior and the UNet."""


def add_lora(model: Any, config: TrainConfig, seed: int) -> None:
    """Freeze ``model`` and put fp32 adapters beside the layers that ``config.lora_targets`` names.

    They add nothing yet, since one of each pair is zero; the other is drawn by ``seed`` alone. (Hu et al. 2021, section
    4.1; with ``use_dora``, Liu et al. 2024.) UsageError when a target is not in the model.
    """
    from peft import LoraConfig

    alpha = config.rank if config.lora_alpha is None else config.lora_alpha
    adapters = LoraConfig(
        r=config.rank,
        lora_alpha=alpha,
        lora_dropout=config.lora_dropout,
        target_modules=layer_pattern(model, config.lora_targets),
        use_dora=config.use_dora,
    )
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(adapters, ADAPTER)


def layer_pattern(model: Any, targets: Sequence[str]) -> str:
    """A regular expression for the layers of ``model`` that ``targets`` name.

    A target is one of `TARGETS`, or the name of a module: of a layer, or of a part of the model with all layers in it.
    A pattern and not a list, which PEFT would keep as a set and so write to the file in any order.
    """
    layers = adaptable_layers(model)
    endings = set[str]()
    for target in targets:
        found = {ending for name in TARGETS.get(target, (target,)) for ending in _endings(layers, name)}
        if not found:
            raise _unknown(model, target, layers)
        endings |= found
    return rf"(?:.*\.)?(?:{'|'.join(ending.replace('.', chr(92) + '.') for ending in sorted(endings))})"


def adaptable_layers(model: Any) -> list[str]:
    """The names of all linear and convolution layers."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def _endings(layers: list[str], name: str) -> set[str]:
    """``ff.net.2`` of the layer ``transformer_blocks.0.ff.net.2`` for the name ``ff``."""
    dotted = [(f".{layer}.", layer) for layer in layers]
    return {layer[padded.index(f".{name}.") :] for padded, layer in dotted if f".{name}." in padded}


def _unknown(model: Any, target: str, layers: list[str]) -> UsageError:
    groups = [group for group, names in TARGETS.items() if any(_endings(layers, name) for name in names)]
    parts = {part for layer in layers for part in layer.split(".") if not part.isdigit()}
    near = difflib.get_close_matches(target, [*groups, *sorted(parts)], n=1)
    guess = f"; did you mean '{near[0]}'?" if near else ""
    return UsageError(
        f"{type(model).__name__} has no '{target}' for a LoRA; give --lora-targets of {', '.join(groups)}, or names of"
        f" modules: {', '.join(sorted(parts))}{guess}"
    )
