"""A LoRA is trained as everything else is: resumed, averaged, validated, and loaded by stock diffusers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PriorTransformer, UNet2DConditionModel
from safetensors.torch import load_file
from support import metrics, relative_distance
from tiny import PIXELS

from kcache.checkpoints import Checkpoint, training_record
from kcache.lora_file import LORA_FILE
from kcache.shards import Cache, KcacheError
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.train import train

pytestmark = pytest.mark.usefixtures("few_steps")

Config = PriorConfig | DecoderConfig
Make = Callable[..., Config]
UPDATES = 6


@pytest.fixture(params=["prior", "decoder"])
def stage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(stage: str, encoded: Callable[..., Cache], tiny_prior: Path, tiny_decoder: Path, tmp_path: Path) -> Make:
    """``make(out, **changes)``: six updates of a LoRA, with all that a run may have beside it."""

    def config(out: str, **changes: Any) -> Config:
        options: dict[str, Any] = {
            "cache": str(encoded().root),
            "output_dir": str(tmp_path / out),
            "pretrained_prior_model_name_or_path": str(tiny_prior),
            "pretrained_decoder_model_name_or_path": str(tiny_decoder),
            "seed": 5,
            "train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_train_steps": UPDATES,
            "learning_rate": 1e-2,
            "checkpointing_steps": 1,
            "logging_steps": 1,
            "probe_samples": 4,
            "lora": True,
            "rank": 2,
            "lora_dropout": 0.2,
            "use_ema": True,
            "ema_decay": 0.5,
            "conditioning_dropout": 0.3,
            "gradient_checkpointing": True,
            "validation_split": 0.3,
            "validation_steps": 2,
            "resolution": PIXELS,
            **changes,
        }
        return PriorConfig(**options) if stage == "prior" else DecoderConfig(**options)

    return config


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / LORA_FILE)


def base(stage: str, config: Config) -> Any:
    if stage == "prior":
        return PriorTransformer.from_pretrained(config.pretrained_prior_model_name_or_path, subfolder="prior")
    return UNet2DConditionModel.from_pretrained(config.pretrained_decoder_model_name_or_path, subfolder="unet")


def test_a_lora_that_is_resumed_ends_bit_identical(make: Make, tmp_path: Path) -> None:
    straight = train(make("straight"))
    train(make("stopped", max_train_steps=2))
    train(make("stopped", max_train_steps=4, resume_from_checkpoint="latest"))
    resumed = train(make("stopped", resume_from_checkpoint="latest"))
    assert (resumed.step, resumed.best_loss, resumed.best_step) == (UPDATES, straight.best_loss, straight.best_step)
    for folder in (".", "best", f"checkpoint-{UPDATES}"):
        ours, theirs = (tensors(tmp_path / out / folder) for out in ("stopped", "straight"))
        assert ours.keys() == theirs.keys() != set()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [line["loss"] for line in metrics(tmp_path / "stopped")] == [
        line["loss"] for line in metrics(tmp_path / "straight")
    ]


def test_checkpoint_best_and_result_hold_the_lora_alone(make: Make, tmp_path: Path) -> None:
    report = train(make("out"))
    assert report.result == LORA_FILE
    for folder in (".", "best", "checkpoint-1"):
        assert (tmp_path / "out" / folder / LORA_FILE).is_file()
        assert not list((tmp_path / "out" / folder).glob("*/diffusion_pytorch_model*"))
    last, averaged = tensors(tmp_path / "out" / f"checkpoint-{UPDATES}"), tensors(tmp_path / "out")
    assert relative_distance(averaged.values(), last.values()) > 1e-4  # the average is the result


def test_stock_diffusers_loads_it_and_gives_what_was_trained(make: Make, stage: str, tmp_path: Path) -> None:
    config = make("out", use_ema=False, ema_decay=0.9999)
    train(config)
    model, plain = base(stage, config), base(stage, config)
    model.load_lora_adapter(str(tmp_path / "out"), prefix=None, use_safetensors=True)
    loaded = {name for name, _ in model.named_parameters() if "lora" in name}
    assert len(loaded) == len(tensors(tmp_path / "out"))
    torch.manual_seed(0)
    width = 16
    if stage == "prior":
        inputs: tuple[Any, ...] = (torch.randn(2, width), torch.tensor([3, 700]))
        more: dict[str, Any] = {
            "proj_embedding": torch.randn(2, width),
            "encoder_hidden_states": torch.randn(2, 77, width),
            "attention_mask": torch.ones(2, 77, dtype=torch.bool),
        }
    else:
        inputs = (torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), None)
        more = {"added_cond_kwargs": {"image_embeds": torch.randn(2, width)}}
    with torch.no_grad():
        trained, before = (one(*inputs, **more, return_dict=False)[0] for one in (model, plain))
        assert relative_distance([trained], [before]) > 1e-3
        model.disable_lora()
        assert torch.equal(model(*inputs, **more, return_dict=False)[0], before)


def test_a_lora_on_the_result_of_a_run_names_that_result(make: Make, stage: str, tmp_path: Path) -> None:
    """Merged into what lies behind it, it would be another model, and nobody would be told."""
    train(make("full", lora=False, rank=4, lora_dropout=0.0))
    name = f"pretrained_{stage}_model_name_or_path"
    train(make("lora", **{name: str(tmp_path / "full")}))
    assert Checkpoint(str(tmp_path / "lora")).base() != Checkpoint(str(tmp_path / "full"))  # what lies behind both
    assert training_record(tmp_path / "lora")["trained_from"] == str((tmp_path / "full").resolve())
    readme = (tmp_path / "lora" / "README.md").read_text()
    assert f'.from_pretrained("{(tmp_path / "full").resolve()}", subfolder=' in readme


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rank": 3}, "rank|shape"),
        ({"lora": False, "lora_dropout": 0.0, "rank": 4}, "add --lora"),
        ({"use_dora": True}, "DoRA|dora"),
    ],
)
def test_a_lora_is_not_gone_on_from_as_another(make: Make, changes: dict[str, Any], sentence: str) -> None:
    train(make("out", max_train_steps=2))
    with pytest.raises(KcacheError, match=sentence):
        train(make("out", resume_from_checkpoint="latest", **changes))
