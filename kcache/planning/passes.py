"""One pass of the prior or the decoder as training has it: what it keeps and computes for each sample of a batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.lora import add_lora
from kcache.training.precision import STATISTICS, apply_dtypes
from kcache.training.trimming import run_prior

from .counting import Segment, count, count_operations

Config = PriorConfig | DecoderConfig


@dataclass(frozen=True)
class Subject:
    """What is trained: the configuration of its component, and the shape of a sample."""

    architecture: Mapping[str, Any]
    tokens: int = 77
    """Of the prior: text positions that a batch has."""
    draws: int = 1
    """Of the prior: noise draws that share a caption's text, each with three tokens of its own."""
    latents: tuple[int, int] = (64, 64)
    """Of the decoder: height and width."""


@dataclass(frozen=True)
class Pass:
    """A forward pass, affine in the batch: the segments of none and what each sample adds to them."""

    none: list[Segment]
    each: list[Segment]
    flops: int
    """Of one sample in forward."""
    weights: int
    """Bytes of all parameters and buffers."""
    frozen: int
    """Bytes of those that are not trained."""
    trained: int
    """How many numbers are trained."""
    largest: int
    """How many the largest of the trained tensors has."""

    def segments(self, batch: int) -> list[Segment]:
        """Of a batch."""
        return [
            _combined(none, each, lambda a, b: a + batch * b) for none, each in zip(self.none, self.each, strict=True)
        ]


def count_pass(config: Config, subject: Subject, autocast: bool) -> Pass:
    """Run what ``config`` trains without data. Its weights lie in the dtypes that ``config`` says."""
    model = make_model(config, subject)
    with FakeTensorMode():
        give_memory(model)
        is_checkpointed = _checkpointed(isinstance(config, PriorConfig))
        flops = count_operations(run_of(model, subject, 1))
        two, three = (count(model, run_of(model, subject, batch), is_checkpointed, autocast) for batch in (2, 3))
        each = [_combined(a, b, lambda a, b: b - a) for a, b in zip(two, three, strict=True)]
        none = [_combined(a, b, lambda a, b: a - 2 * b) for a, b in zip(two, each, strict=True)]
        trained = [p for p in model.parameters() if p.requires_grad]
        return Pass(
            none,
            each,
            flops,
            weights=sum(t.nbytes for t in (*model.parameters(), *model.buffers())),
            frozen=sum(p.nbytes for p in model.parameters() if not p.requires_grad),
            trained=sum(p.numel() for p in trained),
            largest=max(p.numel() for p in trained),
        )


def make_model(config: Config, subject: Subject) -> Any:
    """The component with what is trained of it, in training mode, on torch's device without memory."""
    from diffusers import PriorTransformer, UNet2DConditionModel

    kind = PriorTransformer if isinstance(config, PriorConfig) else UNet2DConditionModel
    architecture = {name: value for name, value in subject.architecture.items() if not name.startswith("_")}
    if isinstance(config, PriorConfig):
        architecture["num_embeddings"] = max(architecture["num_embeddings"], _positions(subject))
    with torch.device("meta"):
        model = kind(**architecture)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in STATISTICS)
        if config.lora:
            add_lora(model, config, 0)
        apply_dtypes(model, config)
    return model.train()


def give_memory(model: nn.Module) -> None:
    """Put tensors on the CPU in place of those on torch's device without memory: within `FakeTensorMode`, fake ones."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            there = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(there, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def run_of(model: Any, subject: Subject, batch: int) -> Callable[[], Any]:
    """A forward pass up to a scalar, on a batch of zeros."""
    timesteps_B = torch.zeros(batch, dtype=torch.long)
    if "embedding_dim" in model.config and "num_embeddings" in model.config:
        width, text = model.config.clip_embed_dim or model.config.embedding_dim, model.config.embedding_dim
        embeds_BD, hidden_BLD = torch.zeros(batch, width), torch.zeros(batch, _positions(subject), text)
        text_BD = torch.zeros(batch, model.config.embedding_proj_dim or text)
        lengths_B = torch.full((batch,), _positions(subject))
        return lambda: (run_prior(model, embeds_BD, timesteps_B, text_BD, hidden_BLD, lengths_B).float() ** 2).mean()
    noisy_BCHW = torch.zeros(batch, model.config.in_channels, *subject.latents)
    condition = {"image_embeds": torch.zeros(batch, model.config.encoder_hid_dim)}
    return lambda: (model(noisy_BCHW, timesteps_B, None, added_cond_kwargs=condition).sample.float() ** 2).mean()


def _positions(subject: Subject) -> int:
    """Text positions of a pass that has as many tokens as the captions with all their draws."""
    return subject.tokens + 3 * (subject.draws - 1)


def _checkpointed(is_prior: bool) -> Callable[[str], bool]:
    """Which modules ``--gradient-checkpointing`` runs again: the prior's blocks, and the UNet's as diffusers has it."""
    if is_prior:
        return lambda name: name.startswith("transformer_blocks.")
    return lambda name: ".resnets." in name


def _combined(one: Segment, other: Segment, how: Callable[[int, int], int]) -> Segment:
    return Segment(*(how(getattr(one, field.name), getattr(other, field.name)) for field in fields(Segment)))
