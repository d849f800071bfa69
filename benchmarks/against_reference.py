"""Measures `kcache train` against the reference's scripts, run as they are, on the same pictures, batch and precision.

    python benchmarks/against_reference.py --diffusers DIFFUSERS                 a small Kandinsky on a CPU: ten minutes
    python benchmarks/against_reference.py --diffusers DIFFUSERS --size full     the hub's architecture, on a GPU

DIFFUSERS is a checkout of github.com/huggingface/diffusers; its examples/kandinsky2_2/text_to_image is all that is read
of it. Weights are random, pictures those that come with kcache. In every round each side is a process of its own, and
sides change who goes first. `stopwatch.py` runs both: it starts its clock after ``--warm`` updates, stops it after
``--updates`` more, and changes nothing in between, so that neither starting nor saving counts. Both get the same
options by the same names, kcache also ``--probe-samples 0``. The reference reads and decodes its pictures while it
trains, in ``--workers`` processes; what `kcache encode` took beforehand is told beside the ratios, as the updates of
the reference that take as long.

Memory is the peak until the last update: what torch had allocated on a GPU, else all that the process held, of which
Python and its libraries are the larger part at the small size. A script that does not run with the installed diffusers
is told with its own error, and kcache measured alone. The scripts themselves need no torchvision; without it,
transformers prepares CLIP's pictures by Pillow.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from hub_folders import write_models, write_pictures
from machine import add_json_option, describe, keep

import kcache

SIZES: dict[str, dict[str, Any]] = {
    "small": {"batch_size": 4, "resolution": 128, "mixed_precision": "no", "workers": 0, "warm": 2, "updates": 8},
    "full": {"batch_size": 16, "resolution": 512, "mixed_precision": "bf16", "workers": 8, "warm": 10, "updates": 40},
}
SCRIPTS = Path("examples", "kandinsky2_2", "text_to_image")
COLUMNS = {"prior": ["text", "image"], "decoder": ["image", "latents"]}
RATIOS = {
    "seconds": "samples a second",
    "processor seconds": "samples a second of processor time",
    "peak bytes": "memory",
}
"""What is measured, and how its ratio is called: always the reference's figure over kcache's."""


class DoesNotRunError(Exception):
    """A program ended without having made its updates; says what its last line was."""


@dataclass(frozen=True)
class Case:
    """A stage, trained in full or by a LoRA, in a folder that holds the models, the pictures and the cache."""

    stage: str
    lora: bool
    folder: Path
    options: argparse.Namespace

    @property
    def name(self) -> str:
        """As in the output."""
        return f"{self.stage} {'LoRA' if self.lora else 'full'}"

    @property
    def script(self) -> Path:
        """The reference's program for it."""
        name = f"train_text_to_image_{'lora_' if self.lora else ''}{self.stage}.py"
        return Path(self.options.diffusers) / SCRIPTS / name

    def shared(self) -> list[str]:
        """The options that both sides get, by the names that the reference has for them."""
        options = self.options
        given: dict[str, Any] = {
            "train_batch_size": options.batch_size,
            "max_train_steps": options.warm + options.updates,
            "mixed_precision": options.mixed_precision,
            "seed": 0,
        }
        if self.stage == "decoder":
            given["resolution"] = options.resolution
        return [*models(self.folder), *(word for name, value in given.items() for word in (f"--{name}", str(value)))]

    def reference(self, out: Path) -> list[str]:
        """The reference's command line."""
        workers, held = str(self.options.workers), str(out / "datasets")
        data = ["--train_data_dir", str(self.folder / "pictures"), "--cache_dir", held]
        own = ["--dataloader_num_workers", workers, "--output_dir", str(out)]
        return [str(self.script), *data, *own, *self.shared()]

    def kcache(self, out: Path) -> list[str]:
        """The command line of kcache; beside a LoRA the reference holds weights in the precision it computes in."""
        line = ["-m", "kcache", "train", self.stage, str(self.folder / "cache"), "--output_dir", str(out)]
        if self.lora:
            line += ["--lora", "--base-dtype", {"no": "fp32", "bf16": "bf16"}[self.options.mixed_precision]]
        return [*line, "--probe-samples", "0", *self.shared()]


def models(folder: Path) -> list[str]:
    """The options that say where the models are."""
    names = [f"--pretrained_{name}_model_name_or_path" for name in ("prior", "decoder")]
    return [names[0], str(folder / "model" / "prior"), names[1], str(folder / "model" / "decoder")]


