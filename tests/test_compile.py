"""Compiled blocks learn the same, are compiled but for a few shapes, and leave no trace in what is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_support import batch_of, loss_of, tiny_model
from safetensors.torch import load_file
from support import metrics, relative_distance
from torch._dynamo.utils import counters

from kcache import compiler
from kcache.shards import Cache, UsageError
from kcache.training import compiling
from kcache.training.checks import check_config
from kcache.training.compiling import compile_blocks
from kcache.training.config import PriorConfig
from kcache.training.memory import apply_memory_options
from kcache.training.train import train
from kcache.training.weights import make_weights

# Torch looks at the inputs that it traces, and warns of what it sees there itself.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.fixture(autouse=True)
def _all_but_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, with graphs of forward and backward, and run by torch's own kernels: seconds instead of minutes."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()


def gradients(model: Any, length: int) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    loss = loss_of(model, "prior", batch_of("prior", length))
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize(("lora", "checkpointing"), [(False, False), (True, True)])
def test_loss_and_gradients_are_those_of_blocks_that_are_not_compiled(
    tiny_prior: Path, lora: bool, checkpointing: bool
) -> None:
    model = tiny_model("prior", tiny_prior, tiny_prior)
    config = PriorConfig(cache="", output_dir="", lora=lora, gradient_checkpointing=checkpointing)
    make_weights(config, "prior").prepare(model.train(), 3)
    expected = [gradients(model, length) for length in (16, 24)]
    compile_blocks(model)
    apply_memory_options(model, config)
    for length, (loss, theirs) in zip((16, 24), expected, strict=True):
        found, ours = gradients(model, length)
        assert found == pytest.approx(loss, rel=1e-5)
        assert relative_distance(ours, theirs) < 1e-5
    assert counters["stats"]["unique_graphs"] > 0


def test_two_graphs_do_for_all_lengths_and_all_blocks(tiny_prior: Path) -> None:
    model = tiny_model("prior", tiny_prior, tiny_prior).train()
    compile_blocks(model)
    for length in (16, 24, 32, 40, 48, 56, 64, 72, 77):
        loss_of(model, "prior", batch_of("prior", length)).backward()
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


def test_what_is_measured_is_not_compiled(tiny_prior: Path) -> None:
    model = tiny_model("prior", tiny_prior, tiny_prior)
    compile_blocks(model)
    with torch.no_grad():
        loss_of(model.train(), "prior", batch_of("prior", 16))
    loss_of(model.eval(), "prior", batch_of("prior", 16))
    assert not counters["stats"]


def test_a_compiled_run_writes_what_any_other_writes(
    encoded: Callable[..., Cache], tiny_prior: Path, tmp_path: Path
) -> None:
    outs = []
    for compiled in (True, False):
        out = tmp_path / f"compiled-{compiled}"
        config = PriorConfig(
            cache=str(encoded().root),
            output_dir=str(out),
            pretrained_prior_model_name_or_path=str(tiny_prior),
            seed=3,
            train_batch_size=2,
            max_train_steps=3,
            logging_steps=1,
            validation_split=0.3,
            use_ema=True,
            draws_per_sample=3,
            pack_captions=True,
            compile=compiled,
        )
        train(config)
        outs.append(out)
    losses = [[line["loss"] for line in metrics(out)] for out in outs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    files = [sorted(path.relative_to(out) for path in out.rglob("*.safetensors")) for out in outs]
    assert files[0] == files[1]
    for file in files[0]:
        ours, theirs = (load_file(out / file) for out in outs)
        assert ours.keys() == theirs.keys()
        assert relative_distance(ours.values(), (theirs[name] for name in ours)) < 1e-4
    assert counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda", "--compile needs triton, .* leave it out here"),
        ("cpu", r"needs a C\+\+ compiler on a CPU, .* leave it"),
    ],
)
def test_a_machine_that_cannot_compile_is_told_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, device: str, said: str
) -> None:
    monkeypatch.setattr(compiling, "default_device", lambda: torch.device(device))
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    check_config(PriorConfig(cache="nowhere", output_dir="nowhere"))
    with pytest.raises(UsageError, match=said):
        check_config(PriorConfig(cache="nowhere", output_dir="nowhere", compile=True))
