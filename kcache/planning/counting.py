"""What a model keeps for backward and computes, stretch by stretch: counted on fake tensors, which hold no data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

SEGMENTS = ("ResnetBlock2D", "Attention", "BasicTransformerBlock")
"""The classes of modules that a pass is cut into; what lies between two of them belongs to the one before."""


@dataclass
class Segment:
    """One stretch of a pass, in bytes; of activations each counts where it is kept first."""

    kept: int = 0
    """Activations that are kept for backward."""
    kept_outside: int = 0
    """Those of them that are kept all the same where a checkpointed module is run again in backward."""
    inside: int = 0
    """What a checkpointed module keeps once it is run again, beside that; 0 where it is not checkpointed."""
    largest: int = 0
    """The largest of what is kept."""
    output: int = 0
    """What it gives."""
    trained: int = 0
    """Numbers that are trained in it."""
    largest_trained: int = 0
    """Of them, in one tensor."""


def count(
    model: nn.Module, run: Callable[[], Any], is_checkpointed: Callable[[str], bool], autocast: bool
) -> list[Segment]:
    """The segments of one call of ``run``, which runs ``model`` on fake tensors.

    ``is_checkpointed`` says of a module by its name whether ``--gradient-checkpointing`` runs it again.
    """
    recorder = _Recorder(model, is_checkpointed)
    with recorder.recording(), norms_in_fp32(model, autocast), torch.autocast("cpu", enabled=autocast):
        run()
    return recorder.segments


def count_operations(run: Callable[[], Any]) -> int:
    """Of one call of ``run`` on fake tensors: two for a multiply-add."""
    flops = FlopCounterMode(display=False, custom_mapping={_ATTENTION: _attention_flops})
    with flops, torch.no_grad():
        run()
    return flops.get_total_flops()


@contextmanager
def norms_in_fp32(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Within it norms compute in fp32, as autocast has them on CUDA and not on the CPU, where fake tensors lie."""
    norms = [m for m in model.modules() if enabled and isinstance(m, nn.GroupNorm | nn.LayerNorm)]
    handles = [norm.register_forward_pre_hook(lambda _, args: (args[0].float(), *args[1:])) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _attention_flops(queries: Any, keys: Any, values: Any, *_: Any, **__: Any) -> int:
    """Of attention that never holds the whole matrix of weights, which torch counts on CUDA alone."""
    return int(sdpa_flop_count(queries, keys, values))  # type: ignore[no-untyped-call]


class _Recorder:
    """Notes, while a model runs, what autograd keeps, and in which segment it is."""

    def __init__(self, model: nn.Module, is_checkpointed: Callable[[str], bool]) -> None:
        self.segments = [Segment()]
        self._model, self._is_checkpointed = model, is_checkpointed
        self._inside: str | None = None
        self._parameters = {p.untyped_storage()._cdata for p in model.parameters()}
        self._kept: dict[int, Any] = {}
        self._kept_outside: dict[int, Any] = {}
        self._kept_inside: dict[int, Any] = {}
        self._counted: set[int] = set()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within it the model's passes are noted."""
        handles = []
        for name, module in self._model.named_modules():
            if type(module).__name__ in SEGMENTS and not _lies_in_segment(self._model, name):
                handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave))
        self._count_parameters(self._model, but=SEGMENTS)
        try:
            with saved_tensors_hooks(self._saved, lambda tensor: tensor):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.segments.append(Segment())
            self._count_parameters(module)
            if self._is_checkpointed(name):
                for tensor in (*args, *kwargs.values()):
                    if isinstance(tensor, Tensor):
                        self._note(tensor, self._kept_outside, "kept_outside")
                self._inside, self._kept_inside = name, {}

        return hook

    def _leave(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._inside = None
        if isinstance(output, Tensor):
            self.segments[-1].output = output.nbytes

    def _saved(self, tensor: Tensor) -> Tensor:
        self._note(tensor, self._kept, "kept")
        if self._inside is None:
            self._note(tensor, self._kept_outside, "kept_outside")
        elif tensor.untyped_storage()._cdata not in self._kept_outside:
            self._note(tensor, self._kept_inside, "inside")
        return tensor

    def _note(self, tensor: Tensor, known: dict[int, Any], where: str) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._parameters or storage._cdata in known:
            return
        known[storage._cdata] = storage  # held, so that no other comes to lie at its place
        segment = self.segments[-1]
        setattr(segment, where, getattr(segment, where) + storage.nbytes())
        segment.largest = max(segment.largest, storage.nbytes())

    def _count_parameters(self, module: nn.Module, but: tuple[str, ...] = ()) -> None:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and id(parameter) not in self._counted:
                if but and _lies_in_segment(module, name):
                    continue
                self._counted.add(id(parameter))
                segment = self.segments[-1]
                segment.trained += parameter.numel()
                segment.largest_trained = max(segment.largest_trained, parameter.numel())


def _lies_in_segment(model: nn.Module, name: str) -> bool:
    """Whether what has this name is inside a module that is a segment."""
    parts = name.split(".")[:-1]
    above = [model.get_submodule(".".join(parts[: n + 1])) for n in range(len(parts))]
    return any(type(module).__name__ in SEGMENTS for module in above)
