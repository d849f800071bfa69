"""A LoRA's file: written as diffusers writes it, read strictly, and merged into the weights that it belongs to."""

import json
from pathlib import Path
from typing import Any

from kcache.shards.errors import KcacheError

LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers looks for in a folder that it is asked to load a LoRA from."""
ADAPTER = "default"
"""The name that a LoRA has in a model while kcache trains or merges it; the file does not hold it."""
_CONFIGURATION = "lora_adapter_metadata"
"""Where diffusers keeps PEFT's configuration in the header of the file."""
_SCALING = {"r": "--rank", "lora_alpha": "--lora-alpha", "use_dora": "--use-dora"}
"""What changes the meaning of the tensors in a file, and the option that it came from."""


def save_lora(model: Any, folder: Path) -> None:
    """Write the LoRA of ``model`` into an existing folder, with its configuration in the header."""
    model.save_lora_adapter(str(folder), adapter_name=ADAPTER, weight_name=LORA_FILE)


def load_lora(model: Any, path: Path) -> None:
    """Fill the LoRA that ``model`` has with the tensors of a file.

    KcacheError when the file is damaged, or has another rank, alpha or other tensors than the model's LoRA.
    """
    configuration, tensors = read_lora(path)
    now = model.peft_config[ADAPTER]
    for name, option in _SCALING.items():
        if configuration.get(name) != getattr(now, name):
            raise KcacheError(
                f"{path} has {name} {configuration.get(name)} and this LoRA {getattr(now, name)}; give {option} as it"
                " was, or start a new run in another --output-dir"
            )
    _fill(model, path, tensors)


def merge_lora(model: Any, path: Path, scale: float) -> None:
    """Add ``scale`` times what a LoRA's file has learned to the weights of ``model``, which stays as it was otherwise.

    KcacheError when the file is damaged or belongs to another architecture.
    """
    from peft import LoraConfig

    configuration, tensors = read_lora(path)
    try:
        model.add_adapter(LoraConfig(**configuration), ADAPTER)
    except (TypeError, ValueError) as error:
        raise KcacheError(
            f"{path} does not fit {type(model).__name__} ({_first_line(error)}); give it to the model that it was"
            " trained for"
        ) from error
    _fill(model, path, tensors)
    model.fuse_lora(lora_scale=scale, safe_fusing=True, adapter_names=[ADAPTER])
    model.unload_lora()


def read_lora(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """PEFT's configuration and the tensors of a LoRA's file. KcacheError when it is damaged or lacks either."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            configuration = json.loads((file.metadata() or {})[_CONFIGURATION])
            names = file.keys()
            return configuration, {name: file.get_tensor(name) for name in names}
    except KeyError:
        raise KcacheError(f"{path} has no LoRA's configuration in its header; name a file that kcache wrote") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise KcacheError(
            f"{path} does not load (cut, damaged, or not what kcache wrote: {_first_line(error)}); take another"
            " checkpoint, or another copy"
        ) from error


def _fill(model: Any, path: Path, tensors: dict[str, Any]) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    have = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = {
        name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model, adapter_name=ADAPTER).items()
    }
    for name in sorted(have.keys() | wanted.keys()):
        if have.get(name) != wanted.get(name):
            raise KcacheError(
                f"{path} has {name} {_shape(have.get(name))} and {type(model).__name__} takes"
                f" {_shape(wanted.get(name))}; give the LoRA to the model that it was trained for, with the same"
                " --lora-targets"
            )
    set_peft_model_state_dict(model, tensors, adapter_name=ADAPTER)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not at all" if shape is None else "of " + "x".join(map(str, shape))


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0].rstrip(". ") or type(error).__name__
