"""The tour: teach both stages a new style, and draw prompts before and after; each command as a user would type it."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from kcache.demo_page import Step, write_page
from kcache.demo_style import restyle_folder
from kcache.shards.errors import KcacheError, UsageError

PROMPTS = (
    "red apple",
    "fox",
    "penguin",
    "red heart",
    "sunflower",
    "yellow heart",
    "man astronaut",
    "lion",
)

MOST_PROMPTS = 40
"""Each is drawn twice, and a sheet of more is hard to look at."""


@dataclass(frozen=True)
class DemoConfig:
    """The options of ``kcache demo``."""

    directory: str = "kcache-demo"
    prompt: tuple[str, ...] = PROMPTS
    prior_steps: int = 150
    decoder_steps: int = 300


@dataclass(frozen=True)
class Drawn:
    """What the demo ends with."""

    sheet: Path
    page: Path


def demo(config: DemoConfig, say: Callable[[str], None]) -> Drawn:
    """Run the main job end to end in a new folder. KcacheError when a command of it fails.

    Each step is a command of its own process, said before it is run.
    """
    prompts = checked_prompts(config.prompt)
    folder = _new_folder(Path(config.directory))
    say(f"The demo goes into {folder}: captioned pictures, and kandinsky-tiny, a Kandinsky 2.2 of a few megabytes.")
    with as_file(files("kcache") / "data") as data:
        shutil.copytree(data / "kandinsky-tiny", folder / "kandinsky-tiny")
        count = restyle_folder(data / "pictures", folder / "stickers")
    _name_prior(folder)
    say(f"{folder}/stickers holds the style to be learned: {count} pictures as stickers with a thick outline.")
    steps = [
        _run_step(title, command, say)
        for title, command in _commands(config, prompts, shlex.quote(str(folder))).items()
    ]
    sheet = _before_after(folder, prompts)
    return Drawn(sheet, write_page(folder, prompts, steps))


def checked_prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    """The prompts without space around them, and those of nothing but space left out; UsageError for none or many."""
    kept = tuple(" ".join(prompt.split()) for prompt in prompts if prompt.strip())
    if not kept:
        raise UsageError("no prompt has a word in it; name one: kcache demo --prompt 'red apple'")
    if len(kept) > MOST_PROMPTS:
        raise UsageError(
            f"{len(kept)} prompts are more than the {MOST_PROMPTS} that the demo draws; name fewer, and draw the others"
            " with 'kcache generate --prompts-file'"
        )
    return kept


def run_command(arguments: Sequence[str]) -> int:
    """``kcache ARGUMENTS`` in a process of its own; its exit code."""
    # Models this small gain nothing from a second thread, and lose much where another program wants that core.
    one_thread = {"OMP_NUM_THREADS": "1", **os.environ}
    return subprocess.run([sys.executable, "-m", "kcache", *arguments], env=one_thread).returncode


def _run_step(title: str, command: str, say: Callable[[str], None]) -> Step:
    started = time.monotonic()
    say(f"\n# {title}\n$ kcache {command}")
    code = run_command(shlex.split(command))
    if code:
        raise KcacheError(f"'kcache {command}' ended with exit code {code}; run it again with -v to see why")
    seconds = time.monotonic() - started
    say(f"({seconds:.0f} s)")
    return Step(title, f"kcache {command}", seconds)


def _name_prior(folder: Path) -> None:
    """Let the copied decoder's card name the copied prior, by which AutoPipelineForText2Image finds it."""
    card = folder / "kandinsky-tiny" / "decoder" / "README.md"
    prior = (folder / "kandinsky-tiny" / "prior").resolve()
    card.write_text(card.read_text().replace("kcache/data/kandinsky-tiny/prior", str(prior), 1))


def _commands(config: DemoConfig, prompts: Sequence[str], folder: str) -> dict[str, str]:
    """What each command shows, and the command."""
    tiny = f"{folder}/kandinsky-tiny"
    from_prior = f"--pretrained-prior-model-name-or-path {tiny}/prior"
    from_decoder = f"--pretrained-decoder-model-name-or-path {tiny}/decoder"
    rate = "--lr-scheduler cosine --lr-warmup-steps 10 --seed 0"
    drawn = (
        "--resolution 64 --num-inference-steps 25 --guidance-scale 1 --prior-guidance-scale 1 --batch-size 8"
        f" -- {shlex.join(prompts)}"
    )
    return {
        "Before: draw the prompts with kandinsky-tiny as it is, through the stock diffusers pipelines.": (
            f"generate --prior {tiny}/prior --decoder {tiny}/decoder -o {folder}/before/ {drawn}"
        ),
        "Encode the stickers and their captions once, with the frozen encoders.": (
            f"encode {folder}/stickers {folder}/cache --resolution 64 {from_prior} {from_decoder}"
        ),
        "What is in the cache?": f"info {folder}/cache",
        "Train the prior (caption -> image embedding) from the cache alone.": (
            f"train prior {folder}/cache --output-dir {folder}/prior {from_prior} --train-batch-size 32"
            f" --max-train-steps {config.prior_steps} --learning-rate 3e-4 {rate}"
        ),
        "Train the decoder (image embedding -> picture) from the cache alone.": (
            f"train decoder {folder}/cache --output-dir {folder}/decoder --resolution 64 {from_decoder}"
            f" --train-batch-size 16 --max-train-steps {config.decoder_steps} --learning-rate 6e-4 {rate}"
        ),
        "After: draw the same prompts from the same seeds with what was trained.": (
            f"generate --prior {folder}/prior --decoder {folder}/decoder -o {folder}/after/ {drawn}"
        ),
        "The curves of both trainings, on one page.": (
            f"report {folder}/prior {folder}/decoder -o {folder}/report.html"
        ),
    }


def _before_after(folder: Path, prompts: Sequence[str]) -> Path:
    """Write ``before-after.png``: for each prompt the picture before the training and the one after, side by side."""
    from PIL import Image

    from kcache.grids import Group, labelled_sheet

    pairs = zip(_drawn(folder / "before"), _drawn(folder / "after"), strict=True)
    groups = [
        Group(prompt, [Image.open(path).convert("RGB") for path in pair], ["before", "after"])
        for prompt, pair in zip(prompts, pairs, strict=True)
    ]
    sheet = folder / "before-after.png"
    labelled_sheet([("", groups)]).save(sheet, optimize=True)
    return sheet


def _drawn(folder: Path) -> list[Path]:
    """The pictures that ``kcache generate`` wrote there, in the order of the prompts: their names begin with it."""
    return sorted(path for path in folder.glob("*.png") if path.name != "grid.png")


def _new_folder(wanted: Path) -> Path:
    """``wanted``, or the first of ``wanted-2``, ``wanted-3``, ... that does not exist: nothing is overwritten."""
    folder, number = wanted, 1
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
