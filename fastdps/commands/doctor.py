"""`fastdps doctor`: check whether this machine can train, and advise on problems. Downloads nothing."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from fastdps.commands.checks import Check, print_checks
from fastdps.commands.options import examples
from fastdps.errors import ConfigError, FastDPSError
from fastdps.runtime.console import track
from fastdps.runtime.machine import cores, memory_bytes
from fastdps.runtime.signals import exit_on_signal

PACKAGES = (
    "fastdps",
    "torch",
    "torchvision",
    "kornia",
    "accelerate",
    "webdataset",
    "safetensors",
    "simplejpeg",
    "numpy",
)
DALI = "nvidia-dali-cuda130"
#: What the extras of the package are for.
EXTRAS = {
    "remote": "shard sets at URLs: s3://, gs://, http(s)://",
    "export": "files for lpips, onnxruntime and torch.export",
    "hub": "metrics on the Hugging Face hub",
    "ray": "packing on a Ray cluster",
    "timm": "backbones timm/NAME",
    "torchmetrics": "a Metric for torchmetrics",
    "bench": "charts of the benchmark",
}
#: Amount that is written and read to measure the speed of a disk, and the size of one write.
PROBE_MIB, PIECE_MIB = 64, 4
#: Size of a raw 64 px image, and the rate at which one GPU consumes them, which a disk should sustain.
IMAGE_KIB, SLOW_IMAGES_PER_S = 12, 10_000
#: Memory and disk space below which a machine is noted as small.
LITTLE_MEMORY_GIB, LITTLE_SPACE_GIB = 4, 1
#: Environment variables that launchers set.
LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID")


def check_versions() -> list[Check]:
    """Check Python and the packages that training needs."""
    found = [Check("python", "ok", f"{platform.python_version()}, {platform.platform()}")]
    for package in PACKAGES:
        try:
            found.append(Check(package, "ok", version(package)))
        except PackageNotFoundError:
            found.append(Check(package, "bad", "not installed", "Install missing packages: pip install fastdps"))
    return found


def check_extras() -> list[Check]:
    """Check the packages of optional features; they are listed by the installed package itself."""
    checks = []
    found = [Requirement(text) for text in requires("fastdps") or ()]
    for extra, purpose in EXTRAS.items():
        names = [one.name for one in found if one.marker and _belongs(one, extra)]
        missing = [name for name in names if not _is_installed(name)]
        name = f"fastdps[{extra}]"
        if missing:
            text = f"{purpose}: without {', '.join(missing)}"
            checks.append(Check(name, "note", text, f"If you need it: pip install 'fastdps[{extra}]'"))
        else:
            checks.append(Check(name, "ok", purpose))
    return checks


def _belongs(requirement: Requirement, extra: str) -> bool:
    """Return whether a requirement is of an extra, and not of the package itself."""
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def check_devices() -> list[Check]:
    """Check the GPUs that torch finds."""
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        text = "; ".join(f"{device.name}, {device.total_memory / 2**30:.0f} GiB" for device in devices)
        advice = ""
        if len(devices) > 1:
            advice = f"To use all: accelerate launch --multi_gpu --num_processes {len(devices)} -m fastdps.train ..."
        return [Check("devices", "ok", text, advice)]
    if shutil.which("nvidia-smi"):
        advice = "A driver is installed: check `nvidia-smi`, CUDA_VISIBLE_DEVICES and the CUDA version of this torch."
        return [Check("devices", "note", f"torch {torch.__version__} finds no CUDA device", advice)]
    return [Check("devices", "ok", "no GPU: everything runs on the CPU, with the same results")]


def check_dali() -> list[Check]:
    """Check that DALI is installed and can be loaded."""
    try:
        installed = version(DALI)
    except PackageNotFoundError:
        advice = f"The portable loader is used instead. To install DALI on Linux: pip install {DALI}"
        return [Check("DALI", "note", "not installed", advice)]
    try:
        with exit_on_signal():
            importlib.import_module("fastdps.loading.dali")
    except (ImportError, OSError) as error:
        advice = f"Pass --loader portable, or reinstall DALI: pip install --force-reinstall {DALI}"
        return [Check("DALI", "note", f"{installed} cannot be loaded: {error}", advice)]
    return [Check("DALI", "ok", installed)]


def check_weights() -> list[Check]:
    """Check the pretrained weights that are stored on this machine."""
    from fastdps.metric.weights import DIGESTS, VARIABLE, cache_dir

    checks = []
    given = os.environ.get(VARIABLE)
    if given and not Path(given).is_dir():
        checks.append(Check(f"${VARIABLE}", "note", f"{given} is not a directory", "Correct or unset the variable."))
    try:
        cache = cache_dir()
    except ConfigError as error:
        cache = None
        checks.append(Check("cache of weights", "note", "not available", str(error)))
    for backbone, digest in DIGESTS.items():
        places = [Path(place) for place in (given, cache) if place]
        files = [file for place in places if (file := place / f"{backbone}_features.safetensors").is_file()]
        if files:
            checks.append(_check_file(backbone, files[0], digest))
        else:
            looked = " and ".join(map(str, places)) or "any place"
            advice = (
                f"The first training downloads them. Without a network, put {backbone}_features.safetensors into one "
                f"of these directories, or set {VARIABLE} to its directory."
            )
            checks.append(Check(f"weights of {backbone}", "note", f"not in {looked}", advice))
    return checks


def _check_file(backbone: str, path: Path, digest: str) -> Check:
    """Check the file from which training would load the weights."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from fastdps.metric.weights import tensors_sha256

    name = f"weights of {backbone}"
    try:
        state = {key: value for key, value in load_file(path).items() if key.startswith("features.")}
    except (OSError, SafetensorError) as error:
        return Check(name, "bad", f"{path} cannot be read: {error}", "Replace or remove it.")
    if tensors_sha256(state) != digest:
        return Check(name, "bad", f"{path} does not hold torchvision's ImageNet weights", "Replace or remove it.")
    return Check(name, "ok", str(path))


