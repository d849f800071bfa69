"""What a training run left in OUT, put to use: its component alone, or a stock pipeline with it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kcache.checkpoints import SUBFOLDERS, Checkpoint, training_record
from kcache.lora_file import LORA_FILE, merge_lora
from kcache.shards.errors import KcacheError, UsageError


@dataclass(frozen=True)
class Kind:
    """What a stage trains, and the pipeline of diffusers that runs it; classes by name, so that none is loaded."""

    stage: str
    subfolder: str
    model: str
    pipeline: str


KINDS = {
    kind.stage: kind
    for kind in (
        Kind("prior", SUBFOLDERS["prior"], "PriorTransformer", "KandinskyV22PriorPipeline"),
        Kind("decoder", SUBFOLDERS["decoder"], "UNet2DConditionModel", "KandinskyV22Pipeline"),
    )
}


def load_component(folder: Path, kind: Kind, dtype: Any, lora_scale: float | None = None) -> Any:
    """The component that a run left in ``folder``, in ``dtype``; of a LoRA, what it was trained from with it merged in.

    Merging is done in fp32 and its result rounded. ``lora_scale``: how much of the LoRA, 1 where nothing is said.
    KcacheError when there is no such component; UsageError for a scale where there is no LoRA.
    """
    import diffusers

    model_class = getattr(diffusers, kind.model)
    if (folder / kind.subfolder).is_dir():
        refuse_scale(str(folder), lora_scale)
        return Checkpoint(str(folder)).component(kind.subfolder).load(model_class, dtype)
    base = lora_base(folder, kind)
    model = base.component(kind.subfolder).load(model_class, _fp32())
    merge_lora(model, folder / LORA_FILE, 1.0 if lora_scale is None else lora_scale)
    return model.to(dtype)


def load_pipeline(name: str, kind: Kind, dtype: Any, lora_scale: float | None = None) -> Any:
    """The stock pipeline of a stage: in a folder, on the hub, or what a run in the folder ``name`` was trained from.

    In the last case with the run's component in place of its own, as `load_component` has it. KcacheError when there is
    none.
    """
    import diffusers
    from safetensors import SafetensorError

    folder, pipeline_class = Path(name), getattr(diffusers, kind.pipeline)
    if not folder.is_dir() and (name.count("/") != 1 or name.startswith(("/", ".", "~"))):
        raise KcacheError(f"{name} does not exist; name the --output-dir of a training run, a pipeline or a hub id")
    _refuse_another_stage(folder, kind)
    arguments = {"dtype": dtype, "use_safetensors": True}
    if (folder / "state.json").is_file():
        raise KcacheError(
            f"{folder} is a checkpoint to resume from; name the run's --output-dir {folder.parent}, or its best in"
            f" {folder.parent / 'best'}"
        )
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        arguments[kind.subfolder] = load_component(folder, kind, dtype, lora_scale)
        whole = Checkpoint(name).base()
        name, arguments["revision"] = whole.name_or_path, _option(folder, "revision")
    else:
        refuse_scale(name, lora_scale)
    try:
        return pipeline_class.from_pretrained(name, **arguments)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        cause = str(error).split("\n")[0].rstrip(". ")
        raise KcacheError(
            f"{name} does not load as {kind.pipeline} ({cause}); name the --output-dir of a training run, the"
            " folder of a pipeline, or a hub id"
        ) from error


def _refuse_another_stage(folder: Path, kind: Kind) -> None:
    """KcacheError for a folder that holds what the other stage trains."""
    index = folder / "model_index.json"
    try:
        parts = {*json.loads(index.read_bytes())} if index.is_file() else {training_record(folder).get("stage")}
    except (ValueError, TypeError):
        return  # diffusers says what is wrong with it
    for other in KINDS.values():
        if other != kind and parts & {other.stage, other.subfolder} and not parts & {kind.stage, kind.subfolder}:
            raise KcacheError(f"{folder} is a {other.stage}; give it as --{other.stage}, and a {kind.stage} here")


def lora_base(folder: Path, kind: Kind) -> Checkpoint:
    """The checkpoint whose weights the LoRA in ``folder`` belongs to. KcacheError when there is none of that stage."""
    record = training_record(folder)
    if not (folder / LORA_FILE).is_file() or record.get("stage", kind.stage) != kind.stage:
        raise KcacheError(
            f"{folder} holds no trained '{kind.subfolder}'; train one with 'kcache train', or name a pipeline"
        )
    if not record.get("trained_from"):
        raise KcacheError(
            f"{folder} holds a LoRA and no training.json, which says what it was trained from; name the --output-dir of"
            " a training run"
        )
    return Checkpoint(record["trained_from"], _option(folder, "revision"), _option(folder, "variant"))


def refuse_scale(name: str, lora_scale: float | None) -> None:
    """UsageError when a scale is given for something that is no LoRA."""
    if lora_scale is not None:
        raise UsageError(f"{name} is no LoRA, so it has no scale; leave the scale out, or name the OUT of a LoRA")


def _option(folder: Path, name: str) -> str | None:
    """What the run in a folder was given as an option."""
    value = training_record(folder).get("options", {}).get(name)
    return str(value) if value else None


def _fp32() -> Any:
    import torch

    return torch.float32
