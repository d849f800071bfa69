"""Counts the tokens that the prior runs for a caption: at 77, trimmed, grouped by length, and without any padding.

Run ``python benchmarks/caption_padding.py CAPTIONS.jsonl``, a file with a field ``text`` in each line, such as the
``metadata.jsonl`` of an image folder. Nothing is trained; batches are those of ``kcache train prior``.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from machine import add_json_option, describe, keep

import kcache
from kcache.shards import BatchOrder, LengthOrder
from kcache.text_features import load_tokenizer, token_counts
from kcache.training.trimming import trimmed_length

TOKENS, SEED = 77, 0


def tokens_run(order: BatchOrder | LengthOrder, lengths: npt.NDArray[np.int64], added: int, updates: int) -> float:
    """Tokens for each sample, over so many updates: the longest caption's of its batch, and ``added`` more."""
    longest = [trimmed_length(int(lengths[order.batch(step)].max()), TOKENS) for step in range(updates)]
    return float(np.mean(longest)) + added


def main() -> None:
    """Print a line for each size of batch and number of draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[16, 64, 256])
    add_json_option(parser)
    options = parser.parse_args()
    machine, figures = describe("transformers"), dict[str, dict[str, float]]()
    tokenizer = load_tokenizer(Path(kcache.__file__).parent / "data" / "kandinsky-tiny" / "prior" / "tokenizer")
    captions = [json.loads(line)["text"] for line in options.captions.read_text("utf-8").splitlines()]
    lengths = np.array(token_counts(tokenizer, captions)).clip(max=TOKENS)
    print(f"{len(captions):,} captions of {lengths.min()} to {lengths.max()} tokens, {lengths.mean():.1f} on average")
    print("tokens run for a sample   at 77  trimmed  grouped by length  no padding   trimmed / grouped")
    for size in options.batch_size:
        plain = BatchOrder([np.arange(len(lengths))], size, SEED)
        grouped = LengthOrder(plain, lengths, SEED, len(lengths))
        updates = 4 * grouped.window
        for draws in (1, 8):
            added = 1 + 3 * draws
            one, other = (tokens_run(order, lengths, added, updates) for order in (plain, grouped))
            name = f"batch {size:4}, {draws} draw{'s' if draws > 1 else ' '}"
            least = float(lengths.mean()) + added
            print(f"{name} {TOKENS + added:11} {one:8.1f} {other:18.1f} {least:11.1f} {one / other:18.2f}x")
            figures[name] = {"trimmed": one, "grouped by length": other, "no padding": least}
    keep(options, machine, figures)


if __name__ == "__main__":
    main()
