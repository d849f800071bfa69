"""What this machine and installation can do, as a record and as text to paste into a bug report."""

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from kcache import __version__, picture_formats

# What CI runs, as pinned in constraints.txt; tests/test_doctor.py keeps the two equal.
TESTED = {
    "torch": "2.13.0",
    "diffusers": "0.42.1",
    "transformers": "5.23.0",
    "accelerate": "1.15.0",
    "peft": "0.21.2",
    "safetensors": "0.8.0",
    "huggingface_hub": "2.4.0",
    "datasets": "5.2.0",
    "webdataset": "1.0.2",
    "h5py": "3.16.0",
    "filelock": "4.2.11",
    "fsspec": "2026.9.0",
    "jinja2": "3.1.6",
    "numpy": "2.4.6",
    "pillow": "13.0.0",
    "psutil": "7.2.2",
    "click": "8.5.1",
    "tqdm": "4.70.1",
    "zlib-ng": "1.1.0",
}

# extra -> (the packages it brings, what they enable)
EXTRAS = {
    "heif": (["pillow-heif"], "pictures in HEIC, as phones take them"),
    "xformers": (["xformers"], "memory-efficient attention in the decoder's UNet"),
    "tensorboard": (["tensorboard"], "curves and pictures in TensorBoard: --report-to tensorboard"),
    "wandb": (["wandb"], "curves and pictures at Weights & Biases: --report-to wandb"),
    "comet": (["comet_ml"], "curves and pictures at Comet: --report-to comet_ml"),
    "bitsandbytes": (["bitsandbytes"], "AdamW with states of 8 bits (--optimizer adamw8bit)"),
    "prodigy": (["prodigyopt"], "Prodigy, which finds the learning rate (--optimizer prodigy)"),
    "schedulefree": (["schedulefree"], "AdamW that needs no schedule (--optimizer schedulefree)"),
    "s3": (["boto3"], "caches in an S3 bucket: kcache encode DATASET s3://BUCKET/CACHE"),
    "ray": (["ray"], "nothing yet; meant for encoding on a Ray cluster"),
}


@dataclass(frozen=True)
class Package:
    """One dependency: the installed version (None: missing) beside the version that CI runs."""

    name: str
    installed: str | None
    tested: str

    @property
    def remark(self) -> str:
        """'' for the tested version (a local build such as +cpu counts as it), else what differs."""
        if self.installed is None:
            return f"MISSING (tested: {self.tested})"
        return "" if self.installed.partition("+")[0] == self.tested else f"tested: {self.tested}"


@dataclass(frozen=True)
class Extra:
    """One optional extra: what it enables, and how to get it."""

    name: str
    enables: str
    present: bool
    get: str


@dataclass(frozen=True)
class Device:
    """One device that torch can use; memory in bytes, None where it is the machine's own."""

    name: str
    description: str
    memory: int | None
    capability: str
    bf16: str


@dataclass(frozen=True)
class Report:
    """All of it. ``problems`` are sentences on what will not work; without any, kcache should run here."""

    kcache: str
    python: str
    system: str
    cpu_cores: int
    ram: int | None
    cwd_free: int
    hub_cache: str
    hub_cache_free: int
    hub_offline: bool
    packages: list[Package]
    extras: list[Extra]
    pictures: dict[str, str | None]
    """For each optional format of pictures the command that brings it, or None where it can be read."""
    devices: list[Device]
    problems: list[str]


def examine() -> Report:
    """Look at the machine and the installation. Imports torch for the devices; asks nothing of the network."""
    packages = [Package(name, installed_version(name), tested) for name, tested in TESTED.items()]
    problems = [f"{p.name} is not installed; run 'pip install {p.name}'" for p in packages if not p.installed]
    try:
        devices = find_devices()
    except (ImportError, OSError, RuntimeError) as error:  # a missing package or shared library, a broken driver
        devices = []
        problems.append(f"torch does not start: {' '.join(str(error).split())}")
    hub_cache, hub_offline = find_hub()
    return Report(
        kcache=__version__,
        python=platform.python_version(),
        system=platform.platform(),
        cpu_cores=usable_cores(),
        ram=total_ram(),
        cwd_free=shutil.disk_usage(Path.cwd()).free,
        hub_cache=str(hub_cache),
        hub_cache_free=free_space(hub_cache),
        hub_offline=hub_offline,
        packages=packages,
        extras=find_extras(),
        pictures=find_pictures(),
        devices=devices,
        problems=problems,
    )


