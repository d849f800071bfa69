"""Finds the components of a Kandinsky checkpoint by subfolder, on the hub or in a folder, and loads them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from kcache.fingerprints import config_digest, weights_sha256
from kcache.lora_file import LORA_FILE
from kcache.progress import hush_libraries
from kcache.shards.errors import KcacheError
from kcache.shards.records import Record

PRIOR = "kandinsky-community/kandinsky-2-2-prior"
DECODER = "kandinsky-community/kandinsky-2-2-decoder"
SUBFOLDERS = {"prior": "prior", "decoder": "unet"}
"""Where each stage's component lies in a checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """A pipeline's folder, or its name on the hub with the revision and variant to take."""

    name_or_path: str
    revision: str | None = None
    variant: str | None = None
    cache_dir: str | None = None

    def component(self, subfolder: str) -> "Component":
        """One component, downloaded if need be. KcacheError when the checkpoint lacks it."""
        holder, folder = self._locate(subfolder)
        if not (folder / subfolder).is_dir():
            have = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir())) or "no folder at all"
            raise KcacheError(
                f"checkpoint {holder.name_or_path} has no '{subfolder}' (it has: {have});"
                " name a folder or hub id in the layout of kandinsky-community/kandinsky-2-2-prior or -decoder"
            )
        return Component(holder, subfolder, folder / subfolder)

    def has(self, subfolder: str) -> bool:
        """Whether the checkpoint has a component, downloaded if need be."""
        return (self._locate(subfolder)[1] / subfolder).is_dir()

    def config(self, subfolder: str) -> dict[str, Any] | None:
        """The configuration of one component, None where there is no such one; of a hub's, no weights are fetched."""
        root = Path(self.name_or_path)
        root = root if root.is_dir() else self._download(subfolder, ())
        component = Component(self, subfolder, root / subfolder)
        return component.config() if component.folder.is_dir() else None

    def base(self) -> "Checkpoint":
        """The whole checkpoint behind the OUT of a training run, which holds the trained component alone; else this."""
        trained_from = training_record(Path(self.name_or_path)).get("trained_from")
        return replace(self, name_or_path=str(trained_from)).base() if trained_from else self

    def _locate(self, subfolder: str) -> "tuple[Checkpoint, Path]":
        """The checkpoint that would hold a component, which may be the one behind this, and its folder."""
        folder = Path(self.name_or_path)
        _refuse_lora(folder, subfolder)
        if not (folder / subfolder).is_dir() and self.base() != self:
            return self.base()._locate(subfolder)
        wanted = f".{self.variant}" if self.variant else ""
        weights = [f"{subfolder}/*{wanted}.safetensors", f"{subfolder}/*{wanted}-?????-of-?????.safetensors"]
        return self, folder if folder.is_dir() else self._download(subfolder, weights)

    def _download(self, subfolder: str, weights: Sequence[str]) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError

        if "/" not in self.name_or_path or Path(self.name_or_path).is_absolute():
            raise KcacheError(
                f"checkpoint {self.name_or_path} does not exist; name a folder, or a hub id such as {PRIOR}"
            )
        hush_libraries()
        try:
            root = snapshot_download(
                self.name_or_path,
                revision=self.revision,
                cache_dir=self.cache_dir,
                allow_patterns=[f"{subfolder}/*.json", f"{subfolder}/*.txt", *weights],
                ignore_patterns=None if self.variant else [f"{subfolder}/*.fp16*.safetensors"],
            )
        except HFValidationError:
            raise KcacheError(f"checkpoint {self.name_or_path} is neither a folder nor a name on the hub") from None
        except Exception as error:  # The hub library raises a different class for each way of not being reachable.
            cause = str(error).split("\n")[0].rstrip(". ") or type(error).__name__
            raise KcacheError(
                f"checkpoint {self.name_or_path} is not a folder and could not be had from the hub ({cause});"
                " check the name and the connection, or give the folder of a downloaded checkpoint"
            ) from None
        return Path(root)


