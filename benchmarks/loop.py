"""Measures what `kcache train` costs beside its step: the same updates on batches that already lie on the device.

    python benchmarks/loop.py

A real run of `kcache train` on made-up features stops every ``--block`` updates, and as many are done by ten lines of
plain PyTorch with the same model, optimizer and clipping, on batches that were put on the device beforehand. Blocks
alternate, so whatever else the machine does falls on both; the ratio is that of neighbouring blocks. Then a profile:
where the time of an update goes. On a GPU the full size fits: ``--full``.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from architecture import PRIOR, UNET
from loader_sides import Kcache, make_samples
from machine import add_json_option, describe, keep

from kcache.shards import Cache
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.engine import make_accelerator
from kcache.training.feeder import Feeder
from kcache.training.loop import After, Loop
from kcache.training.mixture import open_snapshots
from kcache.training.objectives import Batch
from kcache.training.run import TrainingRun
from kcache.training.stages import make_stage
from kcache.training.weights import make_weights

SMALL_PRIOR = PRIOR | {"num_layers": 3, "num_attention_heads": 8}
SMALL_UNET = UNET | {"block_out_channels": (64, 128, 192, 256), "layers_per_block": 1, "cross_attention_dim": 128}
SAMPLES = 512
BATCH = {"prior": 8, "decoder": 2}


class Alternating(Loop):
    """The loop of a run, interrupted by blocks of bare updates."""

    def __init__(self, loop: Loop, bare: Callable[[int], tuple[float, float]], block: int) -> None:
        super().__init__(**vars(loop))
        self.bare, self.block = bare, block
        self.real: list[tuple[float, float]] = []
        self.plain: list[tuple[float, float]] = []

    def run(self, batches: Iterator[Batch], first_step: int, stop_step: int, after: After) -> int:
        """Each block of real updates follows one of bare ones; the first of each warms up and does not count."""
        for start in range(first_step, stop_step, self.block):
            self.plain.append(self.bare(self.block))
            began = clocks(self.accelerator.device)
            super().run(batches, start, min(start + self.block, stop_step), after)
            self.real.append(since(began, self.accelerator.device))
        return stop_step


def now(device: torch.device) -> float:
    """The time when everything that the device was given to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def clocks(device: torch.device) -> tuple[float, float]:
    """The time, and the seconds of processor time that this process has had, its threads among it."""
    return now(device), time.process_time()


def since(began: tuple[float, float], device: torch.device) -> tuple[float, float]:
    """What both clocks advanced by."""
    wall, processor = clocks(device)
    return wall - began[0], processor - began[1]


def make_run(stage_name: str, root: Path, batch_size: int, steps: int, full: bool) -> TrainingRun:
    """A run of `kcache train` on made-up features, ready to start."""
    import diffusers

    cache = root / "cache"
    side = Kcache("tar", check_crc=True)
    side.write(cache, make_samples("prior" if stage_name == "prior" else "decoder-fp16", SAMPLES))
    options: dict[str, Any] = {
        "cache": str(cache),
        "output_dir": str(root / "out"),
        "pretrained_prior_model_name_or_path": str(root / "model"),
        "pretrained_decoder_model_name_or_path": str(root / "model"),
        "ignore_encoder_mismatch": True,
        "train_batch_size": batch_size,
        "max_train_steps": steps,
        "seed": 0,
        "probe_samples": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if stage_name == "prior":
            prior = diffusers.PriorTransformer(**(PRIOR if full else SMALL_PRIOR))
            torch.nn.init.ones_(prior.clip_std)
            prior.save_pretrained(root / "model" / "prior")
        else:
            diffusers.UNet2DConditionModel(**(UNET if full else SMALL_UNET)).save_pretrained(root / "model" / "unet")
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False)
    scheduler.save_pretrained(root / "model" / "scheduler")
    config = PriorConfig(**options) if stage_name == "prior" else DecoderConfig(resolution=768, **options)
    accelerator = make_accelerator(config)
    stage = make_stage(config, Cache(cache))
    snapshots = open_snapshots([Cache(cache)], stage.columns, partial=False)
    return TrainingRun(config, accelerator, stage, make_weights(config, stage.subfolder), snapshots, None)


def batches_on_device(run: TrainingRun, count: int) -> list[Batch]:
    """The first batches of the run, as the loop would see them, to stay."""
    plan = run.geometry.micro_batches(run.order, 0, count)
    with Feeder(run.source, plan, run.config.train_batch_size, run.accelerator.device) as feeder:
        return [{name: tensor.clone() for name, tensor in batch.items()} for batch in feeder]


