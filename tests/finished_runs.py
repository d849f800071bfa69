"""OUT folders as ``kcache train`` leaves them, written in a moment."""

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.run_record import make_record, public_options

SNAPSHOT = "3fa9c1d2" * 8
BANDS = ("0_249", "250_499", "500_749", "750_999")


def write_run(out: Path, stage: str = "prior", steps: int = 200, *, finished: bool = True, **options: Any) -> Path:
    """An OUT with a line each ten updates, three validations with pictures, and a result unless it was killed."""
    config = {"prior": PriorConfig, "decoder": DecoderConfig}[stage](
        **{"cache": "cache", "output_dir": str(out), "max_train_steps": steps, "seed": 7} | options
    )
    out.mkdir(parents=True, exist_ok=True)
    caches = [{"root": "/home/ada/caches/emoji", "snapshot": SNAPSHOT, "samples": 3388, "columns": {}}]
    run = {"step": 0, "stage": stage, "max_steps": steps, "samples": 3388, "global_batch": 64, "caches": caches}
    (out / "run.json").write_text(json.dumps(make_record(config, run, {})))
    told = [json.dumps(line) for line in measured(stage, steps, finished, config.learning_rate)]
    (out / "metrics.jsonl").write_text("\n".join(told) + "\n")
    for step in range(steps // 4, steps + 1, steps // 4):
        if finished or step < steps:
            write_grid(out, step, step / steps)
    if finished:
        record = {"stage": stage, "trained_from": f"kandinsky-community/kandinsky-2-2-{stage}"}
        (out / "training.json").write_text(json.dumps(record | {"options": public_options(config)}))
    return out


def measured(stage: str, steps: int, finished: bool, rate: float) -> list[dict[str, Any]]:
    """The lines of a run whose loss falls with noise on it; a killed one stops at three quarters."""
    lines: list[dict[str, Any]] = [{"step": 0, "probe_loss": 0.5}]
    end = steps if finished else steps * 3 // 4 - 10
    for step in range(10, end + 1, 10):
        wave = math.sin(step * 12.9898) * 0.04
        fall = math.exp(-step / steps * (1 + 2000 * rate))
        lines.append(
            {
                "step": step,
                "loss": 0.1 + 0.4 * fall + wave,
                "learning_rate": rate * min(1.0, step / (steps / 5)),
                "gradient_norm": 0.6 + 0.5 * fall + 4 * wave,
                "samples_per_second": 900 + 900 * wave,
                "data_wait": 0.02 + abs(wave) / 4,
                "peak_memory_bytes": 3_400_000_000 + step,
            }
        )
        if step % (steps // 4) == 0:
            lines.append({"step": step, **validated(stage, step / steps, fall)})
    return [*lines, {"step": steps, "probe_loss": 0.2}] if finished else lines


def validated(stage: str, part: float, fall: float) -> dict[str, float]:
    """One validation: the loss rises again at the end, as an overfitted run's does."""
    loss = 0.12 + 0.4 * fall + (0.5 * (part - 0.75) if part > 0.75 else 0)
    values = {"validation_loss": loss} | {f"validation_loss_{band}": loss * (1 + i / 4) for i, band in enumerate(BANDS)}
    scores = {"validation_cosine": 0.9 - fall / 2, "validation_r1": 0.8 - fall / 2, "validation_r5": 0.95 - fall / 2}
    return values | (scores if stage == "prior" else {})


def write_grid(out: Path, step: int, part: float, captions: tuple[str, ...] = ("a red fox", "a blue cup")) -> None:
    """A grid of two pictures that grow clearer, and the record of its cells."""
    grid = Image.new("RGB", (2 * 96 + 4, 96), "white")
    draw = ImageDraw.Draw(grid)
    for i, colour in enumerate(("firebrick", "royalblue")):
        left = i * 100
        draw.rectangle((left, 0, left + 95, 95), fill=(235, 235, 240))
        radius = 10 + 34 * part
        draw.ellipse((left + 48 - radius, 48 - radius, left + 48 + radius, 48 + radius), fill=colour)
    cells = [{"caption": caption, "kind": "prompt", "seed": i} for i, caption in enumerate(captions)]
    folder = out / "validation"
    folder.mkdir(exist_ok=True)
    grid.save(folder / f"step-{step:06d}.png")
    (folder / f"step-{step:06d}.json").write_text(json.dumps(cells))
