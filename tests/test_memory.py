"""Options that save memory change nothing that is learned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_support import SUBFOLDERS, batch_of, loss_of, tiny_model
from support import relative_distance

from kcache.shards import UsageError
from kcache.training import memory
from kcache.training.config import DecoderConfig, TrainConfig
from kcache.training.memory import apply_memory_options
from kcache.training.weights import make_weights

XFORMERS = TrainConfig(cache="", output_dir="", enable_xformers_memory_efficient_attention=True)


def options(**given: Any) -> TrainConfig:
    return TrainConfig(cache="", output_dir="", gradient_checkpointing=True, **given)


def count_runs(module: Any) -> list[int]:
    """A list that grows by one whenever something inside ``module`` is run."""
    runs: list[int] = []
    module.register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


def gradients(model: Any, stage: str, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, and the gradient of every parameter that is trained."""
    model.zero_grad()
    loss = loss_of(model, stage, batch)
    loss.backward()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("length", [77, 16])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(
    tiny_prior: Path, tiny_decoder: Path, stage: str, lora: bool, length: int
) -> None:
    model, batch = tiny_model(stage, tiny_prior, tiny_decoder), batch_of(stage, length)
    config = options(lora=lora, lora_dropout=0.5 if lora else 0.0)
    make_weights(config, SUBFOLDERS[stage]).prepare(model.train(), seed=3)
    torch.manual_seed(0)
    loss, plain = gradients(model, stage, batch)
    apply_memory_options(model, config)
    torch.manual_seed(0)  # the masks of the LoRA's dropout
    again, checkpointed = gradients(model, stage, batch)
    assert torch.equal(loss, again)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[name]), name


@pytest.mark.parametrize(
    ("stage", "inside"),
    [
        ("prior", lambda model: model.transformer_blocks[1].attn1),
        ("decoder", lambda model: model.down_blocks[0].resnets[0].conv1),
    ],
)
def test_blocks_are_run_again_in_the_backward_pass_and_not_where_nothing_is_learned(
    tiny_prior: Path, tiny_decoder: Path, stage: str, inside: Callable[[Any], Any]
) -> None:
    model, batch = tiny_model(stage, tiny_prior, tiny_decoder), batch_of(stage)
    runs = count_runs(inside(model))
    loss_of(model, stage, batch).backward()
    assert len(runs) == 1
    apply_memory_options(model, options())
    loss = loss_of(model, stage, batch)
    assert len(runs) == 2
    loss.backward()
    assert len(runs) == 3
    with torch.no_grad():
        loss_of(model, stage, batch)
    assert len(runs) == 4


def test_a_prior_with_checkpointed_blocks_is_saved_like_any_other(tiny_prior: Path, tmp_path: Path) -> None:
    model = tiny_model("prior", tiny_prior, tiny_prior)
    apply_memory_options(model, options())
    model.save_pretrained(str(tmp_path))
    saved = tmp_path / "diffusion_pytorch_model.safetensors"
    assert saved.read_bytes() == (tiny_prior / "prior" / saved.name).read_bytes()


def test_xformers_is_refused_for_the_prior_and_without_a_gpu_and_without_the_package(
    tiny_prior: Path, tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="is for the decoder, as in the reference; leave it out"):
        apply_memory_options(tiny_model("prior", tiny_prior, tiny_decoder), XFORMERS)
    decoder = tiny_model("decoder", tiny_prior, tiny_decoder)
    monkeypatch.setattr(memory, "default_device", lambda: torch.device("cpu"))
    with pytest.raises(UsageError, match="xformers has no such kernels for cpu; leave it out"):
        apply_memory_options(decoder, XFORMERS)
    monkeypatch.setattr(memory, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(memory.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"not installed; run: pip install 'kcache\[xformers\]'"):
        apply_memory_options(decoder, XFORMERS)


def test_xformers_is_asked_of_diffusers_where_there_is_a_gpu(
    tiny_prior: Path, tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, asked = tiny_model("decoder", tiny_prior, tiny_decoder), list[bool]()
    monkeypatch.setattr(memory, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(memory.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(decoder, "enable_xformers_memory_efficient_attention", lambda: asked.append(True))
    apply_memory_options(decoder, XFORMERS)
    assert asked == [True]


def test_channels_last_learns_the_same_and_saves_the_usual_layout(tiny_decoder: Path, tmp_path: Path) -> None:
    config = DecoderConfig(cache="", output_dir="", channels_last=True)
    plain, other = (tiny_model("decoder", tiny_decoder, tiny_decoder) for _ in range(2))
    apply_memory_options(other, config)
    assert other.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    batch = batch_of("decoder")
    (loss, expected), (same, gradient) = gradients(plain, "decoder", batch), gradients(other, "decoder", batch)
    torch.testing.assert_close(same, loss)
    assert relative_distance(gradient.values(), expected.values()) < 1e-5
    make_weights(config, "unet").save(other, tmp_path)
    saved = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    assert saved.read_bytes() == (tiny_decoder / "unet" / saved.name).read_bytes()
    make_weights(config, "unet").load(other, tmp_path)
    assert other.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
