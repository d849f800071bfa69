"""The encode itself: pictures and captions through the frozen encoders into shards, one commit at a time."""

import errno
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kcache.progress import bar, logger
from kcache.shards import Cache, Column, KcacheError, durable, layout
from kcache.shards.cache import different_column, refuse_foreign_folder

from .columns import make_encoders
from .config import DEFAULT_SHARD_SIZE, EncodeConfig
from .dataset import Dataset, DatasetOptions, StreamedDataset
from .encoders import Encoder, TextColumn
from .images import hushed_pillow
from .memory import Memory, Scans
from .open_dataset import open_dataset
from .pictures import mapped_ahead
from .shard_encoder import Committer, ShardEncoder, store
from .work import ShardTask, Work, find_work


@dataclass
class EncodeReport:
    """What an encode found and did."""

    work: Work
    samples: int
    encoded: dict[str, int] = field(default_factory=dict)
    set_aside: dict[str, str] = field(default_factory=dict)
    estimated_bytes: dict[str, int] = field(default_factory=dict)
    cut_captions: int = 0
    empty_captions: int = 0
    seconds: float = 0.0
    pictures: int = 0


def encode(config: EncodeConfig) -> EncodeReport:
    """Bring a cache up to its dataset: encode what it lacks, and nothing else.

    Killed at any moment and called again it goes on from the last commit. KcacheError, with nothing lost, when a sample
    changed since it was encoded, when a column was made otherwise, or when a feature is not a finite number.
    """
    started = time.monotonic()
    scans = Scans(Path(config.cache) if (Path(config.cache) / layout.ROOT_RECORD).exists() else None, config.rehash)
    dataset = open_dataset(config.dataset, _dataset_options(config), scans)
    if isinstance(dataset, StreamedDataset):
        raise KcacheError(f"dataset {config.dataset} is streamed, which encode cannot do yet; leave out --streaming")
    cache = _open_cache(config)
    encoders = _make_encoders(config, cache)
    columns = [encoder.column for encoder in encoders.values()]
    kind = (
        (cache.shard_size, cache.container)
        if cache
        else (config.shard_size or DEFAULT_SHARD_SIZE, config.format or "tar")
    )
    memory = Memory(dataset, cache.root if cache else None, config.rehash)
    work = find_work(dataset, cache, columns, kind[0], memory)
    report = EncodeReport(work, len(dataset.samples), set_aside=dict(work.set_aside))
    _announce(work)
    _refuse_changed(config, work)
    _inspect_captions(report, dataset, encoders)
    if config.dry_run:
        report.estimated_bytes = _estimate(work, dataset, encoders)
        return report
    try:
        _run(config, kind, dataset, encoders, memory, scans, report)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise KcacheError(
            f"the disk of {config.cache} is full; what was committed is safe:"
            " free some space and run the same command again"
        ) from error
    report.seconds = time.monotonic() - started
    return report


def _dataset_options(config: EncodeConfig) -> DatasetOptions:
    return DatasetOptions(
        image_column=config.image_column,
        caption_column=config.caption_column,
        id_column=config.id_column,
        where=config.where,
        streaming=config.streaming,
        config_name=config.dataset_config_name,
        split=config.split,
        cache_dir=config.cache_dir,
    )


def _open_cache(config: EncodeConfig) -> Cache | None:
    """The cache if it exists, checked against what was asked for; a missing one is made after all other checks."""
    root = Path(config.cache)
    refuse_foreign_folder(root)
    if not (root / layout.ROOT_RECORD).exists():
        return None
    cache = Cache(root)
    if config.format and config.format != cache.container:
        raise KcacheError(
            f"{root} holds .{cache.container} shards; name another cache folder for --format {config.format}"
        )
    if config.shard_size and config.shard_size != cache.shard_size:
        raise KcacheError(
            f"{root} has {cache.shard_size} samples a shard; leave --shard-size out, or name another folder"
        )
    return cache


def _make_encoders(config: EncodeConfig, cache: Cache | None) -> dict[str, Encoder]:
    encoders = make_encoders(config, cache)
    for name, encoder in encoders.items():
        if cache and name in cache.column_names():
            existing = cache.column(name)
            if existing.fingerprint != encoder.column.fingerprint:
                raise KcacheError(different_column(cache.root, existing, encoder.column))
    return encoders


