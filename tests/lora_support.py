"""Tiny models with a batch to train them on, and LoRAs that have learned something."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kcache.training.config import TrainConfig
from kcache.training.objectives import decoder_loss, prior_loss
from kcache.training.weights import Weights, make_weights

WIDTH = 16
SUBFOLDERS = {"prior": "prior", "decoder": "unet"}


def tiny_model(stage: str, prior: Path, decoder: Path) -> Any:
    """The component that a stage trains, from a tiny checkpoint, as `kcache.training.stages` loads it."""
    from diffusers import PriorTransformer, UNet2DConditionModel

    if stage == "decoder":
        return UNet2DConditionModel.from_pretrained(str(decoder), subfolder="unet")
    model = PriorTransformer.from_pretrained(str(prior), subfolder="prior")
    model.clip_mean.requires_grad_(False)
    model.clip_std.requires_grad_(False)
    return model


def batch_of(stage: str, length: int = 77, size: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """A random batch; of the prior's captions the longest has 13 tokens, kept at ``length`` positions."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    timesteps = torch.randint(0, 1000, (size,), generator=generator)
    embeds = {"image_embeds": normal(size, WIDTH), "timesteps": timesteps}
    if stage == "decoder":
        return {**embeds, "latents": normal(size, 4, 8, 8), "noise": normal(size, 4, 8, 8)}
    hidden_BLD = normal(size, 77, WIDTH)[:, :length]
    lengths_B = torch.tensor([13, 5, 9, 2][:size])
    text = {"text_embeds": normal(size, WIDTH), "hidden_states": hidden_BLD, "lengths": lengths_B}
    return {**embeds, **text, "noise": normal(size, WIDTH)}


def loss_of(model: Any, stage: str, batch: dict[str, Tensor]) -> Tensor:
    """The loss that training minimises."""
    from diffusers import DDPMScheduler

    if stage == "prior":
        scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
        return prior_loss(model, batch, scheduler, None)
    return decoder_loss(model, batch, DDPMScheduler(), None)


def lora_config(**options: Any) -> TrainConfig:
    """The options of a run with a LoRA."""
    return TrainConfig(cache="", output_dir="", lora=True, **options)


def train_lora(model: Any, stage: str, config: TrainConfig, steps: int = 2, seed: int = 0) -> Weights:
    """Put a LoRA into ``model`` and take some large steps with it; both its matrices move away from zero."""
    weights = make_weights(config, SUBFOLDERS[stage])
    weights.prepare(model.train(), seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(steps):
        loss_of(model, stage, batch_of(stage, seed=step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return weights


def make_lora_out(folder: Path, stage: str, base: Path, **options: Any) -> Path:
    """What a run with ``--lora`` leaves in its OUT, trained from the checkpoint in ``base``."""
    model = tiny_model(stage, base, base)
    folder.mkdir(parents=True)
    train_lora(model, stage, lora_config(**options)).save(model, folder)
    record = {"stage": stage, "trained_from": str(base), "options": {"resolution": 32}}
    (folder / "training.json").write_text(json.dumps(record))
    return folder


def outputs(model: Any, stage: str) -> Tensor:
    """What a model predicts for one fixed batch."""
    batch = batch_of(stage, seed=9)
    with torch.no_grad():
        if stage == "prior":
            texts = {"proj_embedding": batch["text_embeds"], "encoder_hidden_states": batch["hidden_states"]}
            predicted: Tensor = model(batch["image_embeds"], batch["timesteps"], **texts).predicted_image_embedding
            return predicted
        embeds = {"image_embeds": batch["image_embeds"]}
        noise: Tensor = model(batch["latents"], batch["timesteps"], None, added_cond_kwargs=embeds).sample
        return noise
