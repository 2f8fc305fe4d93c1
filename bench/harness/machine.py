"""The description of the machine and of the versions that a result was measured with."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fastdps.runtime.machine import cores

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = (
    "fastdps",
    "torch",
    "torchvision",
    "nvidia-dali-cuda130",
    "kornia",
    "accelerate",
    "webdataset",
    "numpy",
    "pillow",
    "lpips",
)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the CPU, cores, memory, GPU, system, and the load average before the run."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.platform(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def cpu_model() -> str:
    """Return the name of the processor (the first, if there are several kinds) and the instruction set torch uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} with {torch.backends.cpu.get_cpu_capability()}"


def describe_versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that determine the speed; None for a missing package."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def describe_commit() -> dict[str, Any] | None:
    """Return the commit of the working tree and whether tracked files are modified; None outside a git checkout."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return None if commit is None or changes is None else {"id": commit, "dirty": bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None
