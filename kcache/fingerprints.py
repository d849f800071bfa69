"""sha256 of weight files, remembered by path, size and time of change so that 5 GB are read once."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kcache.shards import durable
from kcache.shards.records import digest

_VOLATILE = ("_name_or_path", "_commit_hash", "transformers_version", "_diffusers_version", "torch_dtype", "dtype")
"""Keys of a ``config.json`` that do not shape what a model computes."""


def file_sha256(path: Path) -> str:
    """sha256 (hex) of one file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(files: Sequence[Path]) -> str:
    """sha256 of one weights file, or the digest of the sha256 of several in order."""
    hashes = _remembered([path.resolve() for path in files])
    return hashes[0] if len(hashes) == 1 else digest(hashes)


def config_digest(config: dict[str, Any]) -> str:
    """Digest of a model's configuration without what only says where and by whom it was saved."""
    return digest({key: value for key, value in config.items() if key not in _VOLATILE})


def _remembered(paths: list[Path]) -> list[str]:
    memory_file = _memory_file()
    memory = _load(memory_file)
    hashes, learned = [], False
    for path in paths:
        stat = path.stat()
        key = f"{path}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in memory:
            memory[key], learned = file_sha256(path), True
        hashes.append(memory[key])
    if learned:
        _store(memory_file, memory)
    return hashes


def _memory_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kcache" / "weights.json"


def _load(path: Path) -> dict[str, str]:
    try:
        return {str(key): str(value) for key, value in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _store(path: Path, memory: dict[str, str]) -> None:
    try:
        durable.replace(path, json.dumps(memory, indent=1).encode())
    except OSError:
        pass  # A home that cannot be written to: the hashes are computed again next time.
