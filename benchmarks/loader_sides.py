"""The loaders that benchmarks/loader.py compares: how each writes the same samples, and reads them shuffled.

Every side writes samples in its own format as its documentation advises, and opens that to a function from a seed to
one epoch of batches: dicts of tensors, hidden states padded with zeros to the longest of the batch. Where a peer has a
quicker way than its shortest one, it is given the quicker.
"""

import contextlib
import importlib.machinery
import importlib.util
import io
import math
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kcache.shards import Cache, Column, Field, Snapshot
from kcache.training.decoder_source import DecoderSource
from kcache.training.feeder import DEPTH, Feeder
from kcache.training.prior_source import PriorSource
from kcache.training.samples import Samples
from kcache.training.shapes import read_shapes
from kcache.training.sources import MicroBatch, Reading

BATCH = 64
SHARD = 256
"""Samples in a file, for every side that has files of a number of samples."""
CHUNK = 16 * 2**20
"""Bytes in a file, for the others."""

Sample = dict[str, np.ndarray]
Batch = dict[str, torch.Tensor]
Epoch = Callable[[int], Iterator[Batch]]


def collate(samples: Sequence[Sample]) -> Batch:
    """What a peer's samples become: one tensor for each field, hidden states padded with zeros."""
    batch = {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in samples[0] if name != RAGGED}
    if RAGGED in samples[0]:
        arrays = [s[RAGGED] for s in samples]
        padded = np.zeros((len(arrays), max(map(len, arrays)), arrays[0].shape[1]), arrays[0].dtype)
        for row, array in zip(padded, arrays, strict=True):
            row[: len(array)] = array
        batch[RAGGED] = torch.from_numpy(padded)
        batch["lengths"] = torch.tensor([len(array) for array in arrays])
    return batch


RAGGED = "hidden_states"


def batches_of(count: int, seed: int) -> Iterator[list[int]]:
    """One shuffled epoch of row numbers, in batches."""
    order = np.random.default_rng(seed).permutation(count)
    for start in range(0, count, BATCH):
        yield order[start : start + BATCH].tolist()


# -- kcache


class Kcache:
    """Features into reused buffers; with ``ahead`` also noise and timesteps, by the thread that training reads with."""

    def __init__(self, container: str, *, check_crc: bool, ahead: bool = False) -> None:
        self.container, self.check_crc, self.ahead = container, check_crc, ahead
        self.name = f"kcache .{container}, crc {'on' if check_crc else 'off'}" + (", with noise" if ahead else "")
        self.folder = f"kcache-{container}"

    def write(self, folder: Path, samples: Sequence[Sample]) -> None:
        cache = Cache.create(folder, shard_size=SHARD, container=self.container)
        cache.extend_plan([f"{i:06d}.png" for i in range(len(samples))])
        columns = _columns(samples[0])
        for column in columns:
            cache.add_column(column, None)
        for shard, start in enumerate(range(0, len(samples), SHARD)):
            some = samples[start : start + SHARD]
            rows = [{"id": f"{start + i:06d}.png", "captions": ["a"], "sha256": "0"} for i in range(len(some))]
            cache.commit_samples(shard, rows, ["0"] * len(some))
            for column in columns:
                features = [_features(column, sample) for sample in some]
                cache.commit_features(column, shard, features, [column.key_of(row) for row in rows])

    def open(self, folder: Path) -> Epoch:
        cache = Cache(folder)
        first, second = (name for name in ("text", "latents-768", "image") if name in cache.column_names())
        samples = Samples([Snapshot(cache, [first, second])])
        reading = Reading(0, 1000, check_crc=self.check_crc)
        source: PriorSource | DecoderSource
        if first == "text":
            source = PriorSource(samples, first, [second], reading, 77, trim=True)
        else:
            shapes = read_shapes(samples, [first], check_crc=self.check_crc)
            source = DecoderSource(samples, [(first, second)], shapes, reading)
        ring = [source.allocate(BATCH, pin=False) for _ in range(DEPTH)]

        def epoch(seed: int) -> Iterator[Batch]:
            plan = [MicroBatch(seed, range(len(some)), some) for some in batches_of(len(samples), seed)]
            if self.ahead:
                with Feeder(source, iter(plan), BATCH, torch.device("cpu")) as feeder:
                    yield from feeder
            else:
                for number, batch in enumerate(plan):
                    yield source.read(ring[number % DEPTH], batch)

        return epoch


