"""What a figure was measured on (machine, load, versions of what took part), and the file that keeps both."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

DIGITS = 4
"""Of a figure in a file: more say nothing."""


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """``--json FILE``, which every benchmark has."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, versions and every figure to FILE")


def keep(options: argparse.Namespace, machine: dict[str, Any], figures: Any) -> None:
    """Write a run to the file of ``--json``, if one was given: what `describe` told when it began, options, figures."""
    if options.json is not None:
        settings = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
        told = {"machine": machine, "settings": settings, "figures": _rounded(figures)}
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def spread(values: list[float]) -> str:
    """Median, lowest and highest."""
    return f"{median(values):6.2f}x [{min(values):.2f}, {max(values):.2f}]"


def _rounded(value: Any) -> Any:
    """The same with `DIGITS` digits of each fraction; keys as JSON has them."""
    if isinstance(value, dict):
        return {str(key): _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def describe(*packages: str) -> dict[str, Any]:
    """JSON values that stand beside the figures of a run: enough to repeat it, and nothing that names a person."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", *_without_folders(sys.argv)]),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
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
