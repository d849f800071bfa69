"""Compares the memory that `kcache plan` reckons with what updates take, counted on fake tensors or measured on a GPU.

Run ``python benchmarks/memory_model.py`` for tiny models, with ``--size full`` for Kandinsky's own. Without a CUDA
device every tensor of two updates is counted while it lives, and holds no data: full size takes minutes and no memory.
With one it is ``torch.cuda.max_memory_allocated``. It fails where a peak is more than 15% off.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, astuple
from typing import Any, NamedTuple

import torch
from architecture import PRIOR, UNET
from live_bytes import LiveBytes
from machine import add_json_option, describe, keep
from torch._subclasses.fake_tensor import FakeTensorMode

from kcache.planning.counting import norms_in_fp32
from kcache.planning.memory import Memory, memory
from kcache.planning.passes import Subject, count_pass, give_memory, make_model, run_of
from kcache.training import one_by_one
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.ema import Ema
from kcache.training.low_memory import FULL, LORA
from kcache.training.memory import apply_memory_options
from kcache.training.optimizers import OPTIMIZERS, Kind, make_optimizer

LIMIT = 0.15
HAS_CUDA = torch.cuda.is_available()
SMALL = {
    "prior": PRIOR | {"num_attention_heads": 8, "num_layers": 4, "embedding_dim": 512},
    "decoder": UNET
    | {
        "block_out_channels": (96, 192, 288, 384),
        "attention_head_dim": 32,
        "cross_attention_dim": 192,
        "encoder_hid_dim": 320,
        "layers_per_block": 1,
    },
}
ARCHITECTURES = {"tiny": SMALL, "full": {"prior": PRIOR, "decoder": UNET}}
CHECKPOINTED = {"gradient_checkpointing": True}


class Case(NamedTuple):
    """What is trained how; ``side`` is that of pictures in pixels, or the number of tokens."""

    name: str
    stage: str
    batch: int
    side: int
    options: dict[str, Any]
    autocast: bool = False


CASES = [
    Case("prior, defaults in bf16", "prior", 16, 77, {}, True),
    Case("prior, checkpointing", "prior", 64, 77, CHECKPOINTED, True),
    Case("prior, 24 tokens", "prior", 64, 24, {}, True),
    Case("prior, average", "prior", 16, 77, {"use_ema": True}, True),
    Case("prior, --low-memory", "prior", 16, 77, FULL),
    Case("prior, --low-memory, large batch", "prior", 256, 77, FULL),
    Case("prior, --low-memory --offload-optimizer", "prior", 16, 77, FULL | {"offload_optimizer": True}),
    Case("prior, --lora", "prior", 16, 77, {"lora": True}, True),
    Case("prior, --lora --low-memory", "prior", 16, 77, {"lora": True, **LORA}),
    Case("decoder 512, defaults in bf16", "decoder", 4, 512, {}, True),
    Case("decoder 512, checkpointing", "decoder", 4, 512, CHECKPOINTED, True),
    Case("decoder 512, --low-memory", "decoder", 4, 512, FULL),
    Case("decoder 768, --low-memory", "decoder", 4, 768, FULL),
    Case("decoder 512, bf16 weights alone", "decoder", 4, 512, {"weights_dtype": "bf16"}),
    Case("decoder 512, --lora", "decoder", 4, 512, {"lora": True}, True),
    Case("decoder 768, --lora --low-memory", "decoder", 1, 768, {"lora": True, **LORA}),
]


class EightBit(torch.optim.Optimizer):
    """States of the sizes that bitsandbytes' AdamW8bit has, which cannot be run on fake tensors."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, options)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make the states."""
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None and not self.state[parameter]:
                count = parameter.numel()
                self.state[parameter] = {
                    "state1": torch.empty(count, dtype=torch.uint8),
                    "state2": torch.empty(count, dtype=torch.uint8),
                    "absmax": torch.empty(2 * -(-count // 256)),
                }


def measured_peak(config: Any, subject: Subject, batch: int, autocast: bool) -> int:
    """The most bytes that two updates hold."""
    device = torch.device("cuda" if HAS_CUDA else "cpu")
    model: Any = make_model(config, subject)
    tracker = LiveBytes()
    with nullcontext() if HAS_CUDA else FakeTensorMode():
        _materialise(model, device)
        apply_memory_options(model, config)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer: Any = make_optimizer(config, trained, device)
        if config.offload_optimizer:
            optimizer._hosted = True  # here device and host are one
        ema = Ema(trained, config.ema_decay) if config.use_ema else None
        tracker.saw([*model.parameters(), *model.buffers(), *(ema.state_dict()["averages"] if ema else ())])
        with torch.device(device), nullcontext() if HAS_CUDA else tracker:
            run = run_of(model, subject, batch)
            for _ in range(2):
                update(model, run, config, optimizer, trained, autocast, device)
                if ema:
                    ema.step()
    return torch.cuda.max_memory_allocated() if HAS_CUDA else tracker.peak


def update(
    model: Any, run: Any, config: Any, optimizer: Any, trained: list[Any], autocast: bool, device: torch.device
) -> None:
    """One, as the loop does it."""
    with norms_in_fp32(model, autocast and not HAS_CUDA):
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = run()
        loss.backward()
    del loss
    if not config.update_in_backward:
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _materialise(model: Any, device: torch.device) -> None:
    if not HAS_CUDA:
        give_memory(model)
        return
    model.to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.01)
    torch.cuda.reset_peak_memory_stats()


@contextmanager
def on_fake_tensors() -> Iterator[None]:
    """Within it what cannot be run on fake tensors is replaced by what holds as much."""
    if HAS_CUDA:
        yield
        return
    generator, on_host, kind = one_by_one.rounding_generator, one_by_one._like_on_host, OPTIMIZERS["adamw8bit"]
    one_by_one.rounding_generator = lambda *_: None  # type: ignore[assignment,return-value]
    one_by_one._like_on_host = _not_counted
    OPTIMIZERS["adamw8bit"] = Kind(__name__, "EightBit", kind.adam)
    try:
        yield
    finally:
        one_by_one.rounding_generator, one_by_one._like_on_host = generator, on_host
        OPTIMIZERS["adamw8bit"] = kind


def _not_counted(tensor: torch.Tensor) -> torch.Tensor:
    LiveBytes.counting = False
    try:
        return torch.empty_like(tensor)
    finally:
        LiveBytes.counting = True


def compare(case: Case, size: str) -> tuple[Memory, int]:
    """What the model says of a case, and its peak."""
    architecture = ARCHITECTURES[size][case.stage]
    config_of = PriorConfig if case.stage == "prior" else DecoderConfig
    fused = {} if case.options.get("optimizer") else {"optimizer_args": ("fused=true",)}  # as it is on CUDA
    config = config_of(cache="", output_dir="", **case.options, **fused)
    side = case.side // 8
    subject = Subject(architecture, tokens=min(case.side, 77), latents=(side, side))
    reckoned = memory(config, count_pass(config, subject, case.autocast), case.batch, autocast=case.autocast)
    return reckoned, measured_peak(config, subject, case.batch, case.autocast)


def main() -> int:
    """Print a row for each case; 1 where one is further off than `LIMIT`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=ARCHITECTURES, default="tiny")
    parser.add_argument("--only", nargs="+", default=[""], help="cases with one of these in their name")
    add_json_option(parser)
    chosen = parser.parse_args()
    machine, figures = describe("diffusers"), dict[str, Any]()
    where = torch.cuda.get_device_name() if HAS_CUDA else "fake tensors, counted"
    print(f"{chosen.size} architecture, {where}; GB\n")
    print("| case | batch | weights | states | average | gradients | activations | peak reckoned | peak | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    worst = 0.0
    with on_fake_tensors():
        for case in CASES:
            if not any(part in case.name for part in chosen.only):
                continue
            reckoned, peak = compare(case, chosen.size)
            parts = astuple(reckoned)
            figures[case.name] = {"batch": case.batch, "reckoned": asdict(reckoned), "peak": peak}
            keep(chosen, machine, figures)
            ratio = reckoned.peak / peak
            worst = max(worst, abs(ratio - 1))
            cells = " | ".join(f"{part / 1e9:.3f}" for part in (*parts, peak))
            print(f"| {case.name} | {case.batch} | {cells} | {ratio:.3f} |", flush=True)
    print(f"\nat most {worst:.1%} off")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
