"""CLIP's real vocabulary of 49,408 entries as a tokenizer folder, made from OpenAI's list of byte-pair merges."""

import gzip
import json
import zipfile
from pathlib import Path

from transformers import CLIPTokenizer

LIST_NAME = "bpe_simple_vocab_16e6.txt.gz"
N_MERGES = 49_152 - 256 - 2  # OpenAI's list is longer than the vocabulary that CLIP uses
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def read_merges(path: Path) -> list[str]:
    """The merges CLIP uses, from the `.txt.gz` itself or from the `open_clip_torch` wheel that carries it."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            packed = wheel.read(f"open_clip/{LIST_NAME}")
    else:
        packed = path.read_bytes()
    return gzip.decompress(packed).decode().split("\n")[1 : N_MERGES + 1]


def byte_alphabet() -> list[str]:
    """One printable character for each of the 256 bytes, in the order of GPT-2's and CLIP's vocabularies."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(others)]


def vocabulary(merges: list[str]) -> dict[str, int]:
    """Entry -> token id: 256 bytes, the same ending a word, the merges, the two special tokens."""
    letters = byte_alphabet()
    merged = ["".join(pair.split()) for pair in merges]
    entries = [*letters, *(letter + "</w>" for letter in letters), *merged, *SPECIAL]
    return {entry: token for token, entry in enumerate(entries)}


def build_tokenizer(path: Path) -> CLIPTokenizer:
    """The tokenizer from OpenAI's list, or the one of a tokenizer folder that was written before."""
    if path.is_dir():
        return CLIPTokenizer.from_pretrained(path)
    merges = read_merges(path)
    pairs = [tuple(pair.split()) for pair in merges]
    return CLIPTokenizer(vocab=vocabulary(merges), merges=pairs, model_max_length=77)


def save_as_on_the_hub(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Replace transformers 5's `tokenizer.json` (3.6 MB) by the hub's `vocab.json` and `merges.txt` (1.4 MB)."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = "\n".join(" ".join(pair) for pair in state["merges"])
    vocab = json.dumps(state["vocab"], ensure_ascii=False, separators=(",", ":"))
    (folder / "vocab.json").write_text(vocab, encoding="utf-8")
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    kept = {name: value for name, value in config.items() if name not in ("is_local", "local_files_only")}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
