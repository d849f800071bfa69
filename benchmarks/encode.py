"""Measures what `kcache encode` costs beside its encoders: the same models over tensors that already lie on the device.

    python benchmarks/encode.py --threads 1 --workers 1    kandinsky-tiny on a CPU, one core for either side
    python benchmarks/encode.py --size full                the hub's architecture, on a GPU

Each round encodes the pictures into a new cache, runs the bare encoders over as many inputs in batches of the same
size, and reads and decodes the same pictures with nothing behind it. The order of the three turns from round to round,
so that whatever else the machine does falls on all. The limit is the encoders on a GPU, and on a CPU the slower of
encoders and decoding. Hashing and loading the models does not count: the clock starts when they are ready.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from hub_folders import DATA, write_models, write_pictures
from machine import describe
from stopwatch import clocks

from kcache.devices import default_batch_size, default_device, torch_dtype
from kcache.encoding import encode as encoding
from kcache.encoding.config import EncodeConfig
from kcache.encoding.images import hushed_pillow
from kcache.encoding.pictures import mapped_ahead
from kcache.encoding.shard_encoder import ShardEncoder

COUNTS = {"small": 256, "full": 2048}
"""Pictures of a round, where no folder is given."""
RESOLUTIONS = {"small": 64, "full": 512}
"""Pixels of MoVQ's pictures, where nobody said."""
Times = tuple[float, float]
"""Seconds, and seconds of processor time."""


class Watched(ShardEncoder):
    """The encoding of one run, which tells when its models were ready and what it was given to do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for encoder in (*self.text.values(), *self.image.values()):
            encoder.load()
        self.tasks: list[Any] = []
        Watched.last, self.began = self, clocks()

    last: "Watched"

    def encode_shard(self, task: Any, *args: Any) -> Any:
        """As it is, the task noted."""
        self.tasks.append(task)
        return super().encode_shard(task, *args)


@contextmanager
def watched() -> Iterator[None]:
    """Within it `encode` runs a `Watched`."""
    plain = encoding.ShardEncoder
    encoding.ShardEncoder = Watched  # type: ignore[misc]
    try:
        yield
    finally:
        encoding.ShardEncoder = plain  # type: ignore[misc]


def since(began: Times) -> Times:
    """What both clocks advanced by."""
    wall, processor = clocks()
    return wall - began[0], processor - began[1]


class Case:
    """The pictures and the encoders of one measurement, and the three things that are timed."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.folder, self.device = folder, default_device()
        self.resolution = options.resolution or RESOLUTIONS[options.size]
        self.batch_size = options.batch_size or default_batch_size(self.device)
        self.dtype = options.encode_dtype or ("fp32" if self.device.type == "cpu" else "fp16")
        self.workers, self.rounds = options.workers, 0
        self.checkpoints = DATA / "kandinsky-tiny" if options.size == "small" else _full_models(folder / "models")
        self.pictures = options.pictures or folder / "pictures"
        if not options.pictures:
            write_pictures(options.count or COUNTS[options.size], options.picture_side, self.pictures)
        self.models = self._load()

    def _load(self) -> dict[str, Any]:
        models = self.checkpoints
        loaded = {
            "text": transformers.CLIPTextModelWithProjection.from_pretrained(models / "prior" / "text_encoder"),
            "vision": transformers.CLIPVisionModelWithProjection.from_pretrained(models / "prior" / "image_encoder"),
            "movq": diffusers.VQModel.from_pretrained(models / "decoder" / "movq"),
        }
        return {name: one.eval().to(self.device, torch_dtype(self.dtype)) for name, one in loaded.items()}

    def encode(self) -> Times:
        """`kcache encode` into a new cache, from when its models are loaded until all of it is committed."""
        self.rounds += 1
        config = EncodeConfig(
            dataset=str(self.pictures),
            cache=str(self.folder / f"cache-{self.rounds}"),
            pretrained_prior_model_name_or_path=str(self.checkpoints / "prior"),
            pretrained_decoder_model_name_or_path=str(self.checkpoints / "decoder"),
            resolution=(self.resolution,),
            batch_size=self.batch_size,
            encode_dtype=self.dtype,
            workers=self.workers,
        )
        with watched():
            encoding.encode(config)
        return since(Watched.last.began)

    @torch.inference_mode()
    def bare(self) -> Times:
        """Each encoder over as many inputs as the run before had, captions that a shard repeats once."""
        side, dtype = self.models["vision"].config.image_size, torch_dtype(self.dtype)
        words = self.models["text"].config.vocab_size
        tokens = torch.randint(1, words, (self.batch_size, 77), device=self.device)
        small = torch.rand(self.batch_size, 3, side, side, device=self.device, dtype=dtype)
        large = torch.rand(self.batch_size, 3, self.resolution, self.resolution, device=self.device, dtype=dtype)
        work = [(len(task.pictures), _captions(task)) for task in Watched.last.tasks]
        began = clocks()
        for pictures, captions in work:
            for size in self._batches(pictures):
                self.models["vision"](small[:size])
                self.models["movq"].encode(large[:size])
            for size in self._batches(captions):
                self.models["text"](tokens[:size])
        return since(began)

    def _batches(self, count: int) -> list[int]:
        return [min(self.batch_size, count - start) for start in range(0, count, self.batch_size)]

    def decode(self) -> Times:
        """The pictures of the run before read, hashed, decoded and resized, by as many threads."""
        run = Watched.last
        items = [(task, row) for task in run.tasks for row in task.pictures]
        ahead = 2 * self.batch_size + self.workers
        began = clocks()
        with (
            hushed_pillow(run.decoding.max_pixels),
            mapped_ahead(run.prepare, items, workers=self.workers, ahead=ahead) as ready,
        ):
            for _ in ready:
                pass
        return since(began)


