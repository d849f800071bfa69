"""Train from the same noise with kcache and with the reference's scripts, which run the encoders live: the same curve.

    python examples/kandinsky-tiny/same_curve.py --diffusers DIFFUSERS --pictures PATH --out same-curve

DIFFUSERS is a checkout of github.com/huggingface/diffusers; its scripts run as they are. Both sides get the same
options by the same names and the same seed; their draws of order, noise and timesteps differ, so that curves agree as
those of two seeds do, and a second kcache run with another seed says how much that is. `tests/test_parity_*.py` hold
that one step on the same draws has the same loss and gradients.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import emoji
import learn

SCRIPTS = Path("examples", "kandinsky2_2", "text_to_image")
BATCH = {"prior": 64, "decoder": 32}
OPTIONS = "--learning_rate 5e-4 --lr_scheduler constant_with_warmup --lr_warmup_steps 50"
SIDES = {"live encoders": "#c2410c", "kcache": "#1d4ed8", "kcache, another seed": "#93b4f5"}
"""What is drawn, and its colour."""
WINDOW = 20
"""Updates of the running mean that is drawn."""


def run(words: Sequence[str], folder: Path) -> None:
    """Run Python without the hub, on one core, shown as a user would type it."""
    print(f"\n$ {shlex.join(['python', *words])}", flush=True)
    alone = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "WANDB_MODE": "disabled"}
    # In the root of the checkout: the decoder's card names its prior from there.
    subprocess.run([sys.executable, *words], cwd=learn.HERE.parents[1], env=os.environ | alone, check=True)


def lines(stage: str, options: argparse.Namespace, start: Path) -> dict[str, list[str]]:
    """The command line of each side, without where it writes."""
    shared = shlex.split(f"--train_batch_size {BATCH[stage]} --max_train_steps {options.steps} {OPTIONS}")
    shared += [f"--pretrained_prior_model_name_or_path={start / 'prior'}"]
    shared += [f"--pretrained_decoder_model_name_or_path={start / 'decoder'}"]
    shared += ["--resolution", "64"] if stage == "decoder" else []
    script = options.diffusers / SCRIPTS / f"train_text_to_image_{stage}.py"
    reference = [str(script), "--train_data_dir", str(options.pictures), "--cache_dir", str(options.out / "datasets")]
    ours = ["-m", "kcache", "train", stage, str(options.out / "cache"), "--logging-steps", "1"]
    return {
        "live encoders": [*reference, *shared, "--seed", "0"],
        "kcache": [*ours, *shared, "--seed", "0"],
        "kcache, another seed": [*ours, *shared, "--seed", "1"],
    }


def put_on_white(pictures: Path, to: Path, most: int) -> Path:
    """A folder of the pictures without their alpha: the reference drops it and shows what lies beneath."""
    if not to.exists():
        building = to.with_name(f"{to.name}.building")
        building.mkdir(exist_ok=True)
        rows = emoji.read_rows(pictures)
        rows = rows[:: max(1, len(rows) // most)][:most]
        for row in rows:
            picture = emoji.on_white(pictures / row["file_name"])
            row["file_name"] = f"{Path(row['file_name']).stem}.png"
            picture.resize((128, 128)).save(building / row["file_name"])
        (building / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        building.rename(to)
    return to


def learn_noise(scheduler: Path) -> None:
    """Have the UNet predict the noise: the reference's script knows nothing else, whatever the scheduler says."""
    config = json.loads(scheduler.read_text(encoding="utf-8"))
    scheduler.write_text(json.dumps(config | {"prediction_type": "epsilon"}, indent=2) + "\n", encoding="utf-8")


def losses_of(out: Path) -> list[float]:
    """The loss of every update, from kcache's metrics or the reference's TensorBoard file."""
    if (out / "metrics.jsonl").exists():
        measured = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return [line["loss"] for line in measured if "loss" in line]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {
        file.parent for file in out.rglob("events.out.tfevents*") if file.parent.name == "text2image-fine-tune"
    }
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [event.value for event in events.Scalars("train_loss")]


def smooth(losses: Sequence[float]) -> list[float]:
    """The mean of the last `WINDOW` losses at every update that has so many before it."""
    return [fmean(losses[end - WINDOW : end]) for end in range(WINDOW, len(losses) + 1)]


