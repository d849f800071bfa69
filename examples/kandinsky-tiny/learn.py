"""Train the prior and the UNet of kandinsky-tiny from noise, by kcache's command line, and score them.

    make learn PICTURES=PATH

Both are trained on all of the emoji but the hundred that are held out (`emoji.held_out_texts`), from one cache, and
then scored (`score.py`) against floors. It takes one to two hours on two cores; killed and run again, it goes on.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import architecture
import emoji
import score
import torch
from diffusers import PriorTransformer

HERE = Path(__file__).resolve().parent
RECIPE = "--learning-rate 1e-3 --lr-scheduler cosine --lr-warmup-steps 100 --seed 0 --resume-from-checkpoint latest"
PRIOR = "--train-batch-size 64 --max-train-steps 3000 --checkpointing-steps 1000"
DECODER = "--train-batch-size 32 --max-train-steps 11500 --checkpointing-steps 500 --conditioning-dropout 0.1"
FLOORS = {
    "trained: prior_recall_1": 0.95,
    "held out: prior_recall_1": 0.9,
    "trained: generated_recall_1": 0.9,
    "held out: generated_recall_1": 0.7,
}


def begin(folder: Path) -> Path:
    """A copy of kandinsky-tiny in ``folder`` whose prior and UNet are seeded noise; its path."""
    start = folder / "start"
    if not start.exists():
        building = folder / "start.building"
        shutil.copytree(score.TINY, building, dirs_exist_ok=True)
        statistics = PriorTransformer.from_pretrained(score.TINY / "prior", subfolder="prior")
        torch.manual_seed(0)
        prior = architecture.prior(torch.Generator().manual_seed(0))
        prior.clip_mean.data.copy_(statistics.clip_mean)
        prior.clip_std.data.copy_(statistics.clip_std)
        prior.save_pretrained(building / "prior" / "prior")
        architecture.unet().save_pretrained(building / "decoder" / "unet")
        building.rename(start)
    return start


def write_seen(pictures: Path, file: Path) -> None:
    """The ids of the pictures to train on, one in a line."""
    rows = emoji.read_rows(pictures)
    held_out = emoji.held_out_texts([row["text"] for row in rows])
    file.write_text("".join(f"{row['file_name']}\n" for row in rows if row["text"] not in held_out), encoding="utf-8")


def commands(pictures: Path, folder: Path, start: Path) -> list[str]:
    """What a user would type."""
    base = {stage: f"--pretrained-{stage}-model-name-or-path {start}/{stage}" for stage in ("prior", "decoder")}
    seen = f"--sample-ids {folder}/seen.txt"
    return [
        f"encode {shlex.quote(str(pictures))} {folder}/cache --resolution 64 {base['prior']} {base['decoder']}",
        f"train prior {folder}/cache --output-dir {folder}/prior {seen} {base['prior']} {PRIOR} {RECIPE}",
        f"train decoder {folder}/cache --output-dir {folder}/decoder --resolution 64 {seen} {base['decoder']} {DECODER}"
        f" {RECIPE}",
    ]


def main() -> int:
    """Encode, train both, score; the exit code of the first that fails, 1 where a floor is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="the emoji: a folder with metadata.jsonl")
    parser.add_argument("--out", type=Path, default=Path("learn-out"))
    options = parser.parse_args()
    if not (options.pictures / "metadata.jsonl").is_file():
        parser.error(
            f"{options.pictures} has no metadata.jsonl; examples/kandinsky-tiny/README.md says where the pictures"
            " come from: then make learn PICTURES=PATH"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    start = begin(options.out)
    write_seen(options.pictures, options.out / "seen.txt")
    one_thread = {"OMP_NUM_THREADS": "1", **os.environ}  # models this small gain nothing from a second
    for command in commands(options.pictures, options.out, start):
        print(f"\n$ kcache {command}", flush=True)
        code = subprocess.run([sys.executable, "-m", "kcache", *shlex.split(command)], env=one_thread).returncode
        if code:
            return code
    scores = ["--prior", options.out / "prior", "--decoder", options.out / "decoder"]
    kept = ["--grid", options.out / "scores.png", "--json", options.out / "scores.json"]
    floors = [word for name, floor in FLOORS.items() for word in ("--floor", name, str(floor))]
    command = [sys.executable, HERE / "score.py", "--pictures", options.pictures, *scores, *kept, *floors]
    print(f"\n$ {shlex.join(['python', *map(str, command[1:])])}", flush=True)
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
