"""What fills a column: the protocol of an encoder, what it takes and gives, and what every encoder shares."""

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from kcache.checkpoints import Checkpoint, Component
from kcache.devices import is_out_of_memory, torch_dtype
from kcache.landing import Landing, send, stacked
from kcache.shards import Column, KcacheError
from kcache.shards.records import Record, digest

from .batches import Batches
from .compiling import compile_encoder

if TYPE_CHECKING:
    import torch
    from PIL import Image

Array = npt.NDArray[np.generic]
Features = dict[str, Array]
"""The arrays of one sample by field."""
Awaited = Callable[[], Features]
"""The features of one sample that a device may be at still: to call it, in any thread, is to wait for them."""

STORE_DTYPES = {"fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Precision:
    """What the encoders compute in and on, and what is stored."""

    encode_dtype: str
    store_dtype: str
    device: "torch.device"


@dataclass(frozen=True)
class Prepared:
    """One picture as one encoder takes it: ``pixels`` (3, H, W), and the fields that are known without the model."""

    pixels: npt.NDArray[np.float32]
    fields: Features = field(default_factory=dict)


class Encoder(Protocol):
    """What fills one column. ``column`` is known without loading any weight."""

    column: Column

    def load(self) -> None:
        """Load the model, which the first features do otherwise."""

    def features(self, inputs: Sequence[Any], batch_size: int) -> Iterator[Awaited]:
        """The features of each input in order, at most ``batch_size`` at a time.

        Going through them gives batches to the device, in the thread that does so, and waits for none.
        """

    def null(self) -> Features | None:
        """The features of no condition, or None for a column that has none."""


class ImageEncoder(Encoder, Protocol):
    """An encoder that reads the picture and not the captions."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one picture's features; at most, where they differ in size."""

    def prepare(self, image: "Image.Image", sha256: str) -> Prepared:
        """What one picture is encoded from; ``sha256`` is its file's. Called from several threads."""


def encode_pictures(
    encode: Callable[["torch.Tensor"], "torch.Tensor"],
    inputs: Sequence[Prepared],
    batches: Batches,
    size: int,
    precision: Precision,
) -> list[Callable[[], Array]]:
    """What ``encode`` gives for each picture, in order and in fp32; pictures of one shape are batched together.

    All of it is given to the device; a GPU may be at it still when this returns.
    """
    outputs: dict[int, Callable[[], Array]] = {}
    for indices in _by_shape(inputs):
        pixels = [inputs[i].pixels for i in indices]
        encoded = batches.map(lambda batch: _run(encode, batch, precision), pixels, size)
        outputs.update(zip(indices, encoded, strict=True))
    return [outputs[i] for i in range(len(inputs))]


def _by_shape(inputs: Sequence[Prepared]) -> list[list[int]]:
    """The indices of inputs of one shape together, shapes in the order of their first."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, prepared in enumerate(inputs):
        groups.setdefault(prepared.pixels.shape, []).append(i)
    return list(groups.values())


def _run(
    encode: Callable[["torch.Tensor"], "torch.Tensor"], batch: Sequence[npt.NDArray[np.float32]], precision: Precision
) -> list[Callable[[], Array]]:
    import torch

    pixels = send(stacked(batch, precision.device), precision.device).to(torch_dtype(precision.encode_dtype))
    with torch.inference_mode():
        landing = Landing(encode(pixels))
    return [partial(landing.row, i) for i in range(len(batch))]


class Models:
    """The models of one run, each loaded when it is first asked for and once for all columns that it fills."""

    def __init__(self, *, compiled: bool = False) -> None:
        """Nothing is loaded yet. ``compiled``: torch compiles each when it first runs."""
        self._compiled = compiled
        self._loaded: dict[tuple[str, str, torch.device], Any] = {}

    def load(self, component: Component, model_class: Any, precision: Precision, part: str = "") -> Any:
        """A component's model on its device; ``part`` names what of it is run, if that is not all."""
        key = (digest(component.identity()), precision.encode_dtype, precision.device)
        if key not in self._loaded:
            self._loaded[key] = model = _load(component, model_class, precision)
            if self._compiled:
                compile_encoder(model.get_submodule(part))
        return self._loaded[key]


def _load(component: Component, model_class: Any, precision: Precision) -> Any:
    """KcacheError where the device has too little memory for the weights."""
    try:
        model = component.load(model_class, torch_dtype(precision.encode_dtype))
        return model.requires_grad_(False).to(precision.device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise KcacheError(
            f"the {component.subfolder} of {component.checkpoint.name_or_path} in {precision.encode_dtype} does not fit"
            f" into the memory of {precision.device}; free some, or try --encode-dtype fp16 or --device cpu"
        ) from error


def notes_of(checkpoint: Checkpoint) -> Record:
    """Where the weights came from and with which versions; for people, and for a later run that leaves options open."""
    packages = {name: version(name) for name in ("torch", "transformers", "diffusers", "pillow")}
    source = {"from": checkpoint.name_or_path, "folder": Path(checkpoint.name_or_path).is_dir()}
    chosen = {"revision": checkpoint.revision, "variant": checkpoint.variant}
    return {**source, **chosen, "versions": {"python": platform.python_version(), **packages}}