def bare_updates(run: TrainingRun, batches: list[Batch]) -> Callable[[int], tuple[float, float]]:
    """The step without kcache: the times of some updates of the same model by the same optimizer."""
    objective = run.accelerator.unwrap_model(run.loop.objective)
    optimizer = run.loop.optimizer.optimizer
    parameters = [p for p in objective.parameters() if p.requires_grad]
    given = 0

    def updates(count: int) -> tuple[float, float]:
        nonlocal given
        began = clocks(run.accelerator.device)
        for _ in range(count):
            objective(batches[given % len(batches)]).backward()
            torch.nn.utils.clip_grad_norm_(parameters, run.config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            given += 1
        return since(began, run.accelerator.device)

    return updates


class Profile:
    """Seconds in named parts of an update."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict[str, float]()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time counted."""

        def call(*args: Any, **kwargs: Any) -> Any:
            began = now(self.device)
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + now(self.device) - began

        return call


def profile(run: TrainingRun, steps: int) -> dict[str, float]:
    """Share of an update's time in each of its parts, of the real loop; on a GPU each part is waited for."""
    told, loop = Profile(run.accelerator.device), run.loop
    accelerator, optimizer, schedule = loop.accelerator, loop.optimizer, loop.schedule
    plan = run.geometry.micro_batches(run.order, 0, steps)
    objective_forward = loop.objective.forward
    loop.objective.forward = told.timed("forward", objective_forward)
    accelerator.backward = told.timed("backward", accelerator.backward)
    accelerator.clip_grad_norm_ = told.timed("gradient norm and clipping", accelerator.clip_grad_norm_)
    optimizer.step = told.timed("optimizer", optimizer.step)
    optimizer.zero_grad = told.timed("gradients set free", optimizer.zero_grad)
    schedule.step = told.timed("learning rate", schedule.step)
    logged = told.timed("log", lambda progress: run.metrics.log(progress.metrics(), progress.step))
    with Feeder(run.source, plan, run.config.train_batch_size, accelerator.device) as feeder:
        waiting = iter(feeder)
        timed = told.timed("wait for the batch", lambda: next(waiting))
        began = now(accelerator.device)
        Loop.run(loop, iter(timed, None), 0, steps, After(lambda step: None, logged, lambda step: False))
        total = now(accelerator.device) - began
    shares = {name: seconds / total for name, seconds in told.seconds.items()}
    return {**shares, "everything else": 1 - sum(shares.values()), "seconds of an update": total / steps}


def measure(stage: str, batch_size: int, block: int, blocks: int, full: bool) -> dict[str, Any]:
    """The ratio of every pair of blocks, and the profile."""
    with tempfile.TemporaryDirectory(prefix="kcache-loop-") as folder:
        run = make_run(stage, Path(folder), batch_size, block * (blocks + 1), full)
        batches = batches_on_device(run, min(block, 16))
        loop = run.loop = Alternating(run.loop, bare_updates(run, batches), block)
        run.train()
        pairs = list(zip(loop.real, loop.plain, strict=True))[1:]
        return {
            "batch": batch_size,
            "seconds of an update": [real[0] / block for real, _ in pairs],
            "time": [real[0] / bare[0] for real, bare in pairs],
            "processor time": [real[1] / bare[1] for real, bare in pairs],
            "profile": profile(run, block),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=("prior", "decoder"), default=["prior", "decoder"])
    parser.add_argument("--batch-size", type=int, help="default: 8 for the prior, 2 for the decoder")
    parser.add_argument("--block", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--full", action="store_true", help="the architecture of the hub's checkpoints")
    add_json_option(parser)
    options = parser.parse_args()
    machine, figures = describe("accelerate", "diffusers"), {}
    print(json.dumps(machine, indent=1))
    for stage in options.stages:
        batch_size = options.batch_size or BATCH[stage]
        found = figures[stage] = measure(stage, batch_size, options.block, options.blocks, options.full)
        print(f"\n{stage}, batch {found['batch']}: {statistics.median(found['seconds of an update']):.3f} s an update")
        for what in ("time", "processor time"):
            median, low, high = statistics.median(found[what]), min(found[what]), max(found[what])
            print(f"{what} of kcache train / bare step: {median:.3f} ({low:.3f} to {high:.3f})")
        for name, value in found["profile"].items():
            print(f"  {name:28} {value:7.2%}" if name != "seconds of an update" else f"  {name:28} {value:7.3f}")
    keep(options, machine, figures)


if __name__ == "__main__":
    main()
