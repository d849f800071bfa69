"""Score a kandinsky-tiny on captions that it was trained on and on a hundred that were held out, and draw both.

    python examples/kandinsky-tiny/score.py --pictures PATH --prior prior --decoder decoder --grid scores.png

Every figure is a share of a hundred captions, so that chance is 0.01. The held-out ones name things seen and skin tones
seen, but not together (`emoji.held_out_texts`); the others are spread evenly over all captions of the training. CLIP is
kandinsky-tiny's own, which was trained without the hundred too.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import emoji
import torch
import torch.nn.functional as F
from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline, PriorTransformer, UNet2DConditionModel
from PIL import Image
from train_clip import tokens_of
from train_movq import psnr, reconstruct

from kcache.grids import Group, labelled_sheet
from kcache.progress import bar, hush_libraries
from kcache.training.kept_text import text_run_once

TINY = Path(__file__).resolve().parents[2] / "kcache" / "data" / "kandinsky-tiny"
BATCH = 25
STEPS = 25
SHOWN = 16
"""Captions of each kind in the picture."""


@dataclass(frozen=True)
class Score:
    """How one kind of captions fared; recalls are shares of the captions, agreements mean cosines."""

    captions: int
    prior_recall_1: float
    """The picture nearest to the embedding that the prior made is the caption's own."""
    prior_recall_5: float
    """It is among the five nearest."""
    prior_cosine: float
    """Between the embedding that the prior made and that of the caption's own picture."""
    generated_recall_1: float
    """The caption nearest to the generated picture, by CLIP, is its own."""
    generated_recall_5: float
    agreement: float
    """Between generated pictures and their captions."""
    agreement_shuffled: float
    """Between generated pictures and the captions of others: what agreement comes to without reading them."""