def _columns(sample: Sample) -> list[Column]:
    width = sample["image_embeds"].shape[0]
    image_field = Field("image_embeds", str(sample["image_embeds"].dtype), (width,))
    image = Column("image", "image", (image_field,), {}, {}, "fp16")
    if RAGGED in sample:
        shapes = {"text_embeds": (None, width), RAGGED: (None, width)}
        fields = [Field(name, "float16", shape) for name, shape in shapes.items()] + [
            Field("lengths", "int32", (None,))
        ]
        return [Column("text", "captions", tuple(fields), {}, {"max_length": 77}, "fp16"), image]
    latents = sample["latents"]
    field = Field("latents", str(latents.dtype), latents.shape)
    return [Column("latents-768", "image", (field,), {}, {}, "fp16"), image]


def _features(column: Column, sample: Sample) -> Sample:
    if column.name != "text":
        return {field.name: sample[field.name] for field in column.fields}
    lengths = np.array([len(sample[RAGGED])], np.int32)
    return {"text_embeds": sample["text_embeds"][None], RAGGED: sample[RAGGED], "lengths": lengths}


# -- the limit


class Memcpy:
    """As many bytes as a batch has, copied from memory into reused buffers: no loader can be quicker on one core."""

    name, folder = "memcpy", "memcpy"

    def write(self, folder: Path, samples: Sequence[Sample]) -> None:
        folder.mkdir()
        np.save(folder / "sizes.npy", [sum(array.nbytes for array in sample.values()) for sample in samples])
        with open(folder / "bytes", "wb") as file:
            for sample in samples:
                file.writelines(array.tobytes() for array in sample.values())

    def open(self, folder: Path) -> Epoch:
        data, sizes = np.fromfile(folder / "bytes", np.uint8), np.load(folder / "sizes.npy")
        ends = np.cumsum(sizes)
        ring = [np.zeros(BATCH * int(sizes.max()), np.uint8) for _ in range(DEPTH)]

        def epoch(seed: int) -> Iterator[Batch]:
            for number, start in enumerate(range(0, len(sizes), BATCH)):
                begin, end = int(ends[start] - sizes[start]), int(ends[min(start + BATCH, len(ends)) - 1])
                out = ring[number % DEPTH][: end - begin]
                np.copyto(out, data[begin:end])
                yield {"bytes": torch.from_numpy(out)}

        return epoch


# -- peers


class WebDataset:
    """Tars of .npy members, shards shuffled and 1,000 samples shuffled in memory."""

    name, folder = "webdataset", "webdataset"

    def write(self, folder: Path, samples: Sequence[Sample]) -> None:
        import webdataset

        folder.mkdir()
        with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=SHARD, verbose=0) as writer:
            for i, sample in enumerate(samples):
                writer.write({"__key__": f"{i:06d}", **{f"{name}.npy": a for name, a in sample.items()}})

    def open(self, folder: Path) -> Epoch:
        import webdataset

        urls = sorted(map(str, folder.glob("*.tar")))

        def arrays(samples: list[dict[str, Any]]) -> Batch:
            return collate([{k.removesuffix(".npy"): v for k, v in s.items() if k.endswith(".npy")} for s in samples])

        def epoch(seed: int) -> Iterator[Batch]:
            data = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=seed, empty_check=False)
            data = data.shuffle(1000, seed=seed).decode().batched(BATCH, collation_fn=arrays)
            return iter(webdataset.WebLoader(data, batch_size=None, num_workers=0))

        return epoch