def _announce(work: Work) -> None:
    for name, counts in work.counts.items():
        states = (f"{state} {counts[state]:,}" for state in ("hit", "changed", "new", "gone", "set aside"))
        logger.info("%-12s %s", name, " / ".join(states))


def _refuse_changed(config: EncodeConfig, work: Work) -> None:
    if work.changed:
        first = "; ".join(f"'{i}': {reason}" for i, reason in list(work.changed.items())[:3])
        raise KcacheError(
            f"{len(work.changed):,} samples changed since they were encoded into {config.cache} ({first}); this version"
            f" adds samples and columns but does not replace rows: encode into another folder, or put them back"
        )


def _inspect_captions(report: EncodeReport, dataset: Dataset, encoders: dict[str, Encoder]) -> None:
    """Count the captions that are cut or empty among those about to be encoded."""
    text = encoders.get("text")
    if not isinstance(text, TextColumn):
        return
    captions = _captions_to_encode(report.work, dataset, text.column.name)
    limit = text.tokenizer.model_max_length
    report.cut_captions = sum(count > limit for count in text.uncut_token_counts(captions))
    report.empty_captions = sum(not caption.strip() for caption in captions)


def _captions_to_encode(work: Work, dataset: Dataset, column: str) -> list[str]:
    samples = {sample.id: sample for sample in dataset.samples}
    captions: list[str] = []
    for task in work.tasks:
        if column in task.columns and task.rows is not None:
            captions += [caption for row in task.rows if "set_aside" not in row for caption in row["captions"]]
        elif column in task.columns:
            usable = [samples[i] for i in task.ids if i in samples and not samples[i].fault]
            captions += [caption for sample in usable for caption in sample.captions]
    return captions


def _estimate(work: Work, dataset: Dataset, encoders: dict[str, Encoder]) -> dict[str, int]:
    """Bytes of features that the work would write, by column."""
    estimate = {}
    for name, encoder in encoders.items():
        fields = encoder.column.fields
        if isinstance(encoder, TextColumn):
            counts = encoder.token_counts(_captions_to_encode(work, dataset, name))
            per_caption = fields[0].row_bytes + fields[2].row_bytes
            estimate[name] = sum(counts) * fields[1].row_bytes + len(counts) * per_caption
        else:
            estimate[name] = work.counts[name]["new"] * sum(f.row_bytes for f in fields)
    return estimate


def _run(
    config: EncodeConfig,
    kind: tuple[int, str],
    dataset: Dataset,
    encoders: dict[str, Encoder],
    memory: Memory,
    scans: Scans,
    report: EncodeReport,
) -> None:
    """Encode what is to do. ``kind`` is the shard size and container that the work was cut for."""
    cache = Cache.create(config.cache, shard_size=kind[0], container=kind[1])
    if (cache.shard_size, cache.container) != kind:
        raise KcacheError(f"another process made {cache.root} with other shards meanwhile; run the command again")
    durable.clear_dead_temporaries(cache.root)
    scans.store(cache.root)  # All of it was learned by opening the dataset, and a kill shall not cost it.
    cache.extend_plan(report.work.new_ids, report.work.first_new_shard)
    tasks = report.work.tasks
    columns = {name: _write_column(cache, encoder, tasks) for name, encoder in encoders.items()}
    run = ShardEncoder(config, cache, dataset, encoders, columns, memory)
    pictures = [(task, sample) for task in tasks for sample in run.to_decode(task)]
    ahead = 2 * run.batch_size + run.workers
    try:
        with (
            hushed_pillow(),
            bar(sum(len(task.ids) for task in tasks), "img", "encode") as progress,
            mapped_ahead(run.prepare, pictures, workers=run.workers, ahead=ahead) as ready,
            Committer() as committer,
        ):
            for task in tasks:
                committer.submit(run.encode_shard(task, ready, progress.update))
    finally:
        memory.store(cache.root)
    report.pictures, report.encoded = len(pictures), run.encoded
    report.set_aside |= run.set_aside


def _write_column(cache: Cache, encoder: Encoder, tasks: Sequence[ShardTask]) -> Column:
    """The column's record on disk; its null features are computed only when the record is not there yet."""
    name = encoder.column.name
    if name in cache.column_names():
        return cache.add_column(encoder.column, None)
    null = encoder.null()
    return cache.add_column(encoder.column, store(encoder.column, null, "the null features") if null else None)
