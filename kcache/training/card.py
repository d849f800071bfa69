"""The model card of a result: what it is, from what it was trained and how, its scores, and the lines that use it."""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kcache.checkpoints import Checkpoint
from kcache.runs import Run, read_run
from kcache.shards import durable

from .usage import usage

PICTURE = "validation.png"
"""The last grid of validation pictures, beside the card that shows it."""

_SCORES = {
    "probe_loss": ("loss on fixed draws", False),
    "validation_loss": ("validation loss", False),
    "validation_cosine": ("cosine similarity of sampled and true embeddings", True),
    "validation_r1": ("R@1 within the held-out samples", True),
    "validation_r5": ("R@5 within the held-out samples", True),
}
"""Of each quantity what it is called, and whether higher is better."""


def write_card(output_dir: Path, repo_id: str | None = None) -> None:
    """Write ``README.md``, and the last validation grid beside it, from what lies in ``output_dir``.

    With a ``repo_id`` it is the card of that repository: its code loads from there and nothing in it names a folder of
    this machine. Without, it is for this folder.
    """
    run = read_run(output_dir)
    if run.result_grid is not None:
        durable.replace(output_dir / PICTURE, run.result_grid.path.read_bytes())
    durable.replace(output_dir / "README.md", model_card(run, repo_id).encode())


def model_card(run: Run, repo_id: str | None) -> str:
    """The card's text: metadata for the hub, then what people read."""
    base, lora = run.training["trained_from"], bool(run.training["options"].get("lora"))
    kind = f"{'LoRA for the ' if lora else ''}{run.stage}"
    shown = public_name(base) if repo_id else base
    side = int(run.training["options"].get("resolution") or 512)
    parts = [
        f"---\n{_metadata(base, lora)}\n---",
        f"# {repo_id.split('/')[-1] if repo_id else f'A Kandinsky 2.2 {kind}, trained with kcache'}",
        f"A Kandinsky 2.2 {kind}, trained from `{shown}` with kcache{_data(run)}. All options are in `training.json`.",
        _picture(run),
        f"## Use\n\n```python\n{_usage(run, repo_id, base, side, lora=lora)}\n```",
        f"## Training\n\n{_table(['', ''], _training(run))}",
        _scores(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _usage(run: Run, repo_id: str | None, base: str, side: int, *, lora: bool) -> str:
    """The lines of Python; a LoRA that was trained on another run's result needs that result beside the pipeline."""
    pipeline = Checkpoint(base).base().name_or_path if lora else base
    shown, of_component = (public_name(name) if repo_id else name for name in (pipeline, base))
    component_from = of_component if pipeline != base else None
    output = repo_id or str(run.folder.resolve())
    return usage(output, run.stage, shown, side, lora=lora, component_from=component_from)


def is_hub_name(name: str) -> bool:
    """Whether a checkpoint's name means the hub, and not a folder of this machine."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None and not Path(name).exists()


def public_name(name: str) -> str:
    """A checkpoint's or cache's name without the folders of this machine that it lies in."""
    return name if is_hub_name(name) else Path(name).name


def _metadata(base: str, lora: bool) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=base if is_hub_name(base) else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["kandinsky-2-2", "text-to-image", "diffusers-training", *(["lora"] if lora else []), "kcache"],
    )
    if data.base_model:
        data["base_model_relation"] = "adapter" if lora else "finetune"
    return str(data.to_yaml()).strip()


def _data(run: Run) -> str:
    """Such as " on 3,388 captioned pictures", with the short name of their snapshot."""
    caches = run.record.get("caches") or []
    parts = [
        f"{cache.get('trained_on', cache['samples']):,} captioned pictures (snapshot `{cache['snapshot'][:12]}`)"
        for cache in caches
    ]
    return f" on {' and '.join(parts)}" if parts else ""


def _picture(run: Run) -> str:
    grid = run.result_grid
    if grid is None:
        return ""
    captions = dict.fromkeys(" ".join(str(cell.get("caption", "")).split()) for cell in grid.cells)
    said = ", ".join(f'"{html.escape(caption, quote=False)}"' for caption in captions if caption)
    return f"![Validation pictures after update {grid.step:,}]({PICTURE})" + (f"\n\n*{said}*" if said else "")


def _training(run: Run) -> Iterator[tuple[str, str]]:
    """The options that matter most to whoever reads of the result."""
    chosen = run.training["options"]
    batch = run.record.get("global_batch") or chosen["train_batch_size"] * chosen["gradient_accumulation_steps"]
    best = (
        f", the best of {run.training['ended']:,}"
        if run.training.get("ended", run.result_step) > run.result_step
        else ""
    )
    yield "updates", f"{run.result_step:,} of {batch:,} samples each{best}"
    schedule = chosen["lr_scheduler"]
    warm = f", {chosen['lr_warmup_steps']:,} updates of warm-up" if schedule not in _WITHOUT_WARM_UP else ""
    yield "learning rate", f"{chosen['learning_rate']:g}, {schedule}{warm}"
    yield "optimizer", " ".join([chosen.get("optimizer", "adamw"), *chosen.get("optimizer_args", ())])
    yield "mixed precision", chosen.get("mixed_precision") or "no"
    if run.stage == "decoder":
        yield "resolution", f"{chosen['resolution']}{' in buckets' if chosen.get('buckets') else ''}"
    if chosen.get("lora"):
        alpha = chosen.get("lora_alpha") or chosen["rank"]
        yield "LoRA", f"rank {chosen['rank']}, alpha {alpha:g}, of {', '.join(chosen['lora_targets'])}"
    for name, what in _IF_SET.items():
        if value := chosen.get(name):
            yield what, "yes" if value is True else f"{value:g}"
    if chosen.get("use_ema"):
        yield "moving average", f"decay {chosen['ema_decay']:g}; it is the result"
    yield "seed", str(chosen["seed"])


_WITHOUT_WARM_UP = ("constant", "piecewise_constant")

_IF_SET = {
    "adam_weight_decay": "weight decay",
    "snr_gamma": "Min-SNR gamma",
    "conditioning_dropout": "dropout of the condition",
    "random_flip": "mirrored at random",
    "random_crops": "cropped at random",
    "use_dora": "DoRA",
}


def _scores(run: Run) -> str:
    rows = [row for name, (what, highest) in _SCORES.items() if (row := _score(run, name, what, highest))]
    return f"## Scores\n\n{_table(['', 'first', 'last', 'best'], rows)}" if rows else ""


def _score(run: Run, name: str, what: str, highest: bool) -> tuple[str, ...] | None:
    first, last, best = run.first(name), run.last(name), run.best(name, highest=highest)
    if first is None or last is None or best is None:
        return None
    return what, f"{first:.4f}", f"{last:.4f}", f"{best[1]:.4f} after update {best[0]:,}"


def _table(head: list[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    escaped = ([str(cell).replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)
