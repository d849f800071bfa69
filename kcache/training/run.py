"""One training run: its parts put together, and what happens around the loop."""

import json
import math
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kcache.progress import bar, logger
from kcache.shards import BatchOrder, KcacheError, Snapshot

from . import checkpointing
from .changes import describe_changes
from .checkpointing import TrainState
from .config import DecoderConfig, PriorConfig
from .export import save_result
from .feeder import Feeder
from .loop import After, Geometry, Loop, Objective, Progress, finish_step_on_signal
from .probe import probe_loss
from .shapes import report_groups
from .stages import Stage, checkpoint_name


@dataclass(frozen=True)
class TrainReport:
    """What a run did. ``first_probe`` and ``last_probe`` are the loss on fixed draws before and after training."""

    output_dir: str
    component: str
    step: int
    max_steps: int
    samples: int
    epochs: float
    first_probe: float | None
    last_probe: float | None
    checkpoint: str | None
    is_main: bool
    """Whether this is the process that speaks for all."""


class TrainingRun:
    """One training run: the parts, put together and in the state they start from."""

    def __init__(
        self,
        config: PriorConfig | DecoderConfig,
        accelerator: Any,
        stage: Stage,
        snapshot: Snapshot,
        resumed: Path | None,
    ) -> None:
        self.config, self.accelerator, self.stage, self.snapshot = config, accelerator, stage, snapshot
        self.geometry = Geometry(
            config.train_batch_size,
            config.gradient_accumulation_steps,
            accelerator.num_processes,
            accelerator.process_index,
        )
        saved = checkpointing.load_state(resumed) if resumed else None
        self.state = self._first_state(saved)
        if resumed and saved:
            changes = describe_changes(saved.generations, saved.samples, snapshot)
            checkpointing.refuse_other(resumed, saved, self.state, changes, config.accept_new_snapshot)
            checkpointing.load_weights(resumed, stage.subfolder, stage.model)
            self.state = replace(self.state, step=saved.step, first_probe=saved.first_probe)
        wanted = config.num_train_epochs * len(snapshot)
        self.max_steps = config.max_train_steps or -(-wanted // self.geometry.global_batch)
        self._prepare(resumed)

    def train(self, output_dir: Path) -> TrainReport:
        """Run to the end, or to the signal that stops it, and write what there is to write."""
        config, first = self.config, self.state.step
        if first >= self.max_steps:
            raise KcacheError(
                f"the run has {first:,} updates already and {self.max_steps:,} were asked for;"
                " ask for more with --max-train-steps or --num-train-epochs"
            )
        self._announce()
        source = self.stage.make_source(self.snapshot, self.state.seed)
        if self.accelerator.is_main_process:
            report_groups(source.groups, self.geometry.global_batch)
        if self.state.first_probe is None:
            self.state = replace(self.state, first_probe=self._probe(first))
        order = BatchOrder(source.groups, self.geometry.global_batch, self.state.seed)
        micro_batches = self.geometry.micro_batches(order, first, self.max_steps)
        device, main = self.accelerator.device, self.accelerator.is_main_process
        with (
            bar(self.max_steps, "step", f"train {self.stage.name}", initial=first, shown=main) as progress,
            finish_step_on_signal() as asked_to_stop,
            Feeder(source, micro_batches, config.train_batch_size, device) as feeder,
        ):

            def update(step: int) -> None:
                progress.update(1)
                if step % config.checkpointing_steps == 0 and step < self.max_steps:
                    self._save_checkpoint(step)

            def logged(now: Progress) -> None:
                if not math.isfinite(now.loss):
                    raise self._diverged(f"the loss is {now.loss}", now.step)
                self._record(asdict(now))
                progress.set_postfix_str(
                    f"loss {now.loss:.4f}, lr {now.learning_rate:.2e}, {now.samples_per_second:,.1f} samples/s",
                    refresh=False,
                )

            stop = After(update, logged, lambda step: self._agree(step, asked_to_stop()))
            done = self.loop.run(iter(feeder), first, self.max_steps, stop)
            finished = done == self.max_steps
            # Still inside: a signal now must not cut short what saves the run. And before the last probe.
            last_saved = self._save_checkpoint(done)
            if finished and main:
                options = asdict(config) | {"seed": self.state.seed}
                save_result(output_dir, self.model, self.stage, checkpoint_name(config), options)
        last_probe = self._probe(done) if finished else None
        return TrainReport(
            output_dir=str(output_dir),
            component=self.stage.subfolder,
            step=done,
            max_steps=self.max_steps,
            samples=len(self.snapshot),
            epochs=done * self.geometry.global_batch / len(self.snapshot),
            first_probe=self.state.first_probe,
            last_probe=last_probe,
            checkpoint=str(last_saved) if last_saved else None,
            is_main=main,
        )

    @property
    def model(self) -> Any:
        """The component being trained, without what accelerate wrapped around it."""
        return self.accelerator.unwrap_model(self.loop.objective).model

    def _first_state(self, saved: TrainState | None) -> TrainState:
        seed = self.config.seed
        if seed is None:
            seed = saved.seed if saved else self._shared_seed()
        return TrainState(
            stage=self.stage.name,
            step=0,
            seed=seed,
            global_batch=self.geometry.global_batch,
            snapshot=self.snapshot.digest,
            columns=list(self.stage.columns),
            samples=len(self.snapshot),
            generations=self.snapshot.generations,
        )

    def _shared_seed(self) -> int:
        """A seed that nobody chose, the same in every process."""
        from accelerate.utils import broadcast

        seed = torch.tensor(secrets.randbits(31), device=self.accelerator.device)
        return int(broadcast(seed).item())

    def _prepare(self, resumed: Path | None) -> None:
        config = self.config
        stage_model = self.stage.model
        optimizer = torch.optim.AdamW(
            [p for p in stage_model.parameters() if p.requires_grad],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
            eps=config.adam_epsilon,
        )
        objective, optimizer = self.accelerator.prepare(Objective(self.stage, config.snr_gamma).train(), optimizer)
        if resumed:
            tensors = checkpointing.load_tensors(resumed)
            optimizer.load_state_dict(tensors["optimizer"])
            for group in optimizer.param_groups:  # the state is the checkpoint's; what was asked for is this run's
                group |= {"lr": config.learning_rate, "initial_lr": config.learning_rate, "eps": config.adam_epsilon}
                group |= {"betas": (config.adam_beta1, config.adam_beta2), "weight_decay": config.adam_weight_decay}
            if self.accelerator.scaler is not None and "scaler" in tensors:
                self.accelerator.scaler.load_state_dict(tensors["scaler"])
        self.loop = Loop(
            accelerator=self.accelerator,
            objective=objective,
            optimizer=optimizer,
            schedule=_schedule(config, optimizer, self.max_steps, self.state.step),
            geometry=self.geometry,
            max_grad_norm=config.max_grad_norm,
            logging_steps=config.logging_steps,
            has_dropout=any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in stage_model.modules()),
            seed=self.state.seed,
        )

    def _announce(self) -> None:
        if not self.accelerator.is_main_process:
            return
        if self.snapshot.missing_shards:
            logger.warning("%d shards are not encoded yet and are left out", self.snapshot.missing_shards)
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        logger.info(
            "training the %s (%.1f M parameters) on %s samples:"
            " updates %s to %s of %s samples each, %.1f epochs, seed %d",
            self.stage.name,
            trainable / 1e6,
            f"{len(self.snapshot):,}",
            f"{self.state.step + 1:,}",
            f"{self.max_steps:,}",
            f"{self.geometry.global_batch:,}",
            self.max_steps * self.geometry.global_batch / len(self.snapshot),
            self.state.seed,
        )

    def _probe(self, step: int) -> float | None:
        if not self.config.probe_samples:
            return None
        samples = min(self.config.probe_samples, len(self.snapshot))
        loss = probe_loss(
            self.loop.objective,
            self.stage,
            self.snapshot,
            samples,
            self.config.train_batch_size,
            self.accelerator.device,
        )
        self._record({"step": step, "probe_loss": loss})
        return loss

    def _agree(self, step: int, asked: bool) -> bool:
        """Whether any process was asked to stop: all must stop after the same update, so they ask when they log."""
        if self.accelerator.num_processes == 1:
            return asked
        if step % self.config.logging_steps:
            return False
        flag = torch.tensor(float(asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item())

    def _record(self, values: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        if self.accelerator.is_main_process:
            path = Path(self.config.output_dir, "metrics.jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a") as file:
                file.write(json.dumps(values) + "\n")

    def _diverged(self, what: str, step: int) -> KcacheError:
        rate = self.loop.schedule.get_last_lr()[0]
        return KcacheError(
            f"{what} at update {step:,} (learning rate {rate:.2e}); nothing was saved after the last checkpoint in"
            f" {self.config.output_dir}: go on from there with a lower --learning-rate"
        )

    def _save_checkpoint(self, step: int) -> Path | None:
        # Losses are looked at when they are logged, which may be later than this: no checkpoint may hold a NaN.
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise self._diverged("a weight is no longer a finite number", step)
        self.state = replace(self.state, step=step)
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return None
        tensors = {"optimizer": self.loop.optimizer.state_dict()}
        if self.accelerator.scaler is not None:
            tensors["scaler"] = self.accelerator.scaler.state_dict()
        return checkpointing.save_checkpoint(
            Path(self.config.output_dir),
            self.state,
            self.model,
            self.stage.subfolder,
            tensors,
            self.config.checkpoints_total_limit,
        )


def _schedule(config: PriorConfig | DecoderConfig, optimizer: Any, max_steps: int, step: int) -> Any:
    """The learning rate, stepped once per update by the loop and so not prepared by accelerate.

    Prepared, it steps once per process; and the reference multiplies warm-up by accumulation, which doubles as a bug.
    """
    from diffusers.optimization import get_scheduler

    inner = getattr(optimizer, "optimizer", optimizer)
    return get_scheduler(
        config.lr_scheduler,
        inner,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=max_steps,
        last_epoch=step - 1,  # the scheduler takes its first step by itself; -1: begin
    )