class HuggingFace:
    """Arrow with arrays as arrays, as its documentation has it."""

    name, folder = "HF datasets, arrays", "datasets-arrays"

    def write(self, folder: Path, samples: Sequence[Sample]) -> None:
        import datasets

        datasets.disable_progress_bars()
        features = datasets.Features({name: self._feature(name, array) for name, array in samples[0].items()})
        rows = {name: [sample[name] for sample in samples] for name in samples[0]}
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder, max_shard_size=CHUNK)

    def open(self, folder: Path) -> Epoch:
        import datasets

        datasets.disable_progress_bars()
        data = datasets.load_from_disk(folder)
        dtype = data.features["image_embeds"].feature.dtype  # without it, all become float32
        data = data.with_format("numpy", dtype=np.dtype(dtype))

        def epoch(seed: int) -> Iterator[Batch]:
            sampler = list(batches_of(len(data), seed))
            return iter(torch.utils.data.DataLoader(data, batch_sampler=sampler, collate_fn=collate))

        return epoch

    def _feature(self, name: str, array: np.ndarray) -> Any:
        import datasets

        if array.ndim == 1:
            return datasets.Sequence(datasets.Value(str(array.dtype)), length=len(array))
        kind = {2: datasets.Array2D, 3: datasets.Array3D}[array.ndim]
        return kind(shape=(None, *array.shape[1:]) if name == RAGGED else array.shape, dtype=str(array.dtype))


class HuggingFaceBytes:
    """Arrow with the bytes of arrays, which is the quickest it can be made to read them."""

    name, folder = "HF datasets, bytes", "datasets-bytes"

    def write(self, folder: Path, samples: Sequence[Sample]) -> None:
        import datasets

        datasets.disable_progress_bars()
        rows = [{name: array.tobytes() for name, array in sample.items()} for sample in samples]
        features = datasets.Features({name: datasets.Value("large_binary") for name in samples[0]})
        datasets.Dataset.from_list(rows, features=features).save_to_disk(folder, max_shard_size=CHUNK)
        np.save(folder / "like.npy", [_like(samples[0])], allow_pickle=False)

    def open(self, folder: Path) -> Epoch:
        import datasets

        datasets.disable_progress_bars()
        data = datasets.load_from_disk(folder)
        likes = dict(text.split(" ") for text in str(np.load(folder / "like.npy")[0]).split(";"))

        def arrays(rows: list[dict[str, bytes]]) -> Batch:
            return collate([{name: _array(value, likes[name]) for name, value in row.items()} for row in rows])

        def epoch(seed: int) -> Iterator[Batch]:
            sampler = list(batches_of(len(data), seed))
            return iter(torch.utils.data.DataLoader(data, batch_sampler=sampler, collate_fn=arrays))

        return epoch


def _like(sample: Sample) -> str:
    """Type and inner shape of every field."""
    return ";".join(
        f"{n} {a.dtype}:{','.join(map(str, (-1, *a.shape[1:]) if n == RAGGED else a.shape))}" for n, a in sample.items()
    )


def _array(value: bytes, like: str) -> np.ndarray:
    dtype, shape = like.split(":")
    return np.frombuffer(value, dtype).reshape([int(size) for size in shape.split(",")])


class NaiveHdf5:
    """One file, a dataset for each field, captions end to end; every sample is sliced out of each."""

    name, folder = "h5py", "h5py"

    def write(self, folder: Path, samples: Sequence[Sample]) -> None:
        import h5py

        folder.mkdir()
        with h5py.File(folder / "all.h5", "w") as file:
            for name in samples[0]:
                arrays = [sample[name] for sample in samples]
                file[name] = np.concatenate(arrays) if name == RAGGED else np.stack(arrays)
            if RAGGED in samples[0]:
                file["ends"] = np.cumsum([len(sample[RAGGED]) for sample in samples])

    def open(self, folder: Path) -> Epoch:
        import h5py

        file = h5py.File(folder / "all.h5", "r")
        names = [name for name in file if name not in (RAGGED, "ends")]
        ends = [0, *file["ends"][:].tolist()] if RAGGED in file else []

        def read(i: int) -> Sample:
            sample = {name: file[name][i] for name in names}
            return sample | ({RAGGED: file[RAGGED][ends[i] : ends[i + 1]]} if ends else {})

        def epoch(seed: int) -> Iterator[Batch]:
            for some in batches_of(len(file["image_embeds"]), seed):
                yield collate([read(i) for i in some])

        return epoch


