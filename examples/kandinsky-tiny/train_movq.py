"""Train MoVQ to reconstruct the emoji through its codebook, then fold its latents to zero mean and unit deviation."""

import random

import torch
import torch.nn.functional as F
from batches import shuffled
from diffusers import VQModel
from diffusers.models.attention_processor import SpatialNorm
from schedule import cosine
from torch import nn

BATCH = 16
LEARNING_RATE = 1e-3
CONTINUOUS = 0.1  # share of the steps before the codebook is used
REVIVE_EVERY = 50  # steps; codes that no latent chose in them move to where latents are
REVIVE_UNTIL = 0.7  # share of the steps
COMMITMENT = 0.25


class Codebook:
    """MoVQ's codebook in training: off at first, then used, its unused codes moved now and then."""

    def __init__(self, movq: VQModel, generator: torch.Generator) -> None:
        self.movq, self.generator = movq, generator
        self.started = False
        self.used = torch.zeros(len(self.codes), dtype=torch.bool)

    @property
    def codes(self) -> torch.Tensor:
        """(K, C)"""
        codes: torch.Tensor = self.movq.quantize.embedding.weight
        return codes

    def quantize(self, latents_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest codes with straight-through gradients, and the loss that pulls codes and latents together.

        VQ-VAE (https://arxiv.org/abs/1711.00937, equation 3); diffusers' own puts beta on the wrong term."""
        if not self.started:
            return latents_BCHW, latents_BCHW.new_zeros(())
        batch, _, height, width = latents_BCHW.shape
        flat_NC = vectors(latents_BCHW)
        with torch.no_grad():
            nearest_N = torch.cdist(flat_NC, self.codes).argmin(1)
        self.used[nearest_N] = True
        chosen_NC = F.embedding(nearest_N, self.codes)
        loss = F.mse_loss(chosen_NC, flat_NC.detach()) + COMMITMENT * F.mse_loss(flat_NC, chosen_NC.detach())
        straight_NC = flat_NC + (chosen_NC - flat_NC).detach()
        return straight_NC.view(batch, height, width, -1).movedim(-1, 1), loss

    @torch.no_grad()
    def start(self, pixels_NCHW: torch.Tensor) -> None:
        """Normalise each channel of the latents, and let the codes be latents drawn at random."""
        latents_NC = vectors(encode_all(self.movq, pixels_NCHW))
        fold(self.movq, latents_NC.mean(0), latents_NC.std(0))
        self.codes.copy_(self.drawn(encode_all(self.movq, pixels_NCHW), len(self.codes)))
        self.started = True

    @torch.no_grad()
    def revive(self, latents_BCHW: torch.Tensor) -> None:
        """Move the codes that were not used since the last time to latents of this batch."""
        unused = (~self.used).nonzero().flatten()
        self.codes[unused] = self.drawn(latents_BCHW, len(unused))
        self.used.zero_()

    def drawn(self, latents_BCHW: torch.Tensor, count: int) -> torch.Tensor:
        """`count` latent vectors at random places, moved a little so that no two are the same."""
        flat_NC = vectors(latents_BCHW.detach())
        rows = torch.randint(len(flat_NC), (count,), generator=self.generator)
        return flat_NC[rows] + 0.02 * torch.randn(count, flat_NC.shape[1], generator=self.generator)


def vectors(latents_BCHW: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B H W, C)"""
    return latents_BCHW.movedim(1, -1).flatten(0, -2)


@torch.no_grad()
def encode_all(movq: VQModel, pixels_NCHW: torch.Tensor) -> torch.Tensor:
    """The latents of many pictures: (N, C, H, W)."""
    return torch.cat([movq.encode(part).latents for part in torch.split(pixels_NCHW, 64)])


@torch.no_grad()
def reconstruct(movq: VQModel, pixels_NCHW: torch.Tensor) -> torch.Tensor:
    """Many pictures through the codebook, as the pipeline decodes."""
    return torch.cat([movq.decode(movq.encode(part).latents).sample for part in torch.split(pixels_NCHW, 64)])


@torch.no_grad()
def fold(movq: VQModel, mean_C: torch.Tensor, scale_C: torch.Tensor) -> None:
    """Make the latents (z - mean) / scale; with one scale for all channels this changes nothing that is decoded.

    The pipelines know no scaling factor, so it goes into every layer that writes or reads latents: all are 1x1."""
    movq.quant_conv.weight.div_(scale_C[:, None, None, None])
    movq.quant_conv.bias.copy_((movq.quant_conv.bias - mean_C) / scale_C)
    movq.quantize.embedding.weight.copy_((movq.quantize.embedding.weight - mean_C) / scale_C)
    norms = [part for part in movq.decoder.modules() if isinstance(part, SpatialNorm)]
    for reader in [movq.post_quant_conv, *(layer for norm in norms for layer in (norm.conv_y, norm.conv_b))]:
        reader.bias.add_(reader.weight[:, :, 0, 0] @ mean_C)
        reader.weight.mul_(scale_C[None, :, None, None])


@torch.no_grad()
def normalise(movq: VQModel, pixels_NCHW: torch.Tensor) -> None:
    """Zero mean for each channel, unit deviation over all: the same pictures are decoded."""
    latents_NC = vectors(encode_all(movq, pixels_NCHW))
    fold(movq, latents_NC.mean(0), latents_NC.var(0).mean().sqrt().expand(latents_NC.shape[1]))


def reconstruction_loss(made_BCHW: torch.Tensor, true_BCHW: torch.Tensor) -> torch.Tensor:
    """L1 and MSE of the pixels, and L1 of their differences to the right and downwards, which keeps edges."""
    edges = [(made_BCHW.diff(dim=axis) - true_BCHW.diff(dim=axis)).abs().mean() for axis in (-1, -2)]
    return F.l1_loss(made_BCHW, true_BCHW) + F.mse_loss(made_BCHW, true_BCHW) + edges[0] + edges[1]


def psnr(made_BCHW: torch.Tensor, true_BCHW: torch.Tensor) -> float:
    """Mean over the pictures, in dB; both are in [-1, 1]."""
    error_B = (made_BCHW.detach().clamp(-1, 1) - true_BCHW).square().flatten(1).mean(1)
    return float((10 * torch.log10(4 / error_B)).mean())


def train(movq: VQModel, pixels_NCHW: torch.Tensor, steps: int, seed: int) -> None:
    """Train in fp32, which is as quick as bf16 for these convolutions."""
    movq.train()
    codebook = Codebook(movq, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(movq.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    order = shuffled(len(pixels_NCHW), BATCH, random.Random(seed))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine(step, steps)
        if step == int(CONTINUOUS * steps):
            codebook.start(pixels_NCHW[:256])
        true_BCHW = pixels_NCHW[next(order)]
        latents_BCHW = movq.encode(true_BCHW).latents
        quantized_BCHW, vq_loss = codebook.quantize(latents_BCHW)
        made_BCHW = movq.decode(quantized_BCHW, force_not_quantize=True).sample
        optimizer.zero_grad()
        torch.autograd.backward(reconstruction_loss(made_BCHW, true_BCHW) + vq_loss)
        nn.utils.clip_grad_norm_(movq.parameters(), 1.0)
        optimizer.step()
        if step % REVIVE_EVERY == 0:
            used = int(codebook.used.sum())
            print(f"movq {step:5d}  PSNR {psnr(made_BCHW, true_BCHW):.2f} dB  codes used {used}", flush=True)
            if codebook.started and step < REVIVE_UNTIL * steps:
                codebook.revive(latents_BCHW)
    movq.eval()
    normalise(movq, pixels_NCHW)
