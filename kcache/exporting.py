"""What a run left in OUT, written anew for other programs: a LoRA merged into whole weights, or a whole pipeline."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kcache.checkpoints import Checkpoint, training_record
from kcache.devices import torch_dtype
from kcache.export_card import export_card
from kcache.lora_file import LORA_FILE
from kcache.progress import hush_libraries
from kcache.results import KINDS, Kind, load_component, load_pipeline
from kcache.shards.errors import KcacheError, UsageError
from kcache.transfer import add_difference
from kcache.whole_folder import whole_folder


@dataclass(frozen=True)
class ExportConfig:
    """The options of ``kcache export``: exactly one of ``fuse`` and ``pipeline``."""

    output_dir: str
    to: str | None = None  # OUT/fused or OUT/pipeline
    fuse: bool = False
    pipeline: bool = False
    into: str | None = None  # the pipeline that it was trained from
    lora_scale: float | None = None  # 1, where there is a LoRA
    dtype: str = "fp32"


@dataclass(frozen=True)
class ExportReport:
    """What was written. ``pipeline``: the class of diffusers that loads it; None where it is a component."""

    to: str
    stage: str
    pipeline: str | None
    nbytes: int


def export(config: ExportConfig) -> ExportReport:
    """Write the export, whole or not at all. KcacheError, before anything is loaded, when it cannot be made."""
    out = Path(config.output_dir)
    kind = _kind(out)
    _refuse_senseless(config, kind, out)
    to = Path(config.to) if config.to else out / ("fused" if config.fuse else "pipeline")
    _refuse_existing(to)
    hush_libraries()
    with whole_folder(to, "run the same command again") as folder:
        loaded_by = None
        if config.fuse:
            _write_fused(config, kind, out, folder)
        else:
            loaded_by = _write_pipeline(config, kind, out, folder)
        base = Checkpoint(str(out)).base().name_or_path
        (folder / "training.json").write_text(json.dumps(_record(config, out, base), indent=1) + "\n", "utf-8")
        card = export_card(to.resolve(), kind, base, loaded_by, scale=_scale(config, out), into=config.into)
        (folder / "README.md").write_text(card, "utf-8")
        nbytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return ExportReport(str(to), kind.stage, loaded_by, nbytes)


def _kind(out: Path) -> Kind:
    stage = training_record(out).get("stage")
    if stage not in KINDS:
        raise KcacheError(
            f"{out} is not the --output-dir of a run that is done (it has no training.json); finish it with"
            " --resume-from-checkpoint latest, or name another"
        )
    return KINDS[stage]


def _refuse_senseless(config: ExportConfig, kind: Kind, out: Path) -> None:
    if config.fuse == config.pipeline:
        raise UsageError(f"give either --fuse, to merge a LoRA, or --pipeline, to write all that {kind.pipeline} needs")
    if config.fuse and not (out / LORA_FILE).is_file():
        raise UsageError(
            f"{out} holds the whole '{kind.subfolder}' and no LoRA, so there is nothing to merge; it is ready for"
            " --prior, --decoder and training as it is, and --pipeline exports it"
        )
    if config.into and (config.fuse or kind.stage != "decoder"):
        raise UsageError("--into goes with --pipeline and a decoder; a prior serves every pipeline as it is")
    if config.into and "trained_from" not in training_record(out):
        raise UsageError(
            f"{out} is an exported pipeline, which does not say what it was trained from and so what it has learned;"
            " give --into with the OUT of the run itself"
        )


def _refuse_existing(to: Path) -> None:
    if to.exists():
        raise KcacheError(f"{to} exists; remove it, or name another folder after {to.parent}")
    if below := next((parent for parent in to.parents if parent.is_file()), None):
        raise KcacheError(f"{to} lies below {below}, which is a file; name another folder")


def _scale(config: ExportConfig, out: Path) -> float | None:
    """How much of the LoRA is merged; None where there is none."""
    if not (out / LORA_FILE).is_file():
        return None
    return 1.0 if config.lora_scale is None else config.lora_scale


def _record(config: ExportConfig, out: Path, base: str) -> dict[str, Any]:
    """What ``training.json`` says of an export: how it was trained, and from what where it does not hold all of it."""
    record = {key: value for key, value in training_record(out).items() if key != "trained_from"}
    if config.fuse:
        record["trained_from"] = base
    return record | {"exported": {"from": str(out.resolve()), "lora_scale": _scale(config, out), "into": config.into}}


def _write_fused(config: ExportConfig, kind: Kind, out: Path, folder: Path) -> None:
    """The component with the LoRA in it."""
    model = load_component(out, kind, torch_dtype(config.dtype), config.lora_scale)
    model.save_pretrained(str(folder / kind.subfolder), safe_serialization=True)


def _write_pipeline(config: ExportConfig, kind: Kind, out: Path, folder: Path) -> str:
    """Every component that the stock pipeline loads; returns the pipeline's class."""
    dtype = torch_dtype(config.dtype)
    if config.into is None:
        pipeline = load_pipeline(str(out), kind, dtype, config.lora_scale)
    else:
        pipeline = _add_to(config.into, kind, out, config.lora_scale).to(dtype=dtype)
    pipeline.save_pretrained(str(folder), safe_serialization=True)
    return type(pipeline).__name__


def _add_to(name: str, kind: Kind, out: Path, lora_scale: float | None) -> Any:
    """The pipeline ``name`` in fp32, its UNet with what the decoder has learned."""
    import torch
    from diffusers import DiffusionPipeline

    trained = load_component(out, kind, torch.float32, lora_scale)
    before = Checkpoint(str(out)).base().component(kind.subfolder).load(type(trained), torch.float32)
    try:
        pipeline = DiffusionPipeline.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
        unet = pipeline.unet
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        cause = str(error).split("\n")[0].rstrip(". ")
        raise KcacheError(
            f"{name} does not load as a pipeline with a UNet ({cause}); name one such as"
            " kandinsky-community/kandinsky-2-2-decoder-inpaint"
        ) from error
    add_difference(unet, trained, before, name)
    return pipeline