class Mosaic:
    """MDS shards of arrays, shuffled as it does by default."""

    name, folder = "mosaicml-streaming", "mds"

    def write(self, folder: Path, samples: Sequence[Sample]) -> None:
        columns = {name: f"ndarray:{array.dtype}" for name, array in samples[0].items()}
        with _streaming().MDSWriter(out=str(folder), columns=columns, size_limit=CHUNK) as writer:
            for sample in samples:
                writer.write(sample)

    def open(self, folder: Path) -> Epoch:
        data = _streaming().StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)

        def epoch(seed: int) -> Iterator[Batch]:
            return iter(torch.utils.data.DataLoader(data, batch_size=BATCH, collate_fn=collate))

        return epoch


def _streaming() -> Any:
    """The package. It imports torchvision for data sets of pictures, which none is here: a stand-in will do."""
    if importlib.util.find_spec("torchvision") is not None or "streaming" in sys.modules:
        return importlib.import_module("streaming")
    names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    modules = {name: types.ModuleType(name) for name in names}
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    modules[names[1]].__dict__.update(VisionDataset=object, CIFAR10=object)
    modules[names[3]].__dict__.update(to_tensor=None)
    sys.modules |= modules
    try:
        return importlib.import_module("streaming")
    finally:
        for name in names:
            del sys.modules[name]  # others ask whether it is there


class LitData:
    """Chunks of arrays, written by its `optimize`, shuffled as it does."""

    name, folder = "litdata", "litdata"

    def write(self, folder: Path, samples: Sequence[Sample]) -> None:
        import litdata

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            writer = litdata.streaming.cache.Cache(str(folder), chunk_bytes=CHUNK)
            for i, sample in enumerate(samples):
                writer[i] = sample
            writer.done()
            writer.merge()

    def open(self, folder: Path) -> Epoch:
        import litdata

        def epoch(seed: int) -> Iterator[Batch]:
            data = litdata.StreamingDataset(str(folder), shuffle=True, seed=seed)
            return iter(litdata.StreamingDataLoader(data, batch_size=BATCH, collate_fn=collate))

        return epoch


KCACHE = [
    *(Kcache(container, check_crc=crc) for container in ("tar", "h5") for crc in (False, True)),
    Kcache("tar", check_crc=True, ahead=True),
]
PEERS = [WebDataset(), HuggingFace(), HuggingFaceBytes(), NaiveHdf5(), Mosaic(), LitData()]
SIDES: list[Any] = [*KCACHE, Memcpy(), *PEERS]


def make_samples(stage: str, count: int) -> list[Sample]:
    """Made-up features: for the prior of captions of 8 to 25 tokens, for the decoder latents of 768 px."""
    random = np.random.default_rng(0)

    def values(*shape: int, dtype: str = "float16") -> np.ndarray:
        return random.standard_normal(math.prod(shape), np.float32).reshape(shape).astype(dtype)

    if stage == "prior":
        return [
            {"text_embeds": values(1280), RAGGED: values(int(tokens), 1280), "image_embeds": values(1280)}
            for tokens in random.integers(8, 26, count)
        ]
    dtype = "float32" if stage == "decoder-fp32" else "float16"
    return [
        {"latents": values(4, 96, 96, dtype=dtype), "image_embeds": values(1280, dtype=dtype)} for _ in range(count)
    ]
