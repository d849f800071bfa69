"""What each stage minimises: pure functions of a model, a batch and its draws.

Shapes: B samples, D width of the CLIP embedding, L tokens, K draws of noise for a sample, C x H x W latents.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .shared_text import run_draws
from .trimming import run_prior

Batch = dict[str, Tensor]


def prior_loss(model: Any, batch: Batch, scheduler: Any, snr_gamma: float | None) -> Tensor:
    """Mean squared error of the denoised image embedding (unCLIP, Ramesh et al. 2022, section 2.2; x0 prediction).

    ``batch``: image_embeds_BD, text_embeds_BD, hidden_states_BLD, lengths_B, noise_BD, timesteps_B, and weights_B
    where caches are weighted. The same loss as train_text_to_image_prior.py of diffusers for the same noise and
    timesteps. With noise_BKD and timesteps_BK the mean over the K draws of every sample, which share its text; with
    places_N the same without padding.
    """
    if batch["noise"].dim() == 3 or "places" in batch:
        return _loss_of_draws(model, batch, scheduler, snr_gamma)
    noise, timesteps = batch["noise"], batch["timesteps"]
    target = (batch["image_embeds"].float() - model.clip_mean) / model.clip_std
    noisy = scheduler.add_noise(target, noise, timesteps)
    predicted = run_prior(model, noisy, timesteps, *_text(batch))
    return weighted_mse(predicted, target, timesteps, scheduler, snr_gamma, batch.get("weights"))


def _loss_of_draws(model: Any, batch: Batch, scheduler: Any, snr_gamma: float | None) -> Tensor:
    steps_BK = batch["timesteps"].view(len(batch["lengths"]), -1)
    draws = steps_BK.shape[1]
    rows = {name: batch[name].repeat_interleave(draws, 0) for name in ("image_embeds", "weights") if name in batch}
    noise, timesteps = batch["noise"].flatten(0, -2), steps_BK.flatten()
    target = (rows["image_embeds"].float() - model.clip_mean) / model.clip_std
    noisy = scheduler.add_noise(target, noise, timesteps).view(*steps_BK.shape, -1)
    predicted = run_draws(model, noisy, steps_BK, *_text(batch), batch.get("places")).flatten(0, 1)
    return weighted_mse(predicted, target, timesteps, scheduler, snr_gamma, rows.get("weights"))


def _text(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What the prior is told of the captions, in fp32."""
    return batch["text_embeds"].float(), batch["hidden_states"].float(), batch["lengths"]


def decoder_loss(model: Any, batch: Batch, scheduler: Any, snr_gamma: float | None) -> Tensor:
    """Mean squared error of the predicted noise, or of v or x0 where the scheduler's ``prediction_type`` says so.

    ``batch``: latents_BCHW, image_embeds_BD, noise_BCHW, timesteps_B, and weights_B where caches are weighted. Only the
    first C channels of the prediction are trained; the others are the learned variance, as in
    train_text_to_image_decoder.py of diffusers, whose target is always the noise.
    """
    latents, noise, timesteps = batch["latents"].float(), batch["noise"], batch["timesteps"]
    noisy = scheduler.add_noise(latents, noise, timesteps)
    condition = {"image_embeds": batch["image_embeds"].float()}
    predicted = model(noisy, timesteps, None, added_cond_kwargs=condition).sample[:, : latents.shape[1]]
    target = TARGETS[scheduler.config.prediction_type](scheduler, latents, noise, timesteps)
    return weighted_mse(predicted, target, timesteps, scheduler, snr_gamma, batch.get("weights"))


TARGETS = {
    "epsilon": lambda scheduler, latents, noise, timesteps: noise,
    "v_prediction": lambda scheduler, latents, noise, timesteps: scheduler.get_velocity(latents, noise, timesteps),
    "sample": lambda scheduler, latents, noise, timesteps: latents,
}
"""What the decoder predicts, by the scheduler's ``prediction_type``."""


def weighted_mse(
    predicted: Tensor,
    target: Tensor,
    timesteps: Tensor,
    scheduler: Any,
    snr_gamma: float | None,
    loss_weights: Tensor | None = None,
) -> Tensor:
    """The mean squared error, weighted by Min-SNR where ``snr_gamma`` is given (Hang et al. 2023, section 3.4).

    ``loss_weights`` (B,) say what each sample counts besides; the mean is over B all the same.
    """
    if snr_gamma is None and loss_weights is None:
        return F.mse_loss(predicted.float(), target.float())
    errors = F.mse_loss(predicted.float(), target.float(), reduction="none").flatten(1).mean(1)
    if snr_gamma is not None:
        errors = errors * min_snr_weights(timesteps, scheduler, snr_gamma)
    return (errors if loss_weights is None else errors * loss_weights).mean()


def min_snr_weights(timesteps: Tensor, scheduler: Any, snr_gamma: float) -> Tensor:
    """min(SNR, gamma) for x0 prediction, over SNR for noise and over SNR + 1 for v (Hang et al. 2023; shape (B,))."""
    alphas = scheduler.alphas_cumprod.to(timesteps.device, torch.float32)[timesteps]
    snr: Tensor = alphas / (1 - alphas)
    divisor = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}[
        scheduler.config.prediction_type
    ]
    return snr.clamp(max=snr_gamma) / divisor
