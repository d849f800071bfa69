"""The optimizers by name: where each comes from, which options it takes, and how it goes on from a checkpoint."""

import contextlib
import importlib
import inspect
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kcache.progress import logger
from kcache.shards import KcacheError, UsageError

from .config import TrainConfig
from .one_by_one import Manner, OneByOne
from .optimizer_args import did_you_mean, parse_args
from .sharding import cut_optimizer_state


@dataclass(frozen=True)
class Kind:
    """Where an optimizer's class is, and which arguments of it the options ``--adam-...`` give."""

    module: str
    class_name: str
    adam: tuple[str, ...]
    extra: str | None = None
    """The extra of kcache that brings the package, where torch is not enough."""

    def load(self) -> type[torch.optim.Optimizer]:
        """The class. KcacheError with the command that installs its package."""
        try:
            found: type[torch.optim.Optimizer] = getattr(importlib.import_module(self.module), self.class_name)
        except (ImportError, OSError) as error:  # not there, or without a shared library that it needs
            package = self.module.partition(".")[0]
            raise KcacheError(f"{package} does not load ({error}); run: pip install 'kcache[{self.extra}]'") from error
        return found


_ADAM = ("betas", "eps", "weight_decay")

OPTIMIZERS = {
    "adamw": Kind("torch.optim", "AdamW", _ADAM),
    "adamw8bit": Kind("bitsandbytes.optim", "AdamW8bit", _ADAM, "bitsandbytes"),
    "adafactor": Kind("torch.optim", "Adafactor", ("weight_decay",)),  # its eps are a pair that means something else
    "prodigy": Kind("prodigyopt", "Prodigy", _ADAM, "prodigy"),
    "schedulefree": Kind("schedulefree", "AdamWScheduleFree", _ADAM, "schedulefree"),
    "sgd": Kind("torch.optim", "SGD", ("weight_decay",)),
}


def optimizer_name(config: TrainConfig) -> str:
    """What ``--optimizer`` and ``--use-8bit-adam`` say together. UsageError for an unknown name or a contradiction."""
    name = config.optimizer
    if name not in OPTIMIZERS:
        names = list(OPTIMIZERS)
        raise UsageError(f"--optimizer '{name}' is none of {', '.join(names)}{did_you_mean(name.lower(), names)}")
    if not config.use_8bit_adam:
        return name
    if name not in ("adamw", "adamw8bit"):
        raise UsageError(f"--use-8bit-adam is --optimizer adamw8bit, and --optimizer {name} contradicts it; give one")
    return "adamw8bit"


def is_one_by_one(config: TrainConfig) -> bool:
    """Whether one parameter is updated after the other, which bf16 weights, offloading and in backward need."""
    return config.weights_dtype == "bf16" or config.offload_optimizer or config.update_in_backward


def optimizer_arguments(config: TrainConfig) -> dict[str, Any]:
    """What the optimizer's class is made with, beside the parameters.

    Needs no model, so that a command can refuse wrong options before it loads one. UsageError for options that do not
    fit the optimizer, KcacheError where its package is not installed.
    """
    name = optimizer_name(config)
    _refuse_unfit(config, name)
    kind = OPTIMIZERS[name]
    values: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
        "weight_decay": config.adam_weight_decay,
    }
    given = {argument: values[argument] for argument in ("lr", *kind.adam)}
    return given | parse_args(config.optimizer_args, name, kind.load(), given)


def make_optimizer(
    config: TrainConfig, parameters: Iterable[nn.Parameter], device: torch.device, seed: int = 0, updates: int = 0
) -> torch.optim.Optimizer:
    """The optimizer that ``config`` asks for, ready to train ``parameters``. Errors as in `optimizer_arguments`.

    ``seed`` and the ``updates`` done so far key the draws by which weights in bf16 are rounded.
    """
    name, arguments = optimizer_name(config), optimizer_arguments(config)
    if name == "prodigy" and config.learning_rate < 0.1:
        logger.warning(
            "prodigy multiplies the rate that it finds by --learning-rate, and %g leaves little of it; 1.0 is usual",
            config.learning_rate,
        )
    # One kernel for all parameters. On the CPU it rounds otherwise than the plain update that the reference does.
    if name == "adamw" and device.type == "cuda" and not arguments.keys() & {"fused", "foreach", "differentiable"}:
        arguments["fused"] = True

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        with contextlib.redirect_stdout(io.StringIO()):  # Prodigy prints; what a command prints is its result
            return OPTIMIZERS[name].load()(parameters, **arguments)

    try:
        if is_one_by_one(config):
            manner = Manner(device, config.offload_optimizer, config.update_in_backward, seed, updates)
            return OneByOne(make, parameters, manner)
        optimizer = make(parameters)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        shown = ", ".join(f"{argument}={value}" for argument, value in arguments.items())
        raise UsageError(f"--optimizer {name} cannot be made with {shown}: {error}; change what it names") from error
    if name == "schedulefree":
        optimizer.train()  # type: ignore[attr-defined]  # only this one has two modes
    return optimizer