def installed_version(name: str) -> str | None:
    """The version that pip recorded, without importing the package; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_extras() -> list[Extra]:
    """Every extra, with whether all of its packages are installed."""
    return [
        Extra(name, enables, all(map(installed_version, needed)), f"pip install {' '.join(needed)}")
        for name, (needed, enables) in EXTRAS.items()
    ]


def find_pictures() -> dict[str, str | None]:
    """What is missing for each optional format of pictures; nothing where Pillow itself is (`packages` says so)."""
    try:
        have = picture_formats.readable()
    except ImportError:
        return {}
    return {name: None if name in have else get for name, get in picture_formats.OPTIONAL.items()}


def find_devices() -> list[Device]:
    """The devices that torch sees, the fastest kind first and the CPU last."""
    import torch

    devices = []
    for index in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(index)
        bf16 = "yes" if seen.major >= 8 else "slow: emulated, use fp16"  # Ampere and later compute in it
        devices.append(Device(f"cuda:{index}", seen.name, seen.total_memory, f"sm_{seen.major}{seen.minor}", bf16))
    if torch.backends.mps.is_available():
        devices.append(Device("mps", "Apple GPU", None, platform.mac_ver()[0], "macOS 14 and later"))
    instructions = torch.backends.cpu.get_cpu_capability()
    bf16 = "yes" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "slow: emulated, use fp32"
    devices.append(Device("cpu", platform.processor() or platform.machine(), None, instructions, bf16))
    return devices


def find_hub() -> tuple[Path, bool]:
    """The folder where downloaded checkpoints lie, and whether the hub is switched off (HF_HUB_OFFLINE=1)."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return Path.home() / ".cache" / "huggingface" / "hub", False
    return Path(constants.HF_HUB_CACHE), bool(constants.HF_HUB_OFFLINE)


def usable_cores() -> int:
    """The cores this process may run on, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_ram() -> int | None:
    """The machine's memory in bytes; None where the system does not say it in POSIX's way."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def free_space(folder: Path) -> int:
    """Free bytes on the disk where ``folder`` is, or would be made."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def render(report: Report) -> str:
    """The report as aligned plain text, a blank line between sections, the problems last."""
    machine = [
        ("kcache", report.kcache),
        ("python", report.python),
        ("system", report.system),
        ("cpu cores", str(report.cpu_cores)),
        ("memory", gib(report.ram)),
        ("free disk here", gib(report.cwd_free)),
        ("hub cache", f"{report.hub_cache} ({gib(report.hub_cache_free)} free)"),
        ("hub offline", "yes (HF_HUB_OFFLINE)" if report.hub_offline else "no"),
    ]
    packages = [(package.name, f"{package.installed or '-':<16} {package.remark}") for package in report.packages]
    devices = [(device.name, describe_device(device)) for device in report.devices]
    extras = [(extra.name, describe_extra(extra)) for extra in report.extras]
    pictures = [(picture_formats.NAMES.get(name, name), describe_format(get)) for name, get in report.pictures.items()]
    problems = "problems\n  " + "\n  ".join(report.problems or ["none found"])
    sections = [table(machine), table(packages), table(devices), table(pictures), table(extras), problems]
    return "\n\n".join(section for section in sections if section)


def describe_device(device: Device) -> str:
    """One line for a device."""
    memory = f", {gib(device.memory)}" if device.memory is not None else ""
    return f"{device.description}{memory}, {device.capability}, bf16: {device.bf16}"


def describe_extra(extra: Extra) -> str:
    """One line for an extra, with the command that gets it where it is absent."""
    return f"present  {extra.enables}" if extra.present else f"absent   {extra.enables}: {extra.get}"


def describe_format(get: str | None) -> str:
    """One line for an optional format of pictures, with the command that brings it where it is missing."""
    return f"cannot be read: {get}" if get else "can be read"


def table(rows: list[tuple[str, str]]) -> str:
    """Two aligned columns."""
    return "\n".join(f"{name:<16} {value}".rstrip() for name, value in rows)


def gib(size: int | None) -> str:
    """Bytes as GiB with one decimal."""
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"
