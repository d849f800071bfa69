"""What a run trains and keeps: all weights of a component, or a LoRA of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from kcache.lora_file import LORA_FILE, load_lora, save_lora
from kcache.shards import KcacheError

from .config import TrainConfig
from .lora import add_lora


class Weights(Protocol):
    """What is trained of a model, and how it lies on disk."""

    @property
    def result(self) -> str:
        """The file or folder that lies in OUT when a run is done."""

    def prepare(self, model: Any, seed: int) -> None:
        """Make exactly the parameters that are trained require gradients; the same in all processes of a ``seed``."""

    def save(self, model: Any, folder: Path) -> None:
        """Write `result` into an existing folder, as safetensors."""

    def load(self, model: Any, folder: Path) -> None:
        """Fill a prepared model from what `save` wrote. KcacheError, naming it, when it is not exactly that."""


@dataclass(frozen=True)
class FullWeights:
    """The whole component, in the hub's layout."""

    subfolder: str

    @property
    def result(self) -> str:
        """``prior`` or ``unet``."""
        return self.subfolder

    def prepare(self, model: Any, seed: int) -> None:
        """Nothing: a stage freezes what is never trained."""

    def save(self, model: Any, folder: Path) -> None:
        """Write ``prior/`` or ``unet/``."""
        model.save_pretrained(str(folder / self.subfolder), safe_serialization=True)

    def load(self, model: Any, folder: Path) -> None:
        """Fill the model from ``prior/`` or ``unet/``."""
        from safetensors import SafetensorError

        path = folder / self.subfolder
        if (folder / LORA_FILE).is_file():
            raise KcacheError(f"{folder} is of a run with --lora; add --lora and its options to go on with it")
        try:
            arguments = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
            loaded, found = type(model).from_pretrained(str(path), **arguments)
            if missing := sorted(found["missing_keys"]):
                raise KeyError(missing[0])
            model.load_state_dict(loaded.state_dict())
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            kind = type(error).__name__
            raise KcacheError(
                f"{path} does not load (cut, damaged, or not what kcache wrote: {kind}); resume from another checkpoint"
            ) from error


@dataclass(frozen=True)
class LoraWeights:
    """A LoRA beside frozen weights, in the one file that diffusers loads."""

    config: TrainConfig

    @property
    def result(self) -> str:
        """The file's name."""
        return LORA_FILE

    def prepare(self, model: Any, seed: int) -> None:
        """Freeze the model and put the LoRA into it."""
        add_lora(model, self.config, seed)

    def save(self, model: Any, folder: Path) -> None:
        """Write the file."""
        save_lora(model, folder)

    def load(self, model: Any, folder: Path) -> None:
        """Fill the LoRA from the file."""
        path = folder / LORA_FILE
        if not path.is_file():
            raise KcacheError(f"{folder} holds no {LORA_FILE}: it is of a run without --lora; leave --lora out")
        load_lora(model, path)


def make_weights(config: TrainConfig, subfolder: str) -> Weights:
    """What ``config`` asks to train of the component in ``subfolder`` (``prior`` or ``unet``)."""
    return LoraWeights(config) if config.lora else FullWeights(subfolder)
