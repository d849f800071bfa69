"""The tour: encode real pictures, train both stages, make a picture; each command as a user would type it."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from kcache.shards.errors import KcacheError

PROMPTS = ("red heart", "green apple", "fox", "penguin", "soccer ball", "sunflower", "fire engine", "octopus")


@dataclass(frozen=True)
class DemoConfig:
    """The options of ``kcache demo``."""

    directory: str = "kcache-demo"
    prior_steps: int = 200
    decoder_steps: int = 200


def demo(config: DemoConfig, say: Callable[[str], None]) -> Path:
    """Run the main job end to end in a new folder; returns the path of the picture grid.

    Each step is a command of its own process, said before it is run. KcacheError when one fails.
    """
    folder = _new_folder(Path(config.directory))
    say(f"The demo goes into {folder}: 96 captioned pictures, and kandinsky-tiny, a Kandinsky 2.2 of a few megabytes.")
    for name in ("pictures", "kandinsky-tiny"):
        with as_file(files("kcache") / "data" / name) as source:
            shutil.copytree(source, folder / name, dirs_exist_ok=True)
    _name_prior(folder)
    # Models this small gain nothing from a second thread, and lose much where another program wants that core.
    one_thread = {"OMP_NUM_THREADS": "1", **os.environ}
    for title, command in _commands(config, shlex.quote(str(folder))).items():
        started = time.monotonic()
        say(f"\n# {title}\n$ kcache {command}")
        code = subprocess.run([sys.executable, "-m", "kcache", *shlex.split(command)], env=one_thread).returncode
        if code:
            raise KcacheError(f"'kcache {command}' ended with exit code {code}; run it again with -v to see why")
        say(f"({time.monotonic() - started:.0f} s)")
    return folder / "grid.png"


def _name_prior(folder: Path) -> None:
    """Let the copied decoder's card name the copied prior, by which AutoPipelineForText2Image finds it."""
    card = folder / "kandinsky-tiny" / "decoder" / "README.md"
    prior = (folder / "kandinsky-tiny" / "prior").resolve()
    card.write_text(card.read_text().replace("kcache/data/kandinsky-tiny/prior", str(prior), 1))


def _commands(config: DemoConfig, folder: str) -> dict[str, str]:
    """What each command shows, and the command."""
    from_prior = f"--pretrained-prior-model-name-or-path {folder}/kandinsky-tiny/prior"
    from_decoder = f"--pretrained-decoder-model-name-or-path {folder}/kandinsky-tiny/decoder"
    prior = f"--train-batch-size 32 --max-train-steps {config.prior_steps} --learning-rate 2e-4 --seed 0"
    decoder = f"--train-batch-size 16 --max-train-steps {config.decoder_steps} --learning-rate 2e-4 --seed 0"
    return {
        "Encode captions and pictures once, with the frozen encoders.": (
            f"encode {folder}/pictures {folder}/cache --resolution 64 {from_prior} {from_decoder}"
        ),
        "What is in the cache?": f"info {folder}/cache",
        "Train the prior (caption -> image embedding) from the cache alone.": (
            f"train prior {folder}/cache --output-dir {folder}/prior {from_prior} {prior}"
        ),
        "Train the decoder (image embedding -> picture) from the cache alone.": (
            f"train decoder {folder}/cache --output-dir {folder}/decoder --resolution 64 {from_decoder} {decoder}"
        ),
        "Make pictures with what was trained, through the stock diffusers pipelines.": (
            f"generate {shlex.join(PROMPTS)} --prior {folder}/prior --decoder {folder}/decoder"
            f" -o {folder}/grid.png --num-inference-steps 25 --guidance-scale 1 --prior-guidance-scale 1"
        ),
    }


def _new_folder(wanted: Path) -> Path:
    """``wanted``, or the first of ``wanted-2``, ``wanted-3``, ... that does not exist: nothing is overwritten."""
    folder, number = wanted, 1
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