def _full_models(folder: Path) -> Path:
    """The encoders of the hub's architecture with random weights."""
    write_models("prior", "full", folder, ("text", "vision"))
    write_models("decoder", "full", folder, ("movq",))
    return folder


def _captions(task: Any) -> int:
    return len({caption for sample in task.samples for caption in sample.captions})


def measure(case: Case, rounds: int) -> dict[str, list[Times]]:
    """What each of the three took in every round; a round before them warms up and does not count."""
    sides: dict[str, Callable[[], Times]] = {"encode": case.encode, "bare": case.bare, "decode": case.decode}
    for side in sides.values():
        side()
    taken: dict[str, list[Times]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides)[number % 3 :] + list(sides)[: number % 3]
        for name in names:
            taken[name].append(sides[name]())
    return taken


def ratios(taken: dict[str, list[Times]], on_cpu: bool) -> dict[str, list[float]]:
    """Of each round: the limit as a part of the time that `kcache encode` took, and what bounds it."""
    found: dict[str, list[float]] = {"of the limit": [], "of processor time": [], "encoders": [], "decoding": []}
    for real, bare, decode in zip(taken["encode"], taken["bare"], taken["decode"], strict=True):
        limit = max(bare[0], decode[0]) if on_cpu else bare[0]
        found["of the limit"].append(limit / real[0])
        found["of processor time"].append((bare[1] + decode[1]) / real[1])
        found["encoders"].append(bare[0] / real[0])
        found["decoding"].append(decode[0] / real[0])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--pictures", type=Path, help="a dataset to encode; default: kcache's pictures, over and over")
    parser.add_argument("--count", type=int, help="how many of these; default: 256, at the full size 2,048")
    parser.add_argument("--picture-side", type=int, default=640, help="pixels of these JPEG files")
    parser.add_argument("--resolution", type=int, help="of the latents; default: 64, at the full size 512")
    parser.add_argument("--batch-size", type=int, help="default: that of kcache encode")
    parser.add_argument("--encode-dtype", choices=("fp32", "fp16", "bf16"), help="default: fp16 on a GPU, else fp32")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="default: as kcache encode")
    parser.add_argument("--threads", type=int, help="of torch on a CPU; default: torch's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write machine, versions and every figure to this file")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = describe("diffusers", "transformers", "pillow")
    on_cpu = default_device().type == "cpu"
    machine["device"] = "cpu" if on_cpu else torch.cuda.get_device_name()
    machine |= {"threads": torch.get_num_threads(), "workers": options.workers}
    print(json.dumps(machine, indent=1))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kcache-encode-") as folder:
        taken = measure(Case(options, Path(folder)), options.rounds)
    figures = ratios(taken, on_cpu)
    for name, times in taken.items():
        wall, processor = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name:18} {wall:6.2f} s, {processor:6.2f} s of processor time")
    for name, values in figures.items():
        print(f"{name:18} {statistics.median(values):6.1%} ({min(values):.1%} to {max(values):.1%})")
    print(f"measured in {time.perf_counter() - started:.0f} s")
    if options.json:
        content = {"machine": machine, "seconds": taken, "figures": figures}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
