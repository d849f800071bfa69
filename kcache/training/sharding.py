"""Weights that FSDP spreads over the processes: made whole for what is written, and cut again when it is read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds but a part of the weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def units(model: nn.Module) -> list[str]:
    """The classes of modules whose weights are gathered together when they run: blocks of the prior, or of the UNet."""
    classes = {type(module).__name__ for module in model.modules()}
    if "BasicTransformerBlock" in classes:
        return ["BasicTransformerBlock"]
    return [name for name in ("ResnetBlock2D", "Attention") if name in classes]


def whole(state: Any, *, keep: bool = True) -> Any:
    """The same nested state with whole tensors on the CPU in place of sharded ones.

    All processes must call it together, and those that do not ``keep`` the tensors get None in their place.
    """
    if isinstance(state, DTensor):
        tensor = state.full_tensor()
        return tensor.cpu() if keep else None
    if isinstance(state, dict):
        return {name: whole(value, keep=keep) for name, value in state.items()}
    if isinstance(state, list):
        return [whole(value, keep=keep) for value in state]
    return state


@contextmanager
def whole_state_dict(model: nn.Module, *, keep: bool) -> Iterator[None]:
    """Within it ``model.state_dict()`` has whole tensors in the processes that ``keep`` them.

    All processes must enter it together; what saves a model then need not know of shards.
    """
    if not is_sharded(model):
        yield
        return
    tensors = whole(model.state_dict(), keep=keep)
    # Its keys are those of the model itself: ``prefix`` is empty, as it is no part of another that is saved.
    handle = model.register_state_dict_post_hook(  # type: ignore[no-untyped-call]
        lambda _model, state, _prefix, _local: state.update(tensors)
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def called_alone(objective: nn.Module, model: nn.Module) -> Iterator[nn.Module]:
    """Within it ``model`` may be called without ``objective``, which FSDP wrapped, around it.

    All processes must enter it together, and call as often. Blocks gather their weights when they run; those beside
    them belong to the wrapper, and are gathered here.
    """
    if isinstance(objective, FSDPModule):
        objective.unshard()
    try:
        yield model
    finally:
        _let_go(objective)


@contextmanager
def evaluating(objective: nn.Module) -> Iterator[None]:
    """Within it nothing is learned; afterwards the objective is in the mode that it was in.

    Without a backward pass FSDP would keep the whole weights that it gathered, and use them again when others are
    meant: an average, or those after it.
    """
    was_training = objective.training
    objective.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        objective.train(was_training)
        _let_go(objective)


def _let_go(objective: nn.Module) -> None:
    """Free what FSDP has gathered."""
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Any) -> Any:
    """The part of a tensor that this process holds, in the same memory; the tensor itself where that is all.

    Of what requires a gradient it is a parameter.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    part: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]  # detach promises a plain tensor
    return nn.Parameter(part) if tensor.requires_grad else part


def joined(parts: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Parts of tensors that are cut as ``parameters`` are, as sharded tensors; as they are where nothing is cut."""
    return [
        DTensor.from_local(part, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
        if isinstance(p, DTensor)
        else part
        for part, p in zip(parts, parameters, strict=True)
    ]


def cut(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """A whole tensor, the same in all processes, as a sharded one cut as ``parameter`` is."""
    if not isinstance(parameter, DTensor):
        return tensor
    tensor = tensor.to(parameter.device, parameter.dtype)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def cut_optimizer_state(state: dict[int, dict[str, Any]], parameters: Sequence[nn.Parameter]) -> dict[int, Any]:
    """The whole state of an optimizer (by the number of each parameter) cut as its parameters are.

    What has another shape, such as a count of updates, is the same in all processes.
    """
    return {
        number: {
            name: cut(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape and value.dim()
            else value
            for name, value in values.items()
        }
        for number, values in state.items()
    }


def all_finite(model: nn.Module, accelerator: Any) -> bool:
    """Whether every weight is a finite number, whichever process holds it; all of them must ask together."""
    finite = all(bool(local(parameter).isfinite().all()) for parameter in model.parameters())
    if not is_sharded(model):
        return finite
    return not bool(accelerator.reduce(torch.tensor(float(not finite), device=accelerator.device), "sum").item())


def whole_number(value: Tensor) -> Tensor:
    """A scalar that was computed of sharded tensors, as a plain one."""
    return value.full_tensor() if isinstance(value, DTensor) else value
