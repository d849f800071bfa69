"""An optimizer that updates one parameter after the other: in fp32 for bf16 weights, from host memory, in backward."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .rounding import round_into, rounding_generator

HOST = torch.device("cpu")


@dataclass(frozen=True)
class Manner:
    """How the update is done."""

    device: torch.device
    offload: bool = False
    """Keep states in host memory, and bring those of one parameter to the device for its update."""
    in_backward: bool = False
    """Update each parameter as soon as its gradient is ready, and keep no gradient."""
    seed: int = 0
    """Of the draws by which bf16 weights are rounded."""
    updates: int = 0
    """How many have been done."""


class OneByOne(torch.optim.Optimizer):
    """Another optimizer, run on one parameter at a time, so that what an update needs exists for one alone.

    The other one sees a stand-in for each parameter, which is empty but during the update: then it is the parameter
    itself, or a copy in fp32 of one in bf16, which is rounded back stochastically. So its states are those that it
    would have for fp32 weights, and `state_dict` is that of the optimizer itself. Optimizers that look at several
    parameters at once cannot be run so.
    """

    def __init__(
        self,
        make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        parameters: Iterable[nn.Parameter],
        manner: Manner,
    ) -> None:
        """``make`` makes the optimizer for the parameters that it is given, in one group."""
        self._manner, self._parameters = manner, list(parameters)
        self._hosted = manner.offload and manner.device != HOST
        self._nothing = torch.empty(0, device=HOST if self._hosted else manner.device)
        self._stand_ins = [nn.Parameter(self._nothing) for _ in self._parameters]
        self.inner = make(self._stand_ins)
        (self._group,) = self.inner.param_groups
        super().__init__(self._parameters, self.inner.defaults)
        self._updates, self._generator = manner.updates, torch.Generator(manner.device)
        self._squares = torch.zeros((), device=manner.device)
        if manner.in_backward:
            for number, parameter in enumerate(self._parameters):
                hook = partial(self._in_backward, number)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; in backward they had their update, and no gradient is left."""
        for number, parameter in enumerate(self._parameters):
            if parameter.grad is not None:
                self._update(number, parameter)
        self._updates += 1

    def norm(self) -> Tensor:
        """The norm of the gradients since it was asked for last, which were let go in backward (a scalar)."""
        norm = self._squares.sqrt()
        self._squares = torch.zeros_like(self._squares)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer itself, with this one's rate and other options."""
        if self._hosted and self._manner.device.type == "cuda":
            torch.cuda.synchronize(self._manner.device)  # states may still be on their way
        self._hand_on_options()
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.inner.load_state_dict(state_dict)
        (self._group,), (group,) = self.inner.param_groups, self.param_groups
        group.update({name: value for name, value in self._group.items() if name != "params"})
        if self._hosted:
            for state in self.inner.state.values():
                state |= {name: _like_on_host(tensor).copy_(tensor) for name, tensor in self._travelling(state)}

    def _in_backward(self, number: int, parameter: Tensor) -> None:
        with torch.no_grad():
            self._squares += torch.linalg.vector_norm(parameter.grad, dtype=torch.float32).square()
            self._update(number, parameter)

    def _update(self, number: int, parameter: Tensor) -> None:
        """One parameter's update. Its gradient is let go where nobody asks for it afterwards."""
        stand_in, is_rounded = self._stand_ins[number], parameter.dtype == torch.bfloat16
        # Without a copy in fp32 the stand-in shares the parameter's memory.
        stand_in.data, stand_in.grad = parameter.detach().float(), parameter.grad.detach().float()  # type: ignore[union-attr]
        if self._manner.in_backward:
            parameter.grad = None
        self._hand_on_options()
        self._step_alone(stand_in)
        stand_in.grad = None
        if is_rounded:
            draws = rounding_generator(self._generator, self._manner.seed, self._updates, number)
            round_into(parameter, stand_in.detach(), draws)
        else:
            torch.autograd.graph.increment_version(parameter)  # an error, not a wrong gradient, if backward needs it
        stand_in.data = self._nothing

    def _step_alone(self, stand_in: nn.Parameter) -> None:
        state, others = self.inner.state, self._group["params"]
        at_home = dict(self._travelling(state[stand_in])) if self._hosted and stand_in in state else {}
        for name, tensor in at_home.items():
            state[stand_in][name] = tensor.to(self._manner.device, non_blocking=True, copy=True)
        self._group["params"] = [stand_in]
        try:
            self.inner.step()
        finally:
            self._group["params"] = others
        if self._hosted:
            for name, tensor in self._travelling(state[stand_in]):
                home = at_home[name] if name in at_home else _like_on_host(tensor)
                state[stand_in][name] = home.copy_(tensor, non_blocking=True)

    def _travelling(self, state: dict[str, Any]) -> list[tuple[str, Tensor]]:
        """The tensors of a state that belong on the device; a count of updates does only for a fused optimizer."""
        tensors = [(name, value) for name, value in state.items() if isinstance(value, Tensor)]
        return [(name, value) for name, value in tensors if name != "step" or self._group.get("fused")]

    def _hand_on_options(self) -> None:
        """The schedule sets the rate of this optimizer's group."""
        (group,) = self.param_groups
        self._group.update({name: value for name, value in group.items() if name != "params"})


def _like_on_host(tensor: Tensor) -> Tensor:
    """Memory that a CUDA device can copy to while the CPU goes on."""
    return torch.empty_like(tensor, device=HOST, pin_memory=torch.cuda.is_available())
