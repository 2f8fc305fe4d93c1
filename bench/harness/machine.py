"""What a result was measured on, and of which version of what."""

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
    """CPU, cores, memory, GPU, system, and how busy the machine was before."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.platform(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def cpu_model() -> str:
    """The name of the processor, which may be of several kinds, and the instructions that torch computes with there."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} with {torch.backends.cpu.get_cpu_capability()}"


def describe_versions() -> dict[str, str | None]:
    """Python and the packages that decide the speed; None for those that are not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def describe_commit() -> dict[str, Any] | None:
    """The commit of the working tree, and whether tracked files differ from it; None outside a git checkout."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return None if commit is None or changes is None else {"id": commit, "dirty": bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None