def check_cores() -> list[Check]:
    """Check the cores that this process can use, torch's threads, and the memory."""
    import torch

    usable, threads = cores(), torch.get_num_threads()
    text = f"{usable} of {os.cpu_count()} cores usable by this process, {threads} torch threads"
    checks = [Check("cores", "ok", text)]
    if threads < usable and "OMP_NUM_THREADS" in os.environ:
        advice = f"If only one process runs, unset OMP_NUM_THREADS (now {os.environ['OMP_NUM_THREADS']})."
        checks = [Check("cores", "note", text, advice)]
    elif threads > usable:
        checks = [Check("cores", "note", text, f"export OMP_NUM_THREADS={usable}")]
    if (memory := memory_bytes()) is not None:
        memory_gib = memory / 2**30
        little = memory_gib < LITTLE_MEMORY_GIB
        advice = "Train with a smaller --batch-size, or with --accumulate 4." if little else ""
        checks.append(Check("memory", "note" if little else "ok", f"{memory_gib:.1f} GiB", advice))
    return checks


def check_launch(environment: Mapping[str, str] = os.environ) -> list[Check]:
    """Check the variables that a launcher sets; without a launcher they must not be set."""
    found = {name: environment[name] for name in LAUNCH_VARIABLES if name in environment}
    if not found:
        launcher = "accelerate launch --multi_gpu --num_processes N -m fastdps.train ..."
        return [Check("launch", "ok", f"one process; for more: {launcher}")]
    text = ", ".join(f"{name}={value}" for name, value in found.items())
    processes = found.get("WORLD_SIZE", "1")
    if processes != "1" and not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= found.keys():
        advice = "fastdps train would not start. Unset WORLD_SIZE, or start it with accelerate launch."
        return [Check("launch", "bad", text, advice)]
    return [Check("launch", "ok", text)]


def check_disk(directory: Path) -> list[Check]:
    """Check the free space and the speed of the disk of a directory."""
    name = f"disk of {directory}"
    try:
        free_gib = shutil.disk_usage(directory).free / 2**30
        if free_gib * 1024 < 2 * PROBE_MIB:
            advice = "Free some space, or name another directory with --path."
            return [Check(name, "bad", f"{1024 * free_gib:.0f} MiB free", advice)]
        write_mib_per_s, read_mib_per_s = measure_disk(directory)
    except OSError as error:
        advice = "Training needs a directory that it can write to: name another one with --path."
        return [Check(name, "bad", f"cannot be written: {error.strerror or error}", advice)]
    images_per_s = read_mib_per_s * 1024 / IMAGE_KIB
    text = (
        f"writes {write_mib_per_s:,.0f} MiB/s, reads {read_mib_per_s:,.0f} MiB/s (raw 64 px: {images_per_s:,.0f} "
        f"images/s), {free_gib:,.0f} GiB free"
    )
    if images_per_s < SLOW_IMAGES_PER_S:
        return [Check(name, "note", text, "Put the shards on a faster, local disk, or pack them as JPEGs.")]
    if free_gib < LITTLE_SPACE_GIB:
        return [Check(name, "note", text, "There is little space for shards and checkpoints.")]
    return [Check(name, "ok", text)]


def measure_disk(directory: Path) -> tuple[float, float]:
    """Measure the speed of a disk with a temporary file.

    Before reading, the file is dropped from the system's page cache where the system offers that.

    Args:
        directory: A directory on the disk.

    Returns:
        MiB/s of writing and of reading.

    Raises:
        OSError: The directory cannot be written to.
    """
    piece = os.urandom(PIECE_MIB * 2**20)
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".fastdps-doctor-", buffering=0) as file:
        started_s = time.perf_counter()
        for _ in range(PROBE_MIB // PIECE_MIB):
            file.write(piece)
        os.fsync(file.fileno())
        written_s = time.perf_counter() - started_s
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        started_s = time.perf_counter()
        while file.read(len(piece)):
            pass
        read_s = time.perf_counter() - started_s
    return PROBE_MIB / written_s, PROBE_MIB / read_s


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps doctor`."""
    parser.epilog = examples("fastdps doctor", "fastdps doctor --path /scratch --json")
    parser.add_argument(
        "--path",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="directory for shards or runs (default: the working directory)",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run_doctor(arguments: argparse.Namespace) -> None:
    """Run `fastdps doctor`. Raises `FastDPSError`, for an exit status of 1, if training would fail."""
    with exit_on_signal():  # not during the checks: libraries turn an interrupted import into errors
        importlib.import_module("torch")
    checkers: list[Callable[[], list[Check]]] = [
        check_versions,
        check_devices,
        check_dali,
        check_extras,
        check_weights,
        check_cores,
        check_launch,
        lambda: check_disk(arguments.path),
    ]
    progress = track(checkers, total=len(checkers), what="checking", unit="", enabled=not arguments.json)
    checks = [check for checker in progress for check in checker()]
    if arguments.json:
        print(json.dumps([asdict(check) for check in checks], indent=1, ensure_ascii=False))
    else:
        print_checks(checks)
    if bad := [check.name for check in checks if check.state == "bad"]:
        raise FastDPSError(f"training would fail here: {', '.join(bad)}.")
