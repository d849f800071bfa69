"""What a figure was measured on: the machine, how busy it was, and the versions of what took part."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil


def describe(*packages: str) -> dict[str, Any]:
    """JSON values that stand beside the figures of a run: enough to repeat it, and nothing that names a person."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", *_without_folders(sys.argv)]),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "load": [round(load, 1) for load in psutil.getloadavg()],
        "system": platform.system(),
        "versions": {name: _version(name) for name in ("python", "kcache", "torch", "numpy", *packages)},
    }


def _without_folders(line: Sequence[str]) -> list[str]:
    """A command line whose files are named without the folders that only one machine has."""
    return [Path(word).name if Path(word).is_absolute() else word for word in line]


def _version(name: str) -> str:
    if name == "python":
        return platform.python_version()
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.machine()
    return platform.processor() or platform.machine()
