"""The encode itself: pictures and captions through the frozen encoders into shards, one commit at a time."""

import errno
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kcache.cache_card import Origin, public_name, require_license_name, write_card
from kcache.compiler import require_compiler
from kcache.devices import default_batch_size, find_device
from kcache.progress import bar, logger
from kcache.shards import Cache, Column, KcacheError, UsageError, durable, keep_dataset_options, layout
from kcache.shards.cache import different_column, refuse_foreign_folder
from kcache.shards.columns import differences
from kcache.shards.leases import writing
from kcache.shards.local_cache import LocalCache, local_cache_for
from kcache.shards.losses import require_nothing_lost
from kcache.shards.salvage import SalvagedCache
from kcache.shards.storage import Storage, open_storage

from .columns import alpha_of, make_encoders
from .config import DEFAULT_MAX_PIXELS, DEFAULT_SHARD_SIZE, EncodeConfig
from .dataset import Dataset, Sample, StreamedDataset
from .encoders import Encoder
from .finishing import Finisher
from .images import Decoding, hushed_pillow
from .inspection import estimate, inspect_captions
from .memory import Memory, Scans
from .open_dataset import open_dataset
from .pictures import mapped_ahead, why_undecodable
from .remembered import reading_options, to_remember, with_remembered
from .report import EncodeReport, announce, announce_loss
from .shard_encoder import ShardEncoder, store
from .timing import Timings
from .work import Places, Work, WorkFinder, places

STREAM_SHARDS = 4
"""Shards' worth of a stream that is held in memory at once."""


def encode(config: EncodeConfig, salvaged: SalvagedCache | None = None) -> EncodeReport:
    """Bring a cache up to its dataset: encode what it lacks or what has changed, and nothing else.

    To repair a damaged cache it is given as ``salvaged``: what is left of it. Then what is lost is encoded again, as
    far as the dataset still has it, and every other row stays as it is; no sample counts as new or gone.

    Killed at any moment and called again it goes on from the last commit. KcacheError, with nothing lost, when a column
    was made otherwise and is not to be replaced, or when a feature is not a finite number.
    """
    started = time.monotonic()
    local = local_cache_for([config.cache], config.local_cache, config.local_cache_size)
    if config.license:
        require_license_name(config.license)
    if config.compile:
        require_compiler(find_device(config.device))
    storage = open_storage(config.cache, local)
    storage.require_writable()
    refuse_foreign_folder(storage)
    cache = salvaged or _open_cache(config, storage, local)
    config = with_remembered(config, cache)
    scans = Scans(cache.root if cache else None, rehash=config.rehash)
    dataset = open_dataset(config.dataset, reading_options(config), scans)
    encoders = make_encoders(config, cache)
    root = storage.root
    if storage.is_local and root.resolve().is_relative_to(Path(config.dataset).resolve()):
        logger.info("%s lies in the folder of its own dataset: nothing in it is taken for a picture", root)
    run = _Run(config, cache, local, encoders, scans, salvaged)
    run.check_columns()
    try:
        run.go(dataset)
        if run.cache and not config.dry_run:
            write_card(run.cache, Origin(public_name(config.dataset), config.license))
    except OSError as error:
        if sentence := _explained(error, root):
            raise KcacheError(sentence) from error
        raise
    run.report.seconds = time.monotonic() - started
    run.add_up()
    return run.report


