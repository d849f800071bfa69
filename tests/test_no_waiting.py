"""Between two lines of metrics the CPU never waits for the GPU: nothing of the loop reads a tensor's value."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from lora_support import WIDTH, batch_of, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kcache.shards import Cache
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.ema import Ema
from kcache.training.loop import Loop, Objective
from kcache.training.objectives import prior_loss
from kcache.training.overflow import Watch
from kcache.training.shared_text import attend_for_all_heads, places_of
from kcache.training.train import train

READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "is_nonzero", "equal", "bincount")
"""What gives Python a value, or a tensor whose shape depends on values: on a GPU each waits for all before it."""


class Reads(TorchDispatchMode):
    """Writes down what reads a value."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in READS:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def watched_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, list[str]]]:
    """Within it, what every update of a run read, by its number; what is done in a line of metrics belongs to none."""
    seen: list[str] = []
    by_update: dict[int, list[str]] = {}
    run = Loop.run

    def watched(loop: Loop, batches: Any, first: int, stop: int, after: Any) -> int:
        def update(step: int) -> None:
            by_update[step] = seen.copy()
            seen.clear()
            after.update(step)

        with Reads(seen):
            return run(loop, batches, first, stop, type(after)(update, after.logged, after.stop))

    monkeypatch.setattr(Loop, "run", watched)
    yield by_update


ALL = {"use_ema": True, "conditioning_dropout": 0.3, "snr_gamma": 5.0, "gradient_checkpointing": True}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "prior": (PriorConfig, {"draws_per_sample": 3, "group_by_length": True}),
    "prior, packed": (PriorConfig, {"pack_captions": True}),
    "prior, one draw": (PriorConfig, {}),
    "prior, LoRA, bf16": (PriorConfig, {"lora": True, "draws_per_sample": 3, "mixed_precision": "bf16"}),
    "decoder": (DecoderConfig, {"resolution": 32}),
}


@pytest.mark.parametrize("case", CASES)
def test_no_value_is_read_between_two_lines_of_metrics(
    encoded: Callable[..., Cache],
    tiny_prior: Path,
    tiny_decoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    from accelerate.state import AcceleratorState

    config, options = CASES[case]
    AcceleratorState._reset_state(reset_partial_state=True)  # the precision may be another
    with watched_loop(monkeypatch) as read:
        train(
            config(
                cache=str(encoded().root),
                output_dir=str(tmp_path),
                pretrained_prior_model_name_or_path=str(tiny_prior),
                pretrained_decoder_model_name_or_path=str(tiny_decoder),
                seed=3,
                train_batch_size=2,
                gradient_accumulation_steps=2,
                max_train_steps=8,
                logging_steps=4,
                probe_samples=0,
                mix=((str(encoded().root), 0.25),),
                loss_weight=(0.5,),
                optimizer_args=("fused=true",),  # as on a GPU; the plain one counts its updates in a tensor of the CPU
                **{**ALL, **options},
            )
        )
    AcceleratorState._reset_state(reset_partial_state=True)
    assert {step: found for step, found in read.items() if step not in (4, 8)} == {
        step: [] for step in (1, 2, 3, 5, 6, 7)
    }
    assert all(len(read[step]) > 0 for step in (4, 8))  # the loss, its norm, and whether all was finite


class Copies(TorchDispatchMode):
    """Writes down what has a tensor of the CPU among its inputs: on a GPU a copy that is waited for."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        if any(one.device.type == "cpu" and one.dim() for one in inputs):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("length", [77, 16])
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("pack", [False, True])
def test_nothing_of_a_step_is_made_on_the_cpu_and_copied(tiny_prior: Path, draws: int, length: int, pack: bool) -> None:
    """On the meta device, whose tensors have no values: to read one is an error, and what comes from the CPU shows."""
    model = tiny_model("prior", tiny_prior, tiny_prior).to("meta")
    attend_for_all_heads(model)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    objective = Objective(SimpleNamespace(model=model, loss=prior_loss, scheduler=scheduler), 5.0).train()  # type: ignore[arg-type]
    parameters = [p for p in model.parameters() if p.requires_grad]
    ema, watch = Ema(parameters, 0.9), Watch(torch.device("meta"))
    batch = {name: tensor.to("meta") for name, tensor in batch_of("prior", length).items()}
    batch["weights"] = torch.ones(3, device="meta")
    if draws > 1:
        batch["noise"] = torch.zeros(3, draws, WIDTH, device="meta")
        batch["timesteps"] = torch.zeros(3, draws, dtype=torch.int64, device="meta")
    if pack:
        batch["places"] = torch.from_numpy(places_of(batch_of("prior")["lengths"].numpy(), length, draws)).to("meta")
    seen: list[str] = []
    for step in range(3):
        seen.clear()  # at the first step the schedule goes to the device
        with Copies(seen):
            loss = objective(batch)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            ema.step()
            watch.saw(step + 1, loss, norm)
    assert seen == []
