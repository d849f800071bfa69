"""The tour: encode real pictures, train both stages, make a picture; each command as a user would type it."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from kcache.shards.errors import KcacheError

PROMPTS = ("red heart", "green apple", "fox", "blue book", "soccer ball", "sunflower", "fire engine", "octopus")


@dataclass(frozen=True)
class DemoConfig:
    """The options of ``kcache demo``."""

    directory: str = "kcache-demo"
    prior_steps: int = 300
    decoder_steps: int = 150


def demo(config: DemoConfig, say: Callable[[str], None]) -> Path:
    """Run the main job end to end in a new folder; returns the path of the picture grid.

    Each step is a command of its own process, said before it is run. KcacheError when one fails.
    """
    folder = _new_folder(Path(config.directory))
    say(
        f"The demo goes into {folder}: 96 pictures with captions, and kandinsky-tiny, a Kandinsky 2.2 of a few megabytes."
    )
    for name in ("pictures", "kandinsky-tiny"):
        with as_file(files("kcache") / "data" / name) as source:
            shutil.copytree(source, folder / name)
    for title, command in _commands(config, folder):
        started = time.monotonic()
        say(f"\n# {title}\n$ kcache {_quoted(command)}")
        code = subprocess.run([sys.executable, "-m", "kcache", *command], check=False).returncode
        if code:
            raise KcacheError(
                f"'kcache {_quoted(command)}' ended with exit code {code}; run it again with -v to see why"
            )
        say(f"({time.monotonic() - started:.0f} s)")
    return folder / "grid.png"


def _commands(config: DemoConfig, folder: Path) -> list[tuple[str, list[str]]]:
    cache, prior, decoder, tiny = folder / "cache", folder / "prior", folder / "decoder", folder / "kandinsky-tiny"
    from_prior = ["--pretrained-prior-model-name-or-path", str(tiny / "prior")]
    from_decoder = ["--pretrained-decoder-model-name-or-path", str(tiny / "decoder")]
    common = ["--learning-rate", "1e-3", "--seed", "0"]
    return [
        (
            "Encode captions and pictures once, with the frozen encoders.",
            ["encode", str(folder / "pictures"), str(cache), "--resolution", "64", *from_prior, *from_decoder],
        ),
        ("What is in the cache?", ["info", str(cache)]),
        (
            "Train the prior (caption -> image embedding) from the cache alone.",
            [
                "train",
                "prior",
                str(cache),
                "--output-dir",
                str(prior),
                *from_prior,
                *common,
                "--train-batch-size",
                "32",
                "--max-train-steps",
                str(config.prior_steps),
            ],
        ),
        (
            "Train the decoder (image embedding -> picture) from the cache alone.",
            [
                "train",
                "decoder",
                str(cache),
                "--output-dir",
                str(decoder),
                *from_decoder,
                *common,
                "--resolution",
                "64",
                "--train-batch-size",
                "16",
                "--max-train-steps",
                str(config.decoder_steps),
            ],
        ),
        (
            "Make pictures with what was trained, through the stock diffusers pipelines.",
            [
                "generate",
                *PROMPTS,
                "--prior",
                str(prior),
                "--decoder",
                str(decoder),
                "-o",
                str(folder / "grid.png"),
                "--num-inference-steps",
                "25",
            ],
        ),
    ]


def _new_folder(wanted: Path) -> Path:
    """``wanted``, or the first of ``wanted-2``, ``wanted-3``, ... that does not exist: nothing is overwritten."""
    folder, number = wanted, 1
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _quoted(command: Sequence[str]) -> str:
    import shlex

    return shlex.join(command)