@dataclass(frozen=True)
class Kandinsky:
    """The stock pipelines of both stages."""

    prior: Any
    decoder: Any

    @torch.no_grad()
    def text_embeds(self, texts: Sequence[str]) -> torch.Tensor:
        """CLIP's of captions: (N, D)."""
        tokens: torch.Tensor = self.prior.text_encoder(tokens_of(self.prior.tokenizer, list(texts))).text_embeds
        return tokens

    @torch.no_grad()
    def image_embeds(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """CLIP's of pictures: (N, D)."""
        pixels = self.prior.image_processor(list(pictures), return_tensors="pt").pixel_values.float()
        return torch.cat([self.prior.image_encoder(part).image_embeds for part in torch.split(pixels, 64)])


def load(tiny: Path, prior: Path | None, decoder: Path | None) -> Kandinsky:
    """kandinsky-tiny; its prior and UNet replaced by those of two OUT folders of ``kcache train``, where given."""
    hush_libraries()
    pipelines: tuple[Any, Any] = (
        KandinskyV22PriorPipeline.from_pretrained(tiny / "prior"),
        KandinskyV22Pipeline.from_pretrained(tiny / "decoder"),
    )
    if prior:
        pipelines[0].register_modules(prior=PriorTransformer.from_pretrained(prior, subfolder="prior"))
    if decoder:
        pipelines[1].register_modules(unet=UNet2DConditionModel.from_pretrained(decoder, subfolder="unet"))
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
    return Kandinsky(*pipelines)


def generate(models: Kandinsky, texts: Sequence[str], guidance: float, seed: int) -> tuple[torch.Tensor, list[Any]]:
    """The prior's embedding of each caption, (N, D), and the picture made from it."""
    made: list[Image.Image] = []
    embeds = []
    with bar(len(texts), "img", "generate") as progress, text_run_once(models.prior.prior):
        for start in range(0, len(texts), BATCH):
            part = list(texts[start : start + BATCH])
            dice = torch.Generator().manual_seed(seed + start)
            found = models.prior(part, num_inference_steps=STEPS, guidance_scale=1.0, generator=dice)
            pictures = models.decoder(
                image_embeds=found.image_embeds,
                negative_image_embeds=found.negative_image_embeds.expand_as(found.image_embeds),
                num_inference_steps=STEPS,
                guidance_scale=guidance,
                height=64,
                width=64,
                generator=dice,
            )
            embeds.append(found.image_embeds)
            made.extend(pictures.images)
            progress.update(len(part))
    return torch.cat(embeds), made


def recall(queries_ND: torch.Tensor, answers_ND: torch.Tensor, nearest: int) -> float:
    """The share of queries whose own answer, that of the same row, is among the ``nearest`` by cosine."""
    found = _cosines(queries_ND, answers_ND).topk(nearest, dim=1).indices
    return float((found == torch.arange(len(found))[:, None]).any(1).float().mean())


def agreements(one_ND: torch.Tensor, other_ND: torch.Tensor) -> tuple[float, float]:
    """The mean cosine of rows that belong together, and of all that do not."""
    cosines = _cosines(one_ND, other_ND)
    own = cosines.diagonal()
    return float(own.mean()), float((cosines.sum() - own.sum()) / (cosines.numel() - len(own)))


def _cosines(one_ND: torch.Tensor, other_ND: torch.Tensor) -> torch.Tensor:
    return F.normalize(one_ND.float(), dim=-1) @ F.normalize(other_ND.float(), dim=-1).T


def score(models: Kandinsky, chosen: list[emoji.Emoji], guidance: float, seed: int) -> tuple[Score, list[Image.Image]]:
    """The score of these captions, and the picture made for each."""
    texts = [one.text for one in chosen]
    embeds, made = generate(models, texts, guidance, seed)
    true, captions = models.image_embeds([one.picture for one in chosen]), models.text_embeds(texts)
    seen = models.image_embeds(made)
    agreement, shuffled = agreements(seen, captions)
    result = Score(
        captions=len(texts),
        prior_recall_1=recall(embeds, true, 1),
        prior_recall_5=recall(embeds, true, 5),
        prior_cosine=agreements(embeds, true)[0],
        generated_recall_1=recall(seen, captions, 1),
        generated_recall_5=recall(seen, captions, 5),
        agreement=agreement,
        agreement_shuffled=shuffled,
    )
    return result, made


def kinds_of(pictures: list[emoji.Emoji]) -> dict[str, list[emoji.Emoji]]:
    """A hundred that were trained on, spread evenly, and the hundred that were held out."""
    held_out = emoji.held_out_texts([one.text for one in pictures])
    seen = [one for one in pictures if one.text not in held_out]
    return {
        "trained": seen[:: len(seen) // emoji.HELD_OUT][: emoji.HELD_OUT],
        "held out": [one for one in pictures if one.text in held_out],
    }


def sheet(kinds: dict[str, list[emoji.Emoji]], made: dict[str, list[Image.Image]]) -> Image.Image:
    """Some of each kind: the real picture beside the generated one."""
    sections = []
    for kind, chosen in kinds.items():
        step = max(1, len(chosen) // SHOWN)
        pairs = list(zip(chosen, made[kind], strict=True))[::step][:SHOWN]
        groups = [Group(one.text, [one.picture.resize((64, 64)), it], ["real", "generated"]) for one, it in pairs]
        sections.append((f"Captions {kind}", groups))
    return labelled_sheet(sections)


def main() -> int:
    """Print the scores; 1 where one lies below a floor that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="a folder with metadata.jsonl and its pictures")
    parser.add_argument("--tiny", type=Path, default=TINY, help="has prior/ and decoder/")
    parser.add_argument("--prior", type=Path, help="OUT of kcache train prior [default: that of --tiny]")
    parser.add_argument("--decoder", type=Path, help="OUT of kcache train decoder [default: that of --tiny]")
    parser.add_argument("--guidance", type=float, default=1.0, help="of the decoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grid", type=Path, help="draw some of both kinds, real beside generated, to this file")
    parser.add_argument("--json", type=Path, help="write the scores to this file")
    parser.add_argument("--floor", nargs=2, action="append", default=[], metavar=("SCORE", "VALUE"))
    options = parser.parse_args()
    models = load(options.tiny, options.prior, options.decoder)
    kinds = kinds_of(emoji.read_emoji(options.pictures))
    scores, made = {}, {}
    for kind, chosen in kinds.items():
        scores[kind], made[kind] = score(models, chosen, options.guidance, options.seed)
    told = {f"{kind}: {name}": value for kind in kinds for name, value in asdict(scores[kind]).items()}
    told["MoVQ, dB, held out"] = movq_psnr(models, kinds["held out"])
    for name, value in told.items():
        print(f"{name:38} {value:7.3f}")
    if options.json:
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if options.grid:
        sheet(kinds, made).save(options.grid)
    return below(told, {name: float(value) for name, value in options.floor})


@torch.no_grad()
def movq_psnr(models: Kandinsky, chosen: list[emoji.Emoji]) -> float:
    """How near MoVQ's reconstructions of these pictures are, in dB."""
    pixels = emoji.movq_pixels(chosen, 64)
    return psnr(reconstruct(models.decoder.movq, pixels), pixels)


def below(told: dict[str, float], floors: dict[str, float]) -> int:
    """Say which scores lie below their floors; 1 where any does."""
    missed = {name: floor for name, floor in floors.items() if told[name] < floor}
    for name, floor in missed.items():
        print(f"{name} is {told[name]:.3f}, below its floor of {floor}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
