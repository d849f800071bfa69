"""``OUT/run.json``: what a run was asked for, from which caches, by which versions, and when it was started."""

import secrets
import shlex
import sys
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kcache.doctor import installed_version
from kcache.shards import Snapshot

from .config import TrainConfig

SECRETS = ("hub_token",)
"""Options that are written nowhere."""

_PACKAGES = ("kcache", "torch", "diffusers", "transformers", "accelerate", "peft", "numpy")


def make_record(config: TrainConfig, run: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """The record of a run that starts now, or goes on from the one whose record is ``earlier``.

    ``id`` stays the same over all starts, so that a tracker goes on with its run. ``changed`` names the options that
    are not the default.
    """
    command = command_line(sys.argv, config.hub_token)
    start = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": run["step"], "command": command}
    return {
        "id": earlier.get("id") or secrets.token_hex(16),
        **{name: value for name, value in run.items() if name != "step"},
        "options": public_options(config),
        "changed": _changed(config),
        "versions": _versions(),
        "starts": [*earlier.get("starts", []), start],
    }


def cache_record(snapshot: Snapshot, **more: Any) -> dict[str, Any]:
    """One cache for ``run.json``; ``more`` such as ``share`` of a mix, or ``where`` and ``samples`` of a selection."""
    columns = {name: pinned.column for name, pinned in snapshot.pinned.items()}
    made = {
        name: {"fingerprint": column.fingerprint, "from": column.notes.get("from")} for name, column in columns.items()
    }
    cache = snapshot.cache
    root = str(cache.root.resolve()) if cache.storage.is_local else cache.name
    return {"root": root, "snapshot": snapshot.digest, "samples": len(snapshot), "columns": made, **more}


def public_options(config: TrainConfig) -> dict[str, Any]:
    """All options but the secrets."""
    return {name: value for name, value in asdict(config).items() if name not in SECRETS}


def flat_options(config: TrainConfig) -> dict[str, bool | int | float | str]:
    """The options as trackers take them: plain values only, those that were left open not at all."""
    options = public_options(config)
    return {name: _plain(value) for name, value in options.items() if value is not None and value != ()}


def command_line(argv: Sequence[str], secret: str | None) -> str | None:
    """The command as it was typed, without a secret; None where kcache was called from Python."""
    if Path(argv[0]).stem not in ("kcache", "__main__"):
        return None
    words = ["kcache", *argv[1:]]
    return shlex.join(word.replace(secret, "***") if secret else word for word in words)


def _plain(value: Any) -> bool | int | float | str:
    if isinstance(value, tuple):
        return ", ".join(" ".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value)
    return value if isinstance(value, bool | int | float) else str(value)


def _changed(config: TrainConfig) -> list[str]:
    """The options that are not what they are when left out; a secret not even by name."""
    return [
        field.name
        for field in fields(config)
        if field.name not in SECRETS and (field.default is MISSING or getattr(config, field.name) != field.default)
    ]


def _versions() -> dict[str, str]:
    found = {name: installed_version(name) for name in _PACKAGES}
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python} | {name: version for name, version in found.items() if version}
