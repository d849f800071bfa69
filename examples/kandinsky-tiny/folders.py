"""From networks to the two folders of the hub's layout, in fp16, swapped into place by renames."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import architecture
import cards
import torch
import vocabulary
from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline, PriorTransformer, UNet2DConditionModel, VQModel
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


@dataclass(frozen=True)
class Networks:
    """Everything with weights, the tokenizer, and the image processor."""

    tokenizer: CLIPTokenizer
    processor: CLIPImageProcessorPil
    text_encoder: CLIPTextModelWithProjection
    image_encoder: CLIPVisionModelWithProjection
    movq: VQModel
    prior: PriorTransformer
    unet: UNet2DConditionModel


def untrained(tokenizer: CLIPTokenizer, seed: int) -> Networks:
    """All networks as their initialisers leave them."""
    torch.manual_seed(seed)  # transformers and diffusers initialise from the global generator only
    return Networks(
        tokenizer=tokenizer,
        processor=architecture.image_processor(),
        text_encoder=architecture.text_encoder().eval(),
        image_encoder=architecture.image_encoder().eval(),
        movq=architecture.movq().eval(),
        prior=architecture.prior(torch.Generator().manual_seed(seed)).eval(),
        unet=architecture.unet().eval(),
    )


@torch.no_grad()
def set_clip_statistics(networks: Networks, pixels: torch.Tensor) -> None:
    """Give the prior the mean and the standard deviation of the training pictures' embeddings."""
    embeds = torch.cat([networks.image_encoder(part).image_embeds for part in torch.split(pixels, 256)])
    networks.prior.clip_mean.copy_(embeds.mean(0, keepdim=True))
    networks.prior.clip_std.copy_(embeds.std(0, keepdim=True))


def save_prior(networks: Networks, folder: Path, card: str) -> None:
    """The prior pipeline as the hub has it."""
    pipeline = KandinskyV22PriorPipeline(
        prior=networks.prior.half(),
        image_encoder=networks.image_encoder.half(),
        text_encoder=networks.text_encoder.half(),
        tokenizer=networks.tokenizer,
        scheduler=architecture.prior_scheduler(),
        image_processor=networks.processor,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    vocabulary.save_as_on_the_hub(networks.tokenizer, folder / "tokenizer")
    # transformers 5 loads in the config's dtype unless told otherwise, diffusers in fp32: let both be fp32 by default.
    edit_json(folder / "text_encoder" / "config.json", dtype="float32")
    edit_json(folder / "image_encoder" / "config.json", dtype="float32")
    # The hub's name, which every version of transformers knows.
    edit_json(folder / "model_index.json", image_processor=["transformers", "CLIPImageProcessor"])
    (folder / "README.md").write_text(card, encoding="utf-8")


def edit_json(path: Path, **values: object) -> None:
    content = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_decoder(networks: Networks, folder: Path, card: str) -> None:
    """The decoder pipeline as the hub has it."""
    pipeline = KandinskyV22Pipeline(
        unet=networks.unet.half(), scheduler=architecture.decoder_scheduler(), movq=networks.movq.half()
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").write_text(card, encoding="utf-8")


def write(networks: Networks, out: Path, scores: cards.Scores) -> None:
    """Build both folders beside `out`, then swap: a reader sees the old ones or the new ones, never half of them.

    The networks are fp16 afterwards."""
    out.parent.mkdir(parents=True, exist_ok=True)
    built = Path(tempfile.mkdtemp(prefix=".building-", dir=out.parent))
    prior, decoder = (out / "prior").as_posix(), (out / "decoder").as_posix()
    save_prior(networks, built / "prior", cards.prior_card(scores, path=prior))
    save_decoder(networks, built / "decoder", cards.decoder_card(scores, path=decoder, prior=prior))
    built.chmod(0o755)
    for path in built.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors leaves them readable by their owner only
    swap(built, out)


def swap(new: Path, old: Path) -> None:
    """Put `new` where `old` is; `old` is out of the way for the time between two renames."""
    aside = old.with_name(f".old-{old.name}-{os.getpid()}")
    if old.exists():
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)
