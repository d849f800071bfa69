"""Build kandinsky-tiny: train CLIP and MoVQ on the emoji, measure both on a hundred held out, save both folders."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import architecture
import emoji
import folders
import torch
import train_clip
import train_movq
import vocabulary
from cards import Scores
from safetensors.torch import load_file, save_file
from torch import nn


@dataclass(frozen=True)
class Options:
    """The command line."""

    pictures: Path
    out: Path
    bpe: Path
    work: Path | None
    untrained: bool
    clip_steps: int
    movq_steps: int
    seed: int
    threads: int


@dataclass(frozen=True)
class Pictures:
    """Names and pixels of one part of the emoji; pixels are (N, 3, 64, 64)."""

    texts: list[str]
    for_clip: torch.Tensor
    for_movq: torch.Tensor


def parse(arguments: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(description=__doc__)
    bpe_help = f"{vocabulary.LIST_NAME}, or the open_clip_torch wheel that has it [default: the tokenizer in OUT]"
    parser.add_argument("--pictures", type=Path, required=True, help="a folder with metadata.jsonl and its pictures")
    parser.add_argument("--out", type=Path, required=True, help="gets prior/ and decoder/")
    parser.add_argument("--bpe", type=Path, help=bpe_help)
    parser.add_argument("--work", type=Path, help="keeps the trained encoders; what lies there is not trained again")
    parser.add_argument("--untrained", action="store_true", help="save all networks as initialised")
    parser.add_argument("--clip-steps", type=int, default=2000, help="0.5 s each on one core")
    parser.add_argument("--movq-steps", type=int, default=1400, help="0.8 s each on one core")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = vars(parser.parse_args(arguments))
    given["bpe"] = given["bpe"] or given["out"] / "prior" / "tokenizer"
    if not given["bpe"].exists():
        parser.error(
            f"{given['bpe']} does not exist; run 'pip download --no-deps open_clip_torch==3.3.0', pass it as --bpe"
        )
    return Options(**given)


def read(folder: Path, networks: folders.Networks) -> tuple[Pictures, Pictures]:
    """The emoji to train on, and the hundred that are held out."""
    everything = emoji.read_emoji(folder)
    held_out = emoji.held_out_texts([one.text for one in everything])
    parts = [[one for one in everything if (one.text in held_out) is held] for held in (False, True)]
    train, test = (
        Pictures(
            texts=[one.text for one in part],
            for_clip=emoji.clip_pixels(part, networks.processor),
            for_movq=emoji.movq_pixels(part, architecture.PIXELS),
        )
        for part in parts
    )
    return train, test


def train_or_load(model: nn.Module, kept: Path | None, train: Callable[[], None]) -> None:
    """Train `model`, or give it the weights that an earlier run kept; rounded to fp16 as they will be saved."""
    if kept is not None and kept.exists():
        model.load_state_dict(load_file(kept))
    else:
        train()
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), kept)
    model.half().float().eval()


def train_encoders(networks: folders.Networks, train: Pictures, test: Pictures, options: Options) -> Scores:
    """Train both kinds of encoder in place, and measure them on the held-out emoji."""
    clip = train_clip.Clip(networks.text_encoder, networks.image_encoder)
    movq = networks.movq
    seed, work = options.seed, options.work

    def tokenize(texts: list[str]) -> torch.Tensor:
        return train_clip.tokens_of(networks.tokenizer, texts)

    train_or_load(
        clip,
        work and work / "clip.safetensors",
        lambda: train_clip.train(clip, tokenize, train.texts, train.for_clip, options.clip_steps, seed),
    )
    train_or_load(
        movq,
        work and work / "movq.safetensors",
        lambda: train_movq.train(movq, train.for_movq, options.movq_steps, seed),
    )
    return Scores(
        clip_recall=train_clip.recall(clip, tokenize, test.texts, test.for_clip),
        movq_psnr=train_movq.psnr(train_movq.reconstruct(movq, test.for_movq), test.for_movq),
    )


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    networks = folders.untrained(vocabulary.build_tokenizer(options.bpe), options.seed)
    train, test = read(options.pictures, networks)
    scores = Scores() if options.untrained else train_encoders(networks, train, test, options)
    folders.set_clip_statistics(networks, train.for_clip)
    folders.write(networks, options.out, scores)
    print(f"{options.out}: {scores}")


if __name__ == "__main__":
    main()
