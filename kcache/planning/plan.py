"""What fits a GPU, with which options, and how long it takes: `kcache plan`."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kcache.checkpoints import DECODER, PRIOR, SUBFOLDERS, Checkpoint
from kcache.progress import bar
from kcache.shards import KcacheError, UsageError
from kcache.shards.layout import ROOT_RECORD
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.low_memory import FULL, LORA
from kcache.training.trimming import trimmed_length

from . import kandinsky
from .devices import HERE, Speed, find_speed, memory_here
from .memory import Memory, memory
from .passes import Pass, Subject, count_pass
from .sources import Source, open_cache, open_data
from .times import UTILISATION, UTILISATION_OF_MEASURED, operations, seconds

CONTEXT, SHARE = 500 * 10**6, 0.92
"""Of a GPU's memory CUDA itself takes about so many bytes; of the rest, which is in pieces, this share is used."""
LARGEST = {"prior": 256, "decoder": 32}
"""Batches that are not exceeded: larger ones train no better."""
ENOUGH = {"prior": 16, "decoder": 4}
"""Options that cost more, in time or exactness, are looked at where less than this batch fits."""


@dataclass(frozen=True)
class PlanConfig:
    """The options of ``kcache plan``."""

    source: str
    vram: int | None = None
    device: str | None = None
    train_batch_size: int | None = None
    resolution: int | None = None
    tokens: int | None = None
    draws_per_sample: int = 1
    rank: int = 4
    utilisation: float | None = None
    caption_column: str | None = None
    image_column: str | None = None
    pretrained_prior_model_name_or_path: str = PRIOR
    pretrained_decoder_model_name_or_path: str = DECODER


@dataclass(frozen=True)
class Way:
    """One way to train a stage, as far as it fits: the options beyond the defaults, and what an update takes."""

    stage: str
    lora: bool
    resolution: int | None
    fits: bool
    batch: int
    """As large as fits, up to a size that is enough; where nothing fits, the one that was tried."""
    options: list[str]
    command: str
    memory: Memory
    operations: int
    update_seconds: float | None
    epoch_seconds: float | None


@dataclass(frozen=True)
class Plan:
    """All that is said of a source and a GPU."""

    source: Source
    vram: int
    usable: int
    speed: Speed | None
    utilisation: float | None
    ways: list[Way]


@dataclass(frozen=True)
class _Rung:
    """Options that are tried one after the other, each taking less memory and more of something else."""

    words: list[str]
    options: dict[str, Any]
    autocast: bool = True


_CHECKPOINTED = {"gradient_checkpointing": True}
_FULL = [
    _Rung(["--mixed-precision bf16"], {}),
    _Rung(["--mixed-precision bf16", "--gradient-checkpointing"], _CHECKPOINTED),
    _Rung(
        ["--mixed-precision bf16", "--gradient-checkpointing", "--use-8bit-adam"],
        _CHECKPOINTED | {"optimizer": "adamw8bit"},
    ),
    _Rung(["--low-memory"], FULL, autocast=False),
    _Rung(["--low-memory", "--offload-optimizer"], FULL | {"offload_optimizer": True}, autocast=False),
]
_LORA = [
    _Rung(["--mixed-precision bf16"], {}),
    _Rung(["--mixed-precision bf16", "--gradient-checkpointing"], _CHECKPOINTED),
    _Rung(["--low-memory"], LORA, autocast=False),
]


def plan(config: PlanConfig) -> Plan:
    """Look at a cache or dataset and at what its training takes. Nothing is computed or written.

    KcacheError where the source is neither, or does not fit the checkpoints.
    """
    speed = find_speed(config.device) if config.device else None
    vram = config.vram or (speed.memory if speed else _gpu_here())
    utilisation = config.utilisation or (UTILISATION_OF_MEASURED if config.device == HERE else UTILISATION)
    shapes = {
        "prior": _architecture(config.pretrained_prior_model_name_or_path, "prior"),
        "decoder": _architecture(config.pretrained_decoder_model_name_or_path, "decoder"),
    }
    source = _open(config, shapes)
    if not source.stages:
        have = ", ".join(column.name for column in source.columns) or "none"
        raise KcacheError(f"{config.source} has no columns to train on (it has: {have}); see 'kcache encode --help'")
    usable = round((vram - CONTEXT) * SHARE)
    if usable <= 0:
        raise UsageError(f"--vram {vram / 1e9:g}GB is less than CUDA itself takes; give that of the GPU, such as 8GB")
    finder = _Finder(config, source, shapes, usable, speed, utilisation)
    asked = [(stage, lora) for stage in source.stages for lora in (False, True)]
    with bar(len(asked), "plan", "count") as progress:  # some seconds each: whole updates are counted
        ways = []
        for stage, lora in asked:
            ways.append(finder.way(stage, lora))
            progress.update(1)
    return Plan(source, vram, usable, speed, utilisation if speed else None, ways)


