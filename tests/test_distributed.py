"""Several processes train as one does, go on from what another number of them left, and say what they cannot do."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launched import ACCELERATE, FSDP, ROOT, Done, Jobs, environ, result, together, updates
from support import encode_tiny, relative_distance
from tiny import PIXELS

from kcache.shards import Cache, KcacheError
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.engine import require_agreement
from kcache.training.train import train

pytestmark = pytest.mark.slow

UPDATES, GLOBAL = 4, 4
PRECISION = 1e-5
Options = dict[str, Any]
Make = Callable[..., Options]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, pictures: Path, tiny_prior: Path, tiny_decoder: Path) -> Cache:
    """A second cache of the same columns, in the other container."""
    root = tmp_path_factory.mktemp("other") / "cache"
    return encode_tiny(root, pictures, tiny_prior, tiny_decoder, format="h5")


@pytest.fixture(scope="module")
def make(encoded: Callable[..., Cache], other: Cache, tiny_prior: Path, tiny_decoder: Path) -> Make:
    """``make(stage, out, **changes)``: the options of four updates of four samples, as a job."""

    def options(stage: str, out: Path, **changes: Any) -> Options:
        checkpoints = {"prior": tiny_prior, "decoder": tiny_decoder}
        fixed = {
            "stage": stage,
            "cache": str(encoded().root),
            "output_dir": str(out),
            f"pretrained_{stage}_model_name_or_path": str(checkpoints[stage]),
            "seed": 3,
            "max_train_steps": UPDATES,
            "logging_steps": 1,
            "lr_scheduler": "constant_with_warmup",
            "lr_warmup_steps": 2,
            "probe_samples": 4,
            **({"resolution": PIXELS} if stage == "decoder" else {}),
        }
        return {**fixed, **changes}

    return options


def everything(other: Cache, **more: Any) -> Options:
    """All that may read, draw, average or measure something at once."""
    return {
        "use_ema": True,
        "conditioning_dropout": 0.3,
        "mix": ((str(other.root), 0.25),),
        "loss_weight": (0.5,),
        "validation_split": 0.3,
        "validation_steps": 2,
        "snr_gamma": 5.0,
        **more,
    }


SGD = {"optimizer": "sgd", "learning_rate": 0.1}
ADAMW = {"optimizer": "adamw", "learning_rate": 2e-3}
LORA = {"lora": True, "rank": 2}
"""Without dropout of its own, which is drawn by process."""


def cases(other: Cache) -> dict[str, tuple[str, Options]]:
    """Stage and options of each training that is compared with itself in one process."""
    return {
        "prior-sgd": ("prior", SGD),
        "decoder-sgd": ("decoder", SGD),
        "prior-adamw": ("prior", ADAMW),
        "decoder-adamw": ("decoder", ADAMW),
        "prior-everything": ("prior", everything(other, **SGD)),
        "prior-lora": ("prior", everything(other, **SGD, **LORA)),
        "decoder-lora": ("decoder", everything(other, **SGD, **LORA)),
        "decoder-everything": ("decoder", everything(other, **SGD, gradient_checkpointing=True)),
        "prior-accumulated": ("prior", {**SGD, "gradient_checkpointing": True}),
        "prior-bf16": ("prior", {**SGD, "mixed_precision": "bf16"}),
    }


CASES = [
    "prior-sgd",
    "decoder-sgd",
    "prior-adamw",
    "decoder-adamw",
    "prior-everything",
    "prior-lora",
    "decoder-lora",
    "decoder-everything",
    "prior-accumulated",
    "prior-bf16",
]


def split(name: str) -> Options:
    """How two processes divide an update of four samples."""
    if name == "prior-accumulated":
        return {"train_batch_size": 1, "gradient_accumulation_steps": 2}
    return {"train_batch_size": 2}


@pytest.fixture(scope="module")
def alone(make: Make, other: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The OUT of each case trained by one process, by its name."""
    folder = tmp_path_factory.mktemp("alone")
    for name, (stage, options) in cases(other).items():
        train_alone(make(stage, folder / name, train_batch_size=GLOBAL, **options))
    return folder


def train_alone(job: Options) -> int:
    """One training in this process; returns the update it came to."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # the precision may be another
    options = dict(job)
    config: Any = {"prior": PriorConfig, "decoder": DecoderConfig}[options.pop("stage")]
    step = train(config(**options)).step
    AcceleratorState._reset_state(reset_partial_state=True)
    return step


Trained = tuple[Path, Done]


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def pair(request: pytest.FixtureRequest, make: Make, other: Cache, tmp_path_factory: Any) -> Path:
    """The same, by two processes with all weights in each, or with the weights sharded among them."""
    folder = tmp_path_factory.mktemp(request.param)
    jobs = {name: make(stage, folder / name, **split(name), **o) for name, (stage, o) in cases(other).items()}
    done = together(folder, jobs, **(FSDP if request.param == "fsdp" else {}))
    assert done == {name: {"step": UPDATES} for name in CASES}
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_measure_at_every_update_what_one_does(alone: Path, pair: Path, name: str) -> None:
    ours, theirs = updates(pair / name), updates(alone / name)
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    precision = 1e-2 if name == "prior-bf16" else PRECISION
    for one, expected in zip(ours, theirs, strict=True):
        assert one == pytest.approx(expected, rel=precision, abs=precision if "validation_cosine" in one else 0)


@pytest.mark.parametrize("name", [name for name in CASES if "adamw" not in name and "bf16" not in name])
def test_two_processes_end_at_the_weights_of_one(alone: Path, pair: Path, name: str) -> None:
    ours, theirs = result(pair / name), result(alone / name)
    assert relative_distance((ours[n] for n in theirs), theirs.values()) < PRECISION
    assert ours.keys() == theirs.keys()


def test_a_checkpoint_is_the_same_file_by_file_whoever_wrote_it(alone: Path, pair: Path) -> None:
    for name in ("prior-everything", "decoder-adamw", "prior-lora"):
        ours, theirs = (folder / name / f"checkpoint-{UPDATES}" for folder in (pair, alone))
        assert {p.relative_to(ours) for p in ours.rglob("*")} == {p.relative_to(theirs) for p in theirs.rglob("*")}
        tensors, expected = (torch.load(p / "optimizer.pt", weights_only=True) for p in (ours, theirs))
        assert shapes(tensors) == shapes(expected)


def shapes(state: Any) -> Any:
    """A nested state with the shape and type in place of each tensor."""
    if isinstance(state, dict):
        return {name: shapes(value) for name, value in state.items()}
    if isinstance(state, list):
        return [shapes(value) for value in state]
    return (type(state), tuple(state.shape), state.dtype) if isinstance(state, torch.Tensor) else state
