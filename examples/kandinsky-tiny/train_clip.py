"""Train both CLIP encoders on pairs of emoji and name, with CLIP's contrastive loss."""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from batches import shuffled
from schedule import cosine
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

BATCH = 256
LEARNING_RATE = 1e-3
LARGEST_SCALE = 100.0  # as in CLIP
TEMPLATES = ("a {}", "a picture of a {}", "a photo of a {}", "an emoji of a {}", "{} emoji", "{} on white")
IN_A_SENTENCE = 0.4  # share of captions
SHORTENED = 0.25  # share of captions that lose a word
SHIFT = 4  # px

Tokenize = Callable[[list[str]], torch.Tensor]


class Clip(nn.Module):
    """The two encoders and the temperature that they are trained with."""

    def __init__(self, text: CLIPTextModelWithProjection, vision: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.text, self.vision = text, vision
        self.log_scale = nn.Parameter(torch.tensor(14.0).log())

    def forward(self, tokens_BT: torch.Tensor, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Scaled cosine of every text with every picture: (B, B)."""
        text_BE = F.normalize(self.text(tokens_BT).text_embeds.float(), dim=-1)
        image_BE = F.normalize(self.vision(pixels_BCHW).image_embeds.float(), dim=-1)
        return self.log_scale.exp().clamp(max=LARGEST_SCALE) * text_BE @ image_BE.T


def contrastive_loss(logits_BB: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric cross-entropy (https://arxiv.org/abs/2103.00020, figure 3)."""
    labels = torch.arange(len(logits_BB))
    return (F.cross_entropy(logits_BB, labels) + F.cross_entropy(logits_BB.T, labels)) / 2


def tokens_of(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Padded to the longest only: the text model is causal, so what follows the first <|endoftext|> changes nothing."""
    padded = tokenizer(texts, padding="longest", truncation=True, return_tensors="pt")
    ids: torch.Tensor = padded.input_ids
    return ids


def reworded(text: str, dice: random.Random) -> str:
    """The bare name, or now and then less of it or a sentence around it (`cat face`, `a photo of a cat`)."""
    words = text.split()
    if len(words) > 1 and dice.random() < SHORTENED:
        del words[dice.randrange(len(words))]
    name = " ".join(words)
    return dice.choice(TEMPLATES).format(name) if dice.random() < IN_A_SENTENCE else name


def shifted(pixels_BCHW: torch.Tensor, dice: random.Random) -> torch.Tensor:
    """The batch moved by a few pixels, its edge repeated. Not mirrored: names say left and right."""
    side = pixels_BCHW.shape[-1]
    top, left = dice.randrange(2 * SHIFT + 1), dice.randrange(2 * SHIFT + 1)
    padded = F.pad(pixels_BCHW, (SHIFT, SHIFT, SHIFT, SHIFT), mode="replicate")
    return padded[..., top : top + side, left : left + side]


def optimizer_of(model: Clip) -> torch.optim.AdamW:
    """No decay of embeddings, so that the words no caption has keep their size, nor of norms and biases."""
    decayed = [weight for name, weight in model.named_parameters() if weight.ndim > 1 and "embedding" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.ndim <= 1 or "embedding" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))


def train(clip: Clip, tokenize: Tokenize, texts: list[str], pixels_NCHW: torch.Tensor, steps: int, seed: int) -> None:
    """Train in bf16 autocast; the encoders are in eval mode afterwards."""
    dice = random.Random(seed)
    clip.train()
    clip.text.set_attn_implementation("eager")  # trains faster than SDPA on a CPU
    clip.vision.set_attn_implementation("eager")
    optimizer = optimizer_of(clip)
    order = shuffled(len(texts), BATCH, dice)
    for step in range(steps):
        rows = next(order)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine(step, steps)
        tokens_BT = tokenize([reworded(texts[row], dice) for row in rows])
        with torch.autocast("cpu", torch.bfloat16):
            logits_BB = clip(tokens_BT, shifted(pixels_NCHW[rows], dice))
        loss = contrastive_loss(logits_BB)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            found = (logits_BB.argmax(1) == torch.arange(len(rows))).float().mean()
            print(f"clip {step:5d}  loss {loss.item():.3f}  R@1 in {len(rows)} {found.item():.2f}", flush=True)
    clip.eval()


@torch.no_grad()
def recall(clip: Clip, tokenize: Tokenize, texts: list[str], pixels_NCHW: torch.Tensor) -> float:
    """Share of the texts whose nearest picture is their own."""
    nearest = clip(tokenize(texts), pixels_NCHW).argmax(1)
    return float((nearest == torch.arange(len(texts))).float().mean())
