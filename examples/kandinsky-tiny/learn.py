"""Train the prior and the UNet of kandinsky-tiny from noise, by kcache's command line, and score them.

    make learn PICTURES=PATH

Both are trained on all of the emoji but the hundred that are held out (`emoji.held_out_texts`), from one cache, and
then scored (`score.py`) against floors: the weights that kcache ships were made with these options. The UNet is trained
twice, the second time from what the first made, with the learning rate warmed up anew. Models this small gain nothing
from a second thread, so on two cores it is two processes, each with half of every batch; they draw what one would.
Killed and run again, it goes on.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import architecture
import emoji
import score
import torch
from diffusers import PriorTransformer

HERE = Path(__file__).resolve().parent
RECIPE = "--learning-rate 1e-3 --lr-scheduler cosine --lr-warmup-steps 100 --checkpointing-steps 500"
PRIOR_BATCH, DECODER_BATCH = 64, 32  # samples of an update, in all processes together
PRIOR = f"--max-train-steps 3000 --seed 0 {RECIPE}"
DECODER = f"--conditioning-dropout 0.1 --channels-last {RECIPE}"
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


@dataclass(frozen=True)
class Stage:
    """One command of kcache and the folder that exists when it has been done."""

    command: str
    result: Path
    resumes: bool = True
    processes: int = 1

    def run(self) -> int:
        """Run it, or go on with it, unless it has been done; its exit code."""
        if self.result.exists() and self.resumes:
            print(f"\n{self.result} is there", flush=True)
            return 0
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.processes)]
        launcher = torchrun if self.processes > 1 else []
        words = shlex.split(self.command) + ["--resume-from-checkpoint", "latest"] * self.resumes
        print(f"\n$ {shlex.join(['python', *launcher, '-m', 'kcache', *words])}", flush=True)
        one_thread = {"OMP_NUM_THREADS": "1", **os.environ}  # models this small gain nothing from a second
        return subprocess.run([sys.executable, *launcher, "-m", "kcache", *words], env=one_thread).returncode


def processes() -> int:
    """In how many processes to train: one on a GPU and on one core, otherwise two."""
    return 1 if torch.cuda.is_available() else min(2, len(os.sched_getaffinity(0)))


def stages(pictures: Path, folder: Path, start: Path, processes: int) -> Iterator[Stage]:
    """What a user would type, one after the other; the second training of the UNet starts from the first one's."""
    quoted = {name: shlex.quote(str(folder / name)) for name in ("cache", "prior", "decoder-1", "decoder", "seen.txt")}
    tiny = {stage: shlex.quote(str(start / stage)) for stage in ("prior", "decoder")}
    prior, decoder = (f"--pretrained-{stage}-model-name-or-path {path}" for stage, path in tiny.items())
    cache, seen = quoted["cache"], f"--sample-ids {quoted['seen.txt']}"
    encode = f"encode {shlex.quote(str(pictures))} {cache} --resolution 64 {prior} {decoder}"
    yield Stage(encode, folder / "cache", resumes=False)  # it does only what is missing

    def trained(command: str, result: Path, batch: int) -> Stage:
        return Stage(f"{command} --train-batch-size {batch // processes}", result, processes=processes)

    train = f"train prior {cache} --output-dir {quoted['prior']} {seen} {prior} {PRIOR}"
    yield trained(train, folder / "prior" / "prior", PRIOR_BATCH)
    train = f"train decoder {cache} --resolution 64 {seen} {DECODER}"
    first, second = folder / "decoder-1", folder / "decoder"
    begin = f"{train} --output-dir {quoted['decoder-1']} {decoder} --max-train-steps 5500 --seed 0"
    yield trained(begin, first / "unet", DECODER_BATCH)
    begun = copied(start / "decoder", folder / "start-2", first / "unet")
    decoder = f"--pretrained-decoder-model-name-or-path {shlex.quote(str(begun))}"
    go_on = f"{train} --output-dir {quoted['decoder']} {decoder} --max-train-steps 7000 --seed 1"
    yield trained(go_on, second / "unet", DECODER_BATCH)


def copied(checkpoint: Path, to: Path, unet: Path) -> Path:
    """A copy of a decoder's checkpoint with another UNet in it; its path."""
    if not to.exists():
        building = to.with_name(f"{to.name}.building")
        shutil.copytree(checkpoint, building, dirs_exist_ok=True)
        shutil.copytree(unet, building / "unet", dirs_exist_ok=True)
        building.rename(to)
    return to


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
    for stage in stages(options.pictures, options.out, start, processes()):
        if code := stage.run():
            return code
    scores = ["--prior", options.out / "prior", "--decoder", options.out / "decoder"]
    kept = ["--grid", options.out / "scores.png", "--json", options.out / "scores.json"]
    floors = [word for name, floor in FLOORS.items() for word in ("--floor", name, str(floor))]
    command = [sys.executable, HERE / "score.py", "--pictures", options.pictures, *scores, *kept, *floors]
    print(f"\n$ {shlex.join(['python', *map(str, command[1:])])}", flush=True)
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