def optimizer_state(optimizer: Any, config: TrainConfig) -> dict[str, Any]:
    """What a checkpoint keeps of an optimizer, prepared by accelerate or not: tensors, plain values, and its name."""
    return {"name": optimizer_name(config), **_inner(optimizer).state_dict()}


def restore_optimizer(optimizer: Any, state: dict[str, Any], config: TrainConfig) -> None:
    """Go on from `optimizer_state`: what the optimizer found out is the checkpoint's, what was asked for is this run's.

    Call it before a schedule is made. KcacheError where ``state`` is of another optimizer, or of other parameters.
    """
    name, saved = (
        optimizer_name(config),
        state.get("name", "adamw"),
    )  # unnamed in checkpoints of before there were others
    if name != saved:
        raise KcacheError(
            f"the checkpoint was made with --optimizer {saved} and this run has {name};"
            f" give --optimizer {saved}, or begin a new run in another --output-dir"
        )
    inner = _inner(optimizer)
    have = sum(len(group["params"]) for group in inner.param_groups)
    had = sum(len(group["params"]) for group in state["param_groups"])
    if have != had:
        raise KcacheError(
            f"the checkpoint's optimizer has {had:,} parameters and this run trains {have:,};"
            " give the options that say what is trained as they were"
        )
    asked = set(inspect.signature(_class_of(inner)).parameters) - {"params"}
    groups = [
        old | {key: value for key, value in new.items() if key in asked} | {"lr": config.learning_rate}
        for old, new in zip(state["param_groups"], inner.param_groups, strict=True)
    ]
    parameters = [parameter for group in inner.param_groups for parameter in group["params"]]
    inner.load_state_dict({"state": cut_optimizer_state(state["state"], parameters), "param_groups": groups})


@contextmanager
def weights_for_use(optimizer: Any) -> Iterator[None]:
    """Within it the parameters are what schedule-free learning means to be used: the average, not where it trains.

    Afterwards they are to the bit what they were. With every other optimizer nothing happens.
    """
    inner = _inner(optimizer)
    if not any(group.get("train_mode") for group in inner.param_groups):
        yield
        return
    parameters = [parameter for group in inner.param_groups for parameter in group["params"]]
    trained = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    inner.eval()
    try:
        yield
    finally:
        inner.train()  # it computes the way back, to within rounding only
        with torch.no_grad():
            for parameter, kept in zip(parameters, trained, strict=True):
                parameter.copy_(kept)


def _refuse_unfit(config: TrainConfig, name: str) -> None:
    """UsageError for options that this optimizer has no use for, where they are not at their defaults."""
    options = {"betas": ("adam_beta1", "adam_beta2"), "eps": ("adam_epsilon",), "weight_decay": ("adam_weight_decay",)}
    for argument in set(options) - set(OPTIMIZERS[name].adam):
        for option in options[argument]:
            if getattr(config, option) != getattr(TrainConfig, option):
                spelled = option.replace("_", "-")
                raise UsageError(
                    f"--{spelled} {getattr(config, option)} is given, and --optimizer {name} has nothing like it;"
                    " leave it out, or see docs/optimizers.md for what it has"
                )
    if name == "schedulefree" and config.use_ema:
        raise UsageError("--use-ema would average the average that --optimizer schedulefree gives; leave it out")
    if name == "schedulefree" and config.adam_beta1 == 0:
        raise UsageError("--adam-beta1 0 leaves --optimizer schedulefree no average to give; 0.9 is usual")


def _inner(optimizer: Any) -> Any:
    """The optimizer itself, without what accelerate wrapped around it."""
    return getattr(optimizer, "optimizer", optimizer)


def _class_of(optimizer: Any) -> type:
    """The class that knows the optimizer's options."""
    return type(optimizer.inner if isinstance(optimizer, OneByOne) else optimizer)