class Configuration(dict[str, Any]):
    """A component's configuration, which says what it lacks when it is asked for it."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        """The ``values`` that were read from ``path``."""
        super().__init__(values)
        self._path = path

    def __missing__(self, key: str) -> NoReturn:
        """KcacheError that names the file and the key."""
        raise KcacheError(f"{self._path} has no '{key}'; download the checkpoint again")


@dataclass(frozen=True)
class Component:
    """One component of a checkpoint, on this machine."""

    checkpoint: Checkpoint
    subfolder: str
    folder: Path

    def config(self, name: str = "config.json") -> dict[str, Any]:
        """The component's configuration."""
        path = self.folder / name
        if not path.is_file():
            raise KcacheError(
                f"checkpoint {self.checkpoint.name_or_path} lacks {self.subfolder}/{name}; download it again"
            )
        try:
            value = json.loads(path.read_bytes())
        except ValueError as error:
            raise KcacheError(f"{path} is not JSON ({error}); download the checkpoint again") from None
        if not isinstance(value, dict):
            raise KcacheError(f"{path} is not a JSON object; download the checkpoint again")
        return Configuration(path, value)

    def weight_files(self) -> list[Path]:
        """The safetensors files of the chosen variant, in order; KcacheError when there is none."""
        files = sorted(p for p in self.folder.glob("*.safetensors") if _variant(p) == self.checkpoint.variant)
        if not files:
            have = ", ".join(sorted(p.name for p in self.folder.iterdir())) or "nothing"
            variant = f" of variant '{self.checkpoint.variant}'" if self.checkpoint.variant else ""
            others = sorted({other for p in self.folder.glob("*.safetensors") if (other := _variant(p))})
            remedy = f"choose them with --variant {others[0]}" if others else "kcache loads no pickled weights"
            raise KcacheError(f"{self.folder} has no safetensors weights{variant} (it has: {have}); {remedy}")
        return files

    def identity(self) -> Record:
        """What fixes this component's outputs: the sha256 of its weights and the digest of its configuration."""
        return {"weights": weights_sha256(self.weight_files()), "config": config_digest(self.config())}

    def load(self, model_class: Any, dtype: Any) -> Any:
        """The model in evaluation mode, on the CPU, in ``dtype`` (a torch dtype)."""
        from safetensors import SafetensorError

        self.weight_files()
        hush_libraries()
        arguments = {"variant": self.checkpoint.variant, "use_safetensors": True, "dtype": dtype}
        try:
            model, loaded = model_class.from_pretrained(str(self.folder), output_loading_info=True, **arguments)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            cause = str(error).split("\n")[0].rstrip(". ")
            raise KcacheError(
                f"{self.folder} does not load as {model_class.__name__} ({cause}); download the checkpoint again"
            ) from error
        if missing := sorted(loaded["missing_keys"]):  # Both libraries fill them with random numbers and only warn.
            raise KcacheError(
                f"the weights in {self.folder} lack {len(missing):,} tensors of {model_class.__name__}, such as"
                f" {missing[0]}; download the checkpoint again"
            )
        return model.eval()


def _variant(path: Path) -> str | None:
    """``fp16`` of ``model.fp16.safetensors`` and ``model.fp16-00001-of-00002.safetensors``; None without a variant."""
    _, dot, rest = path.name.removesuffix(".safetensors").partition(".")
    return rest.split("-")[0] if dot else None


def _refuse_lora(folder: Path, subfolder: str) -> None:
    """KcacheError where ``subfolder`` was trained in ``folder`` as a LoRA: what that was trained from is not it."""
    if (folder / LORA_FILE).is_file() and not (folder / subfolder).is_dir():
        stage = training_record(folder).get("stage")
        if subfolder == SUBFOLDERS.get(str(stage)):
            raise KcacheError(
                f"{folder} holds a LoRA of the {stage} and not the whole; merge it with 'kcache export {folder} --fuse'"
                f" and name {folder / 'fused'}"
            )


def training_record(folder: Path) -> dict[str, Any]:
    """What ``kcache train`` noted about the run whose OUT is ``folder``, or nothing."""
    path = folder / "training.json"
    try:
        return dict(json.loads(path.read_bytes())) if path.is_file() else {}
    except ValueError as error:
        raise KcacheError(f"{path} is not JSON ({error}); name a folder that 'kcache train' finished") from None