@dataclass(frozen=True)
class _Finder:
    config: PlanConfig
    source: Source
    shapes: Mapping[str, Any]
    usable: int
    speed: Speed | None
    utilisation: float

    def way(self, stage: str, lora: bool) -> Way:
        """The first rung on which enough fits; else that on which most does; else the last, which does not fit."""
        found: Way | None = None
        passes: dict[tuple[str, str, bool], Pass] = {}
        for rung in _LORA if lora else _FULL:
            config = self._config(stage, lora, rung)
            key = (config.weights_dtype, config.base_dtype, rung.autocast)
            if key not in passes:
                passes[key] = count_pass(config, self._subject(stage), rung.autocast)
            now = self._on(rung, config, passes[key])
            if found is None or not found.fits or (now.fits and now.batch > found.batch):
                found = now
            if found.fits and found.batch >= (self.config.train_batch_size or ENOUGH[stage]):
                break
        assert found is not None
        return found

    def _on(self, rung: _Rung, config: PriorConfig | DecoderConfig, counted: Pass) -> Way:
        stage = "prior" if isinstance(config, PriorConfig) else "decoder"
        batch = self._batch(stage, rung, config, counted)
        held = memory(config, counted, batch, autocast=rung.autocast)
        took = seconds(config, counted, batch, self.speed, self.utilisation) if self.speed else None
        return Way(
            stage,
            config.lora,
            config.resolution if stage == "decoder" else None,
            fits=held.peak <= self.usable,
            batch=batch,
            options=rung.words,
            command=self._command(stage, config, rung, batch),
            memory=held,
            operations=operations(config, counted, batch),
            update_seconds=took,
            epoch_seconds=took * self.source.samples / batch if took else None,
        )

    def _batch(self, stage: str, rung: _Rung, config: Any, counted: Pass) -> int:
        """The one that was asked for, or the largest power of two that fits, or 1."""
        if self.config.train_batch_size:
            return self.config.train_batch_size
        batch = 1
        while batch < LARGEST[stage]:
            if memory(config, counted, 2 * batch, autocast=rung.autocast).peak > self.usable:
                break
            batch *= 2
        return batch

    def _config(self, stage: str, lora: bool, rung: _Rung) -> PriorConfig | DecoderConfig:
        common: dict[str, Any] = {"cache": "", "output_dir": "", "lora": lora, "rank": self.config.rank, **rung.options}
        return PriorConfig(**common) if stage == "prior" else DecoderConfig(**common, resolution=self._resolution)

    @property
    def _resolution(self) -> int:
        return self.config.resolution or self.source.resolutions[0]

    def _subject(self, stage: str) -> Subject:
        side = self._resolution // 8 if self.source.resolutions else 0
        tokens = trimmed_length(self.config.tokens or self.source.tokens or 1, self.shapes["prior"]["num_embeddings"])
        return Subject(self.shapes[stage], tokens, self.config.draws_per_sample, (side, side))

    def _command(self, stage: str, config: Any, rung: _Rung, batch: int) -> str:
        cache = self.source.path if self.source.encoded else "cache"
        name = f"pretrained_{stage}_model_name_or_path"
        given = getattr(self.config, name)
        words = [f"kcache train {stage} {shlex.quote(cache)} --output-dir my-{'lora' if config.lora else stage}"]
        words += ["--lora"] * config.lora + [f"--rank {config.rank}"] * (config.lora and config.rank != 4)
        words += [f"--resolution {config.resolution}"] * (stage == "decoder")
        if stage == "prior" and self.config.draws_per_sample > 1:
            words.append(f"--draws-per-sample {self.config.draws_per_sample}")
        words += [f"--train-batch-size {batch}", *rung.words]
        if given not in (PRIOR, DECODER):
            words.append(f"--{name.replace('_', '-')} {shlex.quote(given)}")
        return " ".join(words)


def _gpu_here() -> int:
    import torch

    if not torch.cuda.is_available():
        raise UsageError("this machine has no CUDA GPU; say what to plan for, such as --vram 8GB or --device rtx-3090")
    return memory_here()


def _architecture(name: str, stage: str) -> Mapping[str, Any]:
    """The configuration of a component; that of Kandinsky's own is known without asking the hub."""
    if name in (PRIOR, DECODER):
        return kandinsky.PRIOR if stage == "prior" else kandinsky.UNET
    found = Checkpoint(name).config(SUBFOLDERS[stage])
    if found is None:
        raise KcacheError(f"checkpoint {name} has no '{SUBFOLDERS[stage]}'; name one that has, or leave it out")
    return found


def _open(config: PlanConfig, shapes: dict[str, Any]) -> Source:
    prior, decoder = (
        Checkpoint(name)
        for name in (config.pretrained_prior_model_name_or_path, config.pretrained_decoder_model_name_or_path)
    )
    path = Path(config.source)
    if (path / ROOT_RECORD).exists():
        source = open_cache(path, prior, decoder, shapes)
        if config.resolution and config.resolution not in source.resolutions:
            have = ", ".join(map(str, source.resolutions)) or "none"
            raise KcacheError(
                f"{path} has no latents of {config.resolution} px (it has: {have}); encode them with 'kcache encode"
                f" DATASET {path} --resolution {config.resolution}', or plan for one of those"
            )
        return source
    from kcache.encoding.dataset import DatasetOptions, StreamedDataset
    from kcache.encoding.memory import Scans
    from kcache.encoding.open_dataset import open_dataset

    options = DatasetOptions(image_column=config.image_column, caption_column=config.caption_column)
    dataset = open_dataset(config.source, options, Scans(None))
    if isinstance(dataset, StreamedDataset):
        raise KcacheError(f"dataset {config.source} is read as it comes, and nobody knows how long it is; encode it")
    return open_data(
        dataset,
        config.source,
        [config.resolution or 512],
        Path(prior.name_or_path) / "tokenizer",
        shapes["prior"]["embedding_dim"],
    )