def _explained(error: OSError, root: Path) -> str | None:
    """The sentence for a disk that is full, fails or is not to be written; None for any other error."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {root} is full; what was committed is safe: free some space and run the same command again"
    in_cache = str(error.filename or root).startswith((str(root), str(root.absolute())))
    above = root.absolute().is_relative_to(error.filename or root.absolute())  # where the cache's own name is flushed
    if error.errno == errno.EIO and (in_cache or above):
        return (
            f"the disk of {root} failed ({error.strerror}); what was committed is safe: see to the disk, run the same"
            f" command again, and then 'kcache verify {root} --deep'"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and in_cache:
        return (
            f"the cache {root} cannot be written to ({error.strerror}); make its folder writable, or copy it to where"
            " it is, and run the same command again"
        )
    return None


def _open_cache(config: EncodeConfig, storage: Storage, local: LocalCache | None) -> Cache | None:
    """The cache if it exists, checked against what was asked for; a missing one is made after all other checks."""
    root = storage.name
    if not storage.has(layout.ROOT_RECORD):
        if config.replace_column:
            raise UsageError(f"{root} is not made yet, so there is no column to replace; leave --replace-column out")
        return None
    cache = Cache(config.cache, local)
    require_nothing_lost(cache)
    if config.format and config.format != cache.container:
        raise KcacheError(
            f"{root} holds .{cache.container} shards; name another cache folder for --format {config.format}"
        )
    if config.shard_size and config.shard_size != cache.shard_size:
        raise KcacheError(
            f"{root} has {cache.shard_size} samples a shard; leave --shard-size out, or name another folder"
        )
    for name in config.replace_column:
        cache.column(name)  # refuses one that is not there
    return cache


@dataclass
class _Run:
    """One encode: the parts it is put together from, and what it has found and done so far."""

    config: EncodeConfig
    cache: Cache | None
    local: LocalCache | None
    encoders: dict[str, Encoder]
    scans: Scans
    salvaged: SalvagedCache | None = None
    """In a repair, what is left of the cache."""
    report: EncodeReport = field(default_factory=EncodeReport)
    replaced: dict[str, str] = field(default_factory=dict)
    """Columns of the cache that other encoders made, and what differs."""

    def __post_init__(self) -> None:
        max_pixels = self.config.max_pixels or DEFAULT_MAX_PIXELS
        self.salvage = self.salvaged.salvage if self.salvaged else None
        self.only = self.salvaged.samples_of_lost_rows() if self.salvaged else None
        self.decoding = Decoding(alpha_of(e.column for e in self.encoders.values()), max_pixels)
        self.device = find_device(self.config.device)
        self.batch_size = self.config.batch_size or default_batch_size(self.device)
        self.workers = self.config.workers or min(8, os.cpu_count() or 1)
        self.shard_size = self.cache.shard_size if self.cache else self.config.shard_size or DEFAULT_SHARD_SIZE
        self.timings = Timings(self.encoders, self.batch_size, self.decoding, self.workers)
        self.timed = 0.0  # seconds that went into estimates
        self.container = self.cache.container if self.cache else self.config.format or layout.CONTAINERS[0]

    def check_columns(self) -> None:
        """Compare the columns with those of the cache. KcacheError where one differs and is not to be replaced."""
        for name in self.config.replace_column:
            if name not in self.encoders:
                raise UsageError(f"--replace-column {name} and --columns contradict each other; name it in both")
        for name, encoder in self.encoders.items():
            if not self.cache or name not in self.cache.column_names():
                continue
            existing = self.cache.column(name)
            if existing.fingerprint != encoder.column.fingerprint:
                how = "; ".join(differences(existing, encoder.column))
                if name in self.config.replace_column:
                    self.replaced[name] = how
                elif self.config.dry_run:
                    self.replaced[name] = self.report.refused[name] = f"{how}: use --replace-column {name}"
                else:
                    raise KcacheError(different_column(self.cache.name, existing, encoder.column))

    def go(self, dataset: Dataset | StreamedDataset) -> None:
        """Find what there is to do and do it: at once, or window by window for a dataset that cannot be listed."""
        known = places(self.cache)
        if not isinstance(dataset, StreamedDataset):
            self._bring_up_to_date(
                dataset, self._chosen(dataset), known, gone=None if self.only is None else frozenset()
            )
            return
        seen, window = set[str](), None
        for window in dataset.windows(STREAM_SHARDS * self.shard_size):
            self._bring_up_to_date(window, self._chosen(window), known, gone=frozenset())
            seen.update(sample.id for sample in window.samples)
        if window is None:
            raise KcacheError(f"dataset {self.config.dataset} is empty: its stream had no sample; name another")
        if self.only is None:
            self._bring_up_to_date(window, [], known, gone=frozenset(known.keys() - seen))
        announce(self.report.counts)
        announce_loss(self.report.taken_out)

    def _chosen(self, dataset: Dataset) -> Sequence[Sample]:
        return [s for s in dataset.samples if s.id in self.only] if self.only is not None else dataset.samples

    def _bring_up_to_date(
        self, dataset: Dataset, samples: Sequence[Sample], known: Places, gone: frozenset[str] | None
    ) -> None:
        """Bring the cache up to ``samples`` of ``dataset``, and ``known`` up to the cache."""
        memory = Memory(dataset, self.cache.root if self.cache else None, rehash=self.config.rehash)
        columns = [encoder.column for encoder in self.encoders.values()]
        finder = WorkFinder(
            self.cache,
            self.shard_size,
            columns,
            memory,
            self.decoding.signature,
            self.replaced,
            prune=self.config.prune,
            undecodable=lambda samples: why_undecodable(dataset, samples, self.decoding, self.workers),
            salvage=self.salvage,
        )
        work = finder.find(samples, known, gone=gone, shards=self.salvage.shards if self.salvage else frozenset())
        self.report.samples += len(samples)
        self.report.add(work)
        if gone is None or self.only is not None:
            announce(work.counts)
            announce_loss(work.taken_out)
        inspect_captions(self.report, work, self.encoders)
        if self.config.dry_run:
            self._estimate(work, dataset)
            return
        self._encode(work, dataset, memory)
        new = (divmod(n, self.shard_size) for n in range(len(work.new_ids)))
        known.update((i, (work.first_new_shard + n, row)) for i, (n, row) in zip(work.new_ids, new, strict=True))

    def _estimate(self, work: Work, dataset: Dataset) -> None:
        report, found = self.report, time.monotonic()
        for name, cost in estimate(work, self.encoders, self.timings, self.container).items():
            before = report.estimates.get(name)
            report.estimates[name] = before.plus(cost) if before else cost
        pictures = [sample for task in work.tasks for i in task.pictures if (sample := task.samples[i])]
        if pictures:
            report.reading += len(pictures) * self.timings.reading(dataset, pictures)
        self.timed += time.monotonic() - found

    def add_up(self) -> None:
        """What a run would take in all: a GPU encodes while the processor reads, a CPU does one or the other."""
        report = self.report
        report.beginning = report.seconds - self.timed + self.timings.loading
        encoding = sum(cost.seconds for cost in report.estimates.values())
        together = max if self.device.type != "cpu" else sum
        report.in_all = report.beginning + together([encoding, report.reading])

    def _encode(self, work: Work, dataset: Dataset, memory: Memory) -> None:
        self.cache = cache = Cache.create(
            self.config.cache, shard_size=self.shard_size, container=self.container, local=self.local
        )
        if (cache.shard_size, cache.container) != (self.shard_size, self.container):
            raise KcacheError(f"another process made {cache.name} with other shards meanwhile; run the command again")
        with writing(cache.root):
            self._write(cache, work, dataset, memory)

    def _write(self, cache: Cache, work: Work, dataset: Dataset, memory: Memory) -> None:
        config = self.config
        durable.clear_dead_temporaries(cache.root)
        durable.flush_names(cache.root)  # what was found there is built upon from here on
        keep_dataset_options(cache, to_remember(config))  # before the samples that they chose
        self.scans.store(cache.root)  # all of it was learned by opening the dataset, and a kill must not cost it
        cache.extend_plan(work.new_ids, work.first_new_shard)
        columns = {name: self._write_column(cache, encoder) for name, encoder in self.encoders.items()}
        run = ShardEncoder(
            cache, dataset, self.encoders, columns, memory, self.decoding, self.batch_size, config.max_upscale
        )
        ahead = 2 * self.batch_size + self.workers
        pictures = [(task, row) for task in work.tasks for row in task.pictures]
        try:
            with (
                hushed_pillow(self.decoding.max_pixels),
                bar(len(pictures), "img", "encode") as progress,
                mapped_ahead(run.prepare, pictures, workers=self.workers, ahead=ahead) as ready,
                Finisher() as finisher,
            ):
                for task in work.tasks:
                    run.encode_shard(task, ready, progress.update, finisher)
        finally:
            memory.store(cache.root)
        self._note(run, len(pictures))

    def _note(self, run: ShardEncoder, pictures: int) -> None:
        report = self.report
        report.pictures += pictures
        report.found_bad += len(run.set_aside.keys() - report.set_aside.keys())
        report.set_aside |= run.set_aside
        report.shards_written += run.shards_written
        report.animated += run.animated
        for name, count in run.encoded.items():
            report.encoded[name] = report.encoded.get(name, 0) + count
        report.upscaled.update(run.upscaled)

    def _write_column(self, cache: Cache, encoder: Encoder) -> Column:
        """The column's record on disk; its null features are computed only when the record is not there yet."""
        name = encoder.column.name
        exists = name in cache.column_names()
        if exists and name not in self.replaced:
            return cache.add_column(encoder.column, None)
        null = encoder.null()
        stored = store(encoder.column, null, "the null features") if null else None
        column = cache.replace_column(encoder.column, stored) if exists else cache.add_column(encoder.column, stored)
        self.replaced.pop(name, None)
        return column
