"""One training run: its parts put together, and what happens around the loop."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from kcache.progress import bar, logger
from kcache.shards import CacheError, KcacheError, Snapshot

from . import checkpointing
from .ahead import Ahead
from .assembly import in_use, make_loop, tensors_of
from .compiling import compile_blocks, wants_compile
from .config import DecoderConfig, PriorConfig
from .divergence import Divergence
from .feeder import Feeder
from .loop import After, Progress
from .memory import apply_memory_options
from .metrics import Metrics
from .mixture import Mixture, local_cache_of
from .outcome import Outcome
from .precision import apply_dtypes
from .probe import probe_loss
from .run_record import cache_record
from .shapes import report_groups
from .sharding import is_sharded, whole_state_dict
from .stages import Stage
from .start import first_state, make_geometry, make_seed, make_windows, resumed_state
from .stopping import ECHO, StopTogether, finish_step_on_signal
from .validating import is_over, make_validating
from .validation_steps import validation_steps
from .weights import Weights
from .windows import tell_windows


@dataclass(frozen=True)
class TrainReport:
    """What a run did. ``first_probe`` and ``last_probe`` are the loss on fixed draws before and after training."""

    output_dir: str
    component: str
    result: str
    step: int
    max_steps: int
    samples: int
    epochs: float
    first_probe: float | None
    last_probe: float | None
    best_loss: float | None
    best_step: int | None
    result_is_best: bool
    """Whether the result has the weights of the best validation, not the last."""
    ended_early: bool
    checkpoint: str | None
    is_main: bool
    """Whether this is the process that speaks for all."""

    @property
    def finished(self) -> bool:
        """Whether there is a result."""
        return self.ended_early or self.step == self.max_steps


class TrainingRun:
    """One training run: the parts, put together and in the state they start from."""

    def __init__(
        self,
        config: PriorConfig | DecoderConfig,
        accelerator: Any,
        stage: Stage,
        weights: Weights,
        snapshots: list[Snapshot],
        resumed: Path | None,
    ) -> None:
        self.config, self.accelerator, self.stage, self.weights = config, accelerator, stage, weights
        self.output_dir = Path(config.output_dir)
        saved = checkpointing.load_state(resumed) if resumed else None
        self.geometry = make_geometry(config, accelerator, saved)
        seed = make_seed(config, accelerator, saved)
        self.local = local_cache_of(config)
        windows = make_windows(snapshots, self.local, saved)
        if accelerator.is_main_process:
            tell_windows(windows, snapshots, self.local)
        self.mixture = Mixture(config, snapshots, seed, windows)
        self.state = first_state(config, stage, self.mixture, self.geometry, seed)
        self.outcome = Outcome(config, stage, weights)
        weights.prepare(stage.model, seed)
        if resumed and saved:
            state = resumed_state(resumed, saved, self.state, self.mixture, config.accept_new_snapshot)
            self.state = self.outcome.with_known_best(state)
            weights.load(stage.model, resumed)
        if wants_compile(config):
            compile_blocks(stage.model)
        apply_memory_options(stage.model, config)
        apply_dtypes(stage.model, config)
        self.source = stage.make_source(self.mixture.samples, seed)
        self.epoch = self.mixture.epoch(self.source)
        wanted = math.ceil(config.num_train_epochs * self.epoch / self.geometry.global_batch)
        self.max_steps = config.max_train_steps or wanted
        self.order = self.mixture.order(self.source, self.geometry.global_batch, seed)
        self.loop = make_loop(config, accelerator, stage, self.geometry, self.max_steps, self.state, resumed)
        self.divergence = Divergence(self.loop, self.order, self.source, self.mixture, self.output_dir)
        self.metrics = Metrics(config, accelerator, self.output_dir)

    def train(self) -> TrainReport:
        """Run to the end, or to what stops it before, and write what there is to write."""
        first = self.state.step
        self._refuse_done(first)
        if self.accelerator.is_main_process:
            self.outcome.prepare_upload()
        self._announce()
        validating = make_validating(self.config, self.loop, self.stage, self.mixture, self.metrics, self._keep_best)
        try:
            self.metrics.start(self._record())
            return self._train(first, validating)
        finally:
            self.metrics.finish()

    def _refuse_done(self, first: int) -> None:
        """KcacheError where nothing is left to do. A run that was killed before it wrote its result has that to do."""
        if first > self.max_steps or (first == self.max_steps and self.outcome.is_written(first)):
            raise KcacheError(
                f"the run has {first:,} updates already and {self.max_steps:,} were asked for;"
                " ask for more with --max-train-steps or --num-train-epochs"
            )
        if is_over(self.state, self.config.early_stopping) and self.outcome.is_written(first):
            raise KcacheError(
                f"the run ended after {first:,} updates, as {self.state.worse} validations were not better than that of"
                f" update {self.state.best_step:,}; give a larger --early-stopping, or none, to go on"
            )

    def _train(self, first: int, validating: Any) -> TrainReport:
        config, main = self.config, self.accelerator.is_main_process
        if self.state.first_probe is None:
            self.state = replace(self.state, first_probe=self._probe(first))
        due = validation_steps(config, self.epoch, self.geometry.global_batch, self.max_steps)
        batches = self.geometry.micro_batches(self.order, first, self.max_steps)
        with (
            bar(self.max_steps, "step", f"train {self.stage.name}", initial=first, shown=main) as progress,
            finish_step_on_signal(ECHO if self.accelerator.num_processes > 1 else 0.0) as asked_to_stop,
            self._ahead(first) as ahead,
            Feeder(self.source, ahead.following(batches), config.train_batch_size, self.accelerator.device) as feeder,
        ):

            def validate(step: int) -> None:
                if validating.wanted and due(step):
                    self.state = validating.run(step, self.state)

            def update(step: int) -> None:
                progress.update(1)
                validate(step)
                if step % config.checkpointing_steps == 0 and step < self.max_steps:
                    self._save_checkpoint(step)

            def logged(now: Progress) -> None:
                self.divergence.refuse(now)
                self.metrics.log(now.metrics(), now.step)
                progress.set_postfix_str(
                    f"loss {now.loss:.4f}, lr {now.learning_rate:.2e}, {now.samples_per_second:,.1f} samples/s",
                    refresh=False,
                )

            def stop(step: int) -> bool:
                return is_over(self.state, config.early_stopping) or all_stop(step)

            if first == 0:
                validate(0)
            all_stop = StopTogether(self.accelerator, asked_to_stop, first)
            done = first
            if not is_over(self.state, config.early_stopping):
                done = self._run_loop(feeder, first, After(update, logged, stop))
            ended_early = is_over(self.state, config.early_stopping)
            finished = done == self.max_steps or ended_early
            # Still inside: a signal now must not cut short what saves the run. And before the last probe.
            last_saved = self._save_checkpoint(done)
            last_probe = self._finish(done) if finished else None
        return TrainReport(
            output_dir=str(self.output_dir),
            component=self.stage.subfolder,
            result=self.weights.result,
            step=done,
            max_steps=self.max_steps,
            samples=len(self.mixture.train[0]),
            epochs=float(done * self.geometry.global_batch / self.epoch),
            first_probe=self.state.first_probe,
            last_probe=last_probe,
            best_loss=self.state.best_loss,
            best_step=self.state.best_step,
            result_is_best=config.early_stopping is not None and self.state.best_loss is not None,
            ended_early=ended_early,
            checkpoint=str(last_saved) if last_saved else None,
            is_main=main,
        )

    def _run_loop(self, feeder: Feeder, first: int, after: After) -> int:
        """Where it stopped. CacheError, with how to go on, where the cache cannot be read on the way."""
        try:
            return self.loop.run(iter(feeder), first, self.max_steps, after)
        except CacheError as error:
            if not (kept := checkpointing.checkpoints(self.output_dir)):
                raise
            raise CacheError(
                f"{error}; {kept[-1].name} is kept: go on from it with --resume-from-checkpoint latest"
            ) from error

    def _ahead(self, first: int) -> Ahead:
        """One process of each machine fetches ahead for all of them: they read the same shards at the same time."""
        order = self.order
        if self.local:  # one of its own, as the other one's epoch is another while this one is ahead
            order = self.mixture.order(self.source, self.geometry.global_batch, self.state.seed)
        steps, wanted = range(first, self.max_steps), self.accelerator.is_local_main_process
        return Ahead(self.mixture.samples, self.source, order, steps, self.local, wanted=wanted)

    def _finish(self, step: int) -> float | None:
        """Write the result: with ``--early-stopping`` the best point, else the last, whose probe is returned."""
        is_best = self.config.early_stopping is not None and self.state.best_loss is not None
        with in_use(self.loop):
            last_probe = None if is_best else self._probe(step)
            self.divergence.refuse_nan(self.model, step)  # an average may overflow where no weight does
            with self._main_saves() as main:
                if main and is_best:
                    self.outcome.promote_best(self.state)
                elif main:
                    self.outcome.save(self.model, self.state)
        if self.accelerator.is_main_process:
            self.outcome.upload()
        return last_probe

    @property
    def model(self) -> Any:
        """The component being trained, without what accelerate wrapped around it."""
        return self.accelerator.unwrap_model(self.loop.objective).model

    def _announce(self) -> None:
        if not self.accelerator.is_main_process:
            return
        if missing := sum(snapshot.missing_shards for snapshot in self.mixture.samples.snapshots):
            logger.warning("%d shards are not encoded yet and are left out", missing)
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        first, *mixed = map(len, self.mixture.train)
        logger.info(
            "training %s (%s parameters) on %s samples%s: updates %s to %s of %s samples each, %.1f epochs, seed %d",
            f"a LoRA of the {self.stage.name}" if self.config.lora else f"the {self.stage.name}",
            f"{trainable / 1e6:.1f} M" if trainable >= 1e5 else f"{trainable:,}",
            f"{first:,}",
            f" and {', '.join(f'{n:,}' for n in mixed)} mixed in" if mixed else "",
            f"{self.state.step + 1:,}",
            f"{self.max_steps:,}",
            f"{self.geometry.global_batch:,}",
            self.max_steps * self.geometry.global_batch / self.epoch,
            self.state.seed,
        )
        if (processes := self.accelerator.num_processes) > 1:
            shared = "the weights sharded among them" if is_sharded(self.model) else "each with all weights"
            logger.info("in %d processes, %s", processes, shared)
        report_groups(self.source.groups, self.geometry.global_batch)

    def _probe(self, step: int) -> float | None:
        positions = self.mixture.train[0]
        if not (count := min(self.config.probe_samples, len(positions))):
            return None
        batch_size, device = self.config.train_batch_size, self.accelerator.device
        loss = probe_loss(self.loop.objective, self.stage, self.mixture.samples, positions, count, batch_size, device)
        self.metrics.log({"probe_loss": loss}, step)
        return loss

    def _save_checkpoint(self, step: int) -> Path | None:
        self.divergence.refuse_nan(self.model, step)
        self.state = replace(self.state, step=step)
        limit, tensors = self.config.checkpoints_total_limit, tensors_of(self.loop, self.config)
        with self._main_saves() as main:
            if main:
                return checkpointing.save_checkpoint(
                    self.output_dir, self.state, self.model, self.weights, tensors, limit
                )
        return None

    def _keep_best(self, step: int, loss: float) -> None:
        self.divergence.refuse_loss(loss, step)
        self.divergence.refuse_nan(self.model, step)
        with self._main_saves() as main:
            if main:
                self.outcome.save_best(self.model, replace(self.state, step=step))

    @contextmanager
    def _main_saves(self) -> Iterator[bool]:
        """Within it the main process, which is told so, finds whole weights in the model, and the others wait."""
        main: bool = self.accelerator.is_main_process
        with whole_state_dict(self.model, keep=main):
            yield main
        self.accelerator.wait_for_everyone()

    def _record(self) -> dict[str, Any]:
        """What ``run.json`` says of this run beside its options."""
        snapshots = self.mixture.samples.snapshots
        shares = [1 - sum(self.mixture.shares, Fraction(0)), *self.mixture.shares]
        caches = [
            cache_record(snapshot, share=float(share), trained_on=len(positions))
            for snapshot, share, positions in zip(snapshots, shares, self.mixture.train, strict=True)
        ]
        return {
            "step": self.state.step,
            "stage": self.stage.name,
            "max_steps": self.max_steps,
            "samples": sum(map(len, self.mixture.train)),
            "held_out": len(self.mixture.held_out),
            "global_batch": self.geometry.global_batch,
            "seed": self.state.seed,
            "caches": caches,
        }
