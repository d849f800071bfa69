"""A cache written by hand, with the tiny checkpoints' dimensions: every view of eleven pictures in three shapes."""

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support import Array
from tiny import PIXELS

from kcache.shards import Cache, Column, Field, Snapshot
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.samples import Samples
from kcache.training.sources import MicroBatch
from kcache.training.stages import make_stage

Config = PriorConfig | DecoderConfig
SEED, UPDATES = 3, 6
WIDTH, CHANNELS, SHARD_SIZE = 16, 4, 4
SHAPES = [(CHANNELS, 6, 10), (CHANNELS, 8, 8), (CHANNELS, 10, 6)]
"""Two of them are of one size in bytes."""
SHAPE_OF = [1, 1, 0, 2, 1, 0, 1, 2, 1, 1, 0]
"""Which shape each sample has in its bucket."""
SAMPLES = len(SHAPE_OF)

PLAIN = ("text", "image", "latents-32")
FLIPS = ("image-flip", "latents-32-flip")
BUCKETS = ("image-32-buckets", "latents-32-buckets")
BUCKET_FLIPS = ("image-32-buckets-flip", "latents-32-buckets-flip")
CROPS = tuple(f"{base}-crop-{k}" for base in ("image", "latents-32") for k in (1, 2, 3))
CROP_FLIPS = tuple(f"{name}-flip" for name in CROPS)
EVERYTHING = (*PLAIN, "text-sks", *FLIPS, *BUCKETS, *BUCKET_FLIPS, *CROPS, *CROP_FLIPS)


def latents_shape(name: str, number: int) -> tuple[int, int, int]:
    return SHAPES[SHAPE_OF[number]] if "buckets" in name else (CHANNELS, 8, 8)


def row(name: str, number: int) -> dict[str, Array]:
    """The features of one sample: no two columns and no two samples have the same."""
    random = np.random.default_rng([zlib.crc32(name.encode()), number])
    if name.startswith("text"):
        tokens = 3 + number % 5
        shapes = {"text_embeds": (1, WIDTH), "hidden_states": (tokens, WIDTH)}
        features = {field: random.normal(size=shape).astype(np.float32) for field, shape in shapes.items()}
        return {**features, "lengths": np.asarray([tokens], np.int32)}
    if name.startswith("image"):
        return {"image_embeds": random.normal(size=WIDTH).astype(np.float32)}
    shape = latents_shape(name, number)
    latents = random.normal(size=shape).astype(np.float16)
    cut = {"crop": np.asarray([0, 0, 40, 30], np.int32)} if "crop" in name or "buckets" in name else {}
    if "buckets" in name:
        return {"latents": latents.reshape(-1), "shape": np.asarray(shape, np.int32), **cut}
    return {"latents": latents, **cut}


def column(name: str, **changes: Any) -> Column:
    """A column's record, with the fields that `row` fills."""
    if name.startswith("text"):
        sizes = {"text_embeds": (None, WIDTH), "hidden_states": (None, WIDTH), "lengths": (None,)}
    elif name.startswith("image"):
        sizes = {"image_embeds": (WIDTH,)}
    else:
        sizes = {"latents": (None,) if "buckets" in name else latents_shape(name, 0), "shape": (3,), "crop": (4,)}
    features = row(name, 0)
    fields = tuple(Field(f, str(features[f].dtype), shape) for f, shape in sizes.items() if f in features)
    record: dict[str, Any] = {
        "name": name,
        "reads": "captions" if name.startswith("text") else "image",
        "fields": fields,
        "encoder": {"class": "none", "weights": "0" * 64},
        "preprocessing": {"max_length": 77} if name.startswith("text") else {},
        "encode_dtype": "fp32",
    }
    return Column(**(record | changes))


def make_view_cache(root: Path, names: Iterable[str] = EVERYTHING) -> Cache:
    """A cache with these columns; samples are numbered as they lie in its plan."""
    cache = Cache.create(root, shard_size=SHARD_SIZE, container="tar")
    cache.extend_plan([f"sample {number}" for number in range(SAMPLES)])
    for shard, numbers in shards():
        rows = [{"id": f"sample {n}", "captions": ["a"], "sha256": "0", "width": 1, "height": 1} for n in numbers]
        cache.commit_samples(shard, rows, [f"key {n}" for n in numbers])
    for name in names:
        add_column(cache, column(name))
    return cache


def add_column(cache: Cache, made: Column, **changed: dict[str, Array]) -> None:
    """Add a column to every shard; ``changed`` has fields to put in place of others, by ``sample_NUMBER``."""
    cache.add_column(made, None)
    for shard, numbers in shards():
        rows = [row(made.name, n) | changed.get(f"sample_{n}", {}) for n in numbers]
        cache.commit_features(made, shard, rows, [f"key {n}" for n in numbers])


def shards() -> list[tuple[int, range]]:
    starts = range(0, SAMPLES, SHARD_SIZE)
    return [(shard, range(start, min(start + SHARD_SIZE, SAMPLES))) for shard, start in enumerate(starts)]


def view_config(stage: str, cache: Cache, checkpoint: Path, out: Path = Path("out"), **changes: Any) -> Config:
    """A run of six updates of 2 x 2 samples, with a checkpoint after each."""
    options: dict[str, Any] = {
        "cache": str(cache.root),
        "output_dir": str(out),
        "seed": SEED,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_train_steps": UPDATES,
        "learning_rate": 2e-3,
        "checkpointing_steps": 1,
        "logging_steps": 1,
        "probe_samples": 0,
        "ignore_encoder_mismatch": True,
        **changes,
    }
    if stage == "prior":
        return PriorConfig(**options, pretrained_prior_model_name_or_path=str(checkpoint))
    return DecoderConfig(**options, pretrained_decoder_model_name_or_path=str(checkpoint), resolution=PIXELS)


class ViewRun:
    """A stage with its snapshot, and batches as training reads them."""

    def __init__(self, config: Config, cache: Cache) -> None:
        self.stage = make_stage(config, cache)
        self.snapshot = Snapshot(cache, self.stage.columns)
        self.samples = Samples([self.snapshot])
        self.source = self.stage.make_source(self.samples, SEED)

    def read(self, positions: list[int], step: int = 0, first_slot: int = 0) -> dict[str, torch.Tensor]:
        """A batch of these samples, copied out of its buffers."""
        slots = range(first_slot, first_slot + len(positions))
        buffers = self.source.allocate(len(positions) + 1, pin=False)
        filled = self.source.fill(buffers, MicroBatch(step, slots, positions))
        return {name: tensor.clone() for name, tensor in filled.items()}

    def views(self, field: str, step: int) -> list[str]:
        """Which of the stage's columns each sample's features are from."""
        batch = self.read(list(range(SAMPLES)), step)[field].numpy()
        columns = [name for name in self.stage.columns if name.startswith(field.removesuffix("_embeds"))]
        found = [
            [name for name in columns if np.array_equal(row(name, number)[field].reshape(-1), features.reshape(-1))]
            for number, features in enumerate(batch)
        ]
        assert all(len(names) == 1 for names in found), found
        return [name for (name,) in found]