def run(line: list[str], folder: Path) -> None:
    """Run Python with this kcache, apart from the hub and from the caches of whoever runs this."""
    own = Path(kcache.__file__).parent.parent
    paths = os.pathsep.join(filter(None, [str(own), os.environ.get("PYTHONPATH")]))
    alone = {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "WANDB_MODE": "disabled"}
    ended = subprocess.run(
        [sys.executable, *line], cwd=folder, env=os.environ | alone, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        last = (ended.stderr.strip() or f"it ended with code {ended.returncode} and said nothing").splitlines()[-1]
        raise DoesNotRunError(last)


def timed(line: list[str], case: Case, out: Path) -> dict[str, float]:
    """What the stopwatch says of a command line, run in an empty folder ``out`` that is removed again."""
    watch, result = Path(__file__).with_name("stopwatch.py"), case.folder / "result.json"
    result.unlink(missing_ok=True)
    out.mkdir()
    try:
        run([str(watch), str(result), str(case.options.warm), str(case.options.updates), *line], out)
        if not result.exists():
            raise DoesNotRunError(f"it ended before update {case.options.warm + case.options.updates}")
        found: dict[str, float] = json.loads(result.read_text(encoding="utf-8"))
        return found
    finally:
        shutil.rmtree(out)


def encode(stage: str, folder: Path, resolution: int) -> float:
    """Fill the cache; returns the seconds it took, the start of Python among them."""
    began = time.perf_counter()
    line = ["-m", "kcache", "encode", str(folder / "pictures"), str(folder / "cache"), *models(folder)]
    run([*line, "--resolution", str(resolution), "--columns", *COLUMNS[stage]], folder)
    return time.perf_counter() - began


def measure(case: Case) -> dict[str, Any]:
    """Every round of both sides; where the reference does not run, why, and the rounds of kcache."""
    digest = hashlib.sha256(case.script.read_bytes()).hexdigest()
    found: dict[str, Any] = {"script": case.script.name, "sha256": digest, "reference": [], "kcache": []}
    lines = {"reference": case.reference, "kcache": case.kcache}
    for number in range(case.options.rounds):
        for side in list(lines)[:: 1 if number % 2 == 0 else -1]:
            out = case.folder / side
            try:
                found[side].append(timed(lines[side](out), case, out))
            except DoesNotRunError as error:
                if side == "kcache":
                    raise SystemExit(f"kcache train {case.stage} failed: {error}") from None
                found["reference does not run"] = str(error)
                del lines[side]
    return found


def ratios(found: dict[str, Any], what: str) -> list[float]:
    """The reference's figure over kcache's, round by round."""
    return [theirs[what] / ours[what] for theirs, ours in zip(found["reference"], found["kcache"], strict=True)]


def show(case: Case, found: dict[str, Any]) -> None:
    """Print the figures of a case."""
    precision = {"no": "fp32", "bf16": "bf16 mixed precision"}[case.options.mixed_precision]
    print(f"\n{case.name}, batch {case.options.batch_size}, {precision}")
    for side in (side for side in ("reference", "kcache") if found[side]):
        seconds, peak = (median(one[what] for one in found[side]) for what in ("seconds", "peak bytes"))
        print(f"  {side:10} {seconds:8.3f} s an update, peak {peak / 1e9:.2f} GB", flush=True)
    if refused := found.get("reference does not run"):
        print(f"  {case.script.name} does not run here: {refused}", flush=True)
        return
    for what, name in RATIOS.items():
        values = ratios(found, what)
        print(f"  {name:36} {median(values):6.2f}x ({min(values):.2f} to {max(values):.2f})")
    updates = found["encoding seconds"] / median(one["seconds"] for one in found["reference"])
    print(
        f"  encoding {case.options.pictures} pictures took as long as {updates:.0f} updates of the reference",
        flush=True,
    )


def measure_stage(stage: str, options: argparse.Namespace) -> dict[str, Any]:
    """All cases of a stage, in a folder that goes when they are done."""
    figures = {}
    with tempfile.TemporaryDirectory(prefix="kcache-reference-", dir=options.folder) as name:
        folder = Path(name)
        write_models(stage, options.size, folder / "model")
        write_pictures(options.pictures, options.resolution, folder / "pictures")
        seconds = encode(stage, folder, options.resolution)
        for kind in options.kinds:
            case = Case(stage, kind == "lora", folder, options)
            found = figures[case.name] = {"encoding seconds": seconds, **measure(case)}
            show(case, found)
    return figures


def parse() -> argparse.Namespace:
    """The command line, with defaults that fit the size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusers", type=Path, required=True, help="a checkout of diffusers")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--stages", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    parser.add_argument("--kinds", nargs="+", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--batch-size", type=int, help=_default("batch_size"))
    parser.add_argument("--resolution", type=int, help=_default("resolution"))
    parser.add_argument("--pictures", type=int, help="as many as all updates take, and at least 64")
    parser.add_argument("--mixed-precision", choices=["no", "bf16"], help=_default("mixed_precision"))
    parser.add_argument("--workers", type=int, help=f"of the reference's loader; {_default('workers')}")
    parser.add_argument("--warm", type=int, help=f"updates before the clock starts; {_default('warm')}")
    parser.add_argument("--updates", type=int, help=f"updates that are timed; {_default('updates')}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for the models, 15 GB at the full size; else the system's")
    add_json_option(parser)
    options = parser.parse_args()
    for name, value in SIZES[options.size].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.pictures is None:
        options.pictures = max(64, options.batch_size * (options.warm + options.updates))
    options.diffusers = options.diffusers.resolve()
    if not (options.diffusers / SCRIPTS).is_dir():
        parser.error(f"{options.diffusers} has no {SCRIPTS}; give --diffusers a checkout of huggingface/diffusers")
    return options


def _default(name: str) -> str:
    return f"default: {SIZES['small'][name]}, and {SIZES['full'][name]} for the full size"


def main() -> None:
    """Measure and print."""
    options = parse()
    machine = describe("diffusers", "transformers", "accelerate", "peft", "datasets", "torchvision")
    print(json.dumps(machine, indent=1), flush=True)
    figures: dict[str, Any] = {}
    for stage in options.stages:
        figures |= measure_stage(stage, options)
        keep(options, machine, figures)


if __name__ == "__main__":
    main()