def gap(one: Sequence[float], other: Sequence[float]) -> float:
    """How far two smoothed curves are from each other on average, as a share of the second."""
    return fmean(abs(a - b) / b for a, b in zip(smooth(one), smooth(other), strict=True))


def draw(stage: str, curves: dict[str, list[float]], left: int) -> str:
    """One stage's curves as a group of an SVG."""
    width, height = 330, 180
    drawn = {side: smooth(losses) for side, losses in curves.items()}
    top = max(max(curve) for curve in drawn.values())
    parts = [f'<text x="0" y="-8" font-weight="600">{stage}: loss, mean of {WINDOW} updates</text>']
    parts.append(f'<path d="M0 0V{height}H{width}" fill="none" stroke="#999"/>')
    parts.append(f'<text x="-6" y="10" text-anchor="end">{top:.2f}</text>')
    parts.append(f'<text x="-6" y="{height}" text-anchor="end">0</text>')
    parts.append(f'<text x="{width}" y="{height + 16}" text-anchor="end">{len(curves["kcache"])} updates</text>')
    for side, curve in drawn.items():
        at = [f"{i * width / (len(curve) - 1):.1f},{height * (1 - value / top):.1f}" for i, value in enumerate(curve)]
        parts.append(f'<polyline fill="none" stroke="{SIDES[side]}" stroke-width="1.4" points="{" ".join(at)}"/>')
    return f'<g transform="translate({left},40)">{"".join(parts)}</g>'


def picture(stages: dict[str, dict[str, list[float]]]) -> str:
    """All curves as an SVG."""
    groups = [draw(stage, curves, 50 + 410 * place) for place, (stage, curves) in enumerate(stages.items())]
    key = [
        f'<rect x="{50 + 190 * place}" y="262" width="14" height="4" fill="{color}"/>'
        f'<text x="{70 + 190 * place}" y="268">{side}</text>'
        for place, (side, color) in enumerate(SIDES.items())
    ]
    size = f'viewBox="0 0 {410 * len(stages) + 10} 280" font-family="sans-serif" font-size="11" fill="#333"'
    paper = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{paper}{"".join([*groups, *key])}</svg>\n'


def main() -> None:
    """Train all, print how far the curves are apart, draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusers", type=Path, required=True, help="a checkout of diffusers")
    parser.add_argument("--pictures", type=Path, required=True, help="the emoji: a folder with metadata.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="a folder to write to")
    parser.add_argument("--steps", type=int, default=300, help="updates of each run")
    parser.add_argument("--most", type=int, default=1024, help="so many pictures")
    parser.add_argument("--stages", nargs="+", choices=list(BATCH), default=list(BATCH))
    options = parser.parse_args()
    for name in ("diffusers", "pictures", "out"):
        setattr(options, name, getattr(options, name).resolve())
    options.out.mkdir(parents=True, exist_ok=True)
    options.pictures = put_on_white(options.pictures, options.out / "pictures", options.most)
    start = learn.begin(options.out)
    learn_noise(start / "decoder" / "scheduler" / "scheduler_config.json")
    encoders = [f"--pretrained-{stage}-model-name-or-path={start / stage}" for stage in ("prior", "decoder")]
    run(
        ["-m", "kcache", "encode", str(options.pictures), str(options.out / "cache"), "--resolution", "64", *encoders],
        options.out,
    )
    stages = {}
    for stage in options.stages:
        curves = stages[stage] = {}
        for side, line in lines(stage, options, start).items():
            out = options.out / f"{stage} {side}".replace(",", "").replace(" ", "-")
            if not out.exists():
                building = out.with_name(f"{out.name}.building")
                shutil.rmtree(building, ignore_errors=True)
                run([*line, "--output_dir", str(building)], options.out)
                building.rename(out)
            curves[side] = losses_of(out)
        apart = gap(curves["live encoders"], curves["kcache"]), gap(curves["kcache, another seed"], curves["kcache"])
        print(f"{stage}: live encoders and kcache are {apart[0]:.1%} apart, two seeds of kcache {apart[1]:.1%}")
    (options.out / "curves.svg").write_text(picture(stages), encoding="utf-8")
    told = {
        stage: {side: smooth(losses)[::WINDOW] for side, losses in curves.items()} for stage, curves in stages.items()
    }
    (options.out / "curves.json").write_text(json.dumps(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
