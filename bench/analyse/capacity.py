"""`python -m bench plan`: predict the rate of N devices on M nodes, its limits, and what to change."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from bench.analyse.model import (
    BANDWIDTH_BYTES_PER_S,
    LATENCY_S,
    RAW,
    Cluster,
    Prediction,
    Rates,
    measured_cases,
    predict,
    rates_from,
)
from bench.analyse.results import find_row, read_results
from bench.analyse.tables import format_number
from fastdps.errors import ConfigError

#: Channels of the measured comparison: all taps of AlexNet.
CHANNELS = 1152
OrNone = TypeVar("OrNone", float, None)
PAIRS = 15
#: The row of `remote` with the staging rate of a process.
STAGED = "brought from a web server"

#: What to change, by the lowest limit.
ADVICE = {
    "storage": "pack smaller images (`--size 64`; JPEG instead of raw), or keep the shards on "
    "each node's own disk or in its memory.",
    "shared storage": "pack smaller images (`--size 64`; JPEG instead of raw), copy the shards to each node's "
    "disk before the first epoch, or give each node a cache for all of them (`--cache-size`), which fills during "
    "the epochs.",
    "staging": "use more processes or cores per node, pack JPEG instead of raw, or use a cache for all shards "
    "(`--cache-size`), which needs no staging from the second epoch on.",
    "decode": "pack raw 64 px, which needs no decoding, or give each device more cores.",
    "device": "nothing; this is the limit to have. More {devices} are faster, and so is a faster {largest_part}, its "
    "largest part.",
    "all-reduce": "use more images per step (`--batch-size`), so that there are fewer steps, or a faster link.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m bench plan`."""
    parser.add_argument("--rates", type=Path, required=True, metavar="FILE", help="results of the bench on one device")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="number of devices, one process each")
    parser.add_argument("--nodes", type=int, default=1, metavar="M", help="number of nodes (default 1)")
    parser.add_argument(
        "--contexts", type=int, default=720, metavar="K", help="number of contexts, as measured: 1, 24 or 720"
    )
    parser.add_argument("--data", default=RAW, metavar="ROW", help=f"row of `load` to train on (default {RAW!r})")
    parser.add_argument("--storage", type=float, metavar="MB/s", help="read rate of each node (default: all in memory)")
    parser.add_argument(
        "--shared-storage", type=float, metavar="MB/s", help="read rate of all nodes together (default: unlimited)"
    )
    parser.add_argument("--remote", action="store_true", help="stage shards, at the measured rate of `remote`")
    parser.add_argument("--image-bytes", type=float, metavar="BYTES", help="bytes of an image in the shards")
    parser.add_argument("--cores", type=int, metavar="N", help="cores of each node (default: as measured)")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images per step of all devices (default: measured x devices)"
    )
    parser.add_argument(
        "--channels", type=int, default=CHANNELS, metavar="C", help=f"channels of the heads (default {CHANNELS})"
    )
    parser.add_argument(
        "--bandwidth", type=float, metavar="GB/s", help="bandwidth of the slowest link between two processes"
    )
    parser.add_argument("--latency", type=float, metavar="US", help="latency of a message on it, in microseconds")


def run(arguments: argparse.Namespace) -> None:
    """Read results, predict and print. Raises `ConfigError` when a row or an option is missing or invalid."""
    results = read_results(arguments.rates)
    rates = rates_from(results, contexts=arguments.contexts, data=arguments.data)
    if arguments.remote:
        notes = find_row(results, "remote", STAGED)["notes"]
        rates = replace(rates, staged_bytes_per_s=notes["staged_MB_per_s"] * 1e6)
    image_bytes = arguments.image_bytes
    if image_bytes is None:
        by_bytes = arguments.storage is not None or arguments.shared_storage is not None or arguments.remote
        if by_bytes and arguments.data != RAW:
            raise ConfigError(f"--image-bytes is needed to predict storage limits of {arguments.data!r}.")
        image_bytes = find_row(results, "read", "whole shards of raw 64 px, in order")["notes"]["image_bytes"]
    device = results["settings"]["device"]
    cluster = Cluster(
        devices=arguments.gpus,
        nodes=arguments.nodes,
        batch_images=arguments.batch_size or rates.batch_images * arguments.gpus,
        image_bytes=image_bytes,
        cores_per_node=arguments.cores or rates.cores,
        bandwidth_bytes_per_s=_in(1e9, arguments.bandwidth, BANDWIDTH_BYTES_PER_S[device]),
        latency_s=_in(1e-6, arguments.latency, LATENCY_S[device]),
        storage_bytes_per_s=_in(1e6, arguments.storage, None),
        shared_storage_bytes_per_s=_in(1e6, arguments.shared_storage, None),
    )
    show(rates, cluster, predict(rates, cluster, arguments.channels))
    for what, measured, predicted in measured_cases(results, CHANNELS):
        print(
            f"Measured: {what}: {format_number(measured)} images/s; the model predicts {format_number(predicted)} "
            f"({predicted / measured - 1:+.0%})."
        )


def _in(unit: float, option: float | None, default: OrNone) -> float | OrNone:
    """Return an option in SI units, or the default if it is not given."""
    return default if option is None else option * unit


def show(rates: Rates, cluster: Cluster, prediction: Prediction) -> None:
    """Print the limits in order, the lowest highlighted, the predicted rate, and what to change."""
    from rich.console import Console
    from rich.table import Table

    what = f"processes that share {cluster.cores_per_node} cores a node" if rates.shared_cores else "devices"
    title = f"{cluster.devices} {what}; nodes: {cluster.nodes}; contexts: {rates.contexts}"
    table = Table(title=title, title_justify="left")
    for name in ("limit", "images/s", "share used"):
        table.add_column(name, justify="left" if name == "limit" else "right")
    for name, limit in sorted(prediction.limits.items(), key=lambda item: item[1]):
        marked = f"[bold]{name}[/]" if name == prediction.limit else name
        table.add_row(marked, format_number(limit), f"{prediction.images_per_s / limit:.0%}")
    console = Console() if Console().is_terminal else Console(width=100)
    console.print(table)
    devices = "nodes or cores" if rates.shared_cores else "devices"
    advice = ADVICE[prediction.limit].format(largest_part=rates.largest_part, devices=devices)
    lines = [
        f"Predicted: {format_number(prediction.images_per_s)} images/s, "
        f"{prediction.images_per_s * PAIRS * rates.contexts:.3g} context-triplets/s, "
        f"{prediction.speedup:.3g} times one {'process with all cores' if rates.shared_cores else 'device'}.",
        f"A step: {cluster.batch_images} images in {1e3 * prediction.step_s:.3g} ms, of which "
        f"{1e3 * prediction.all_reduce_s:.3g} ms for the all-reduce of "
        f"{prediction.all_reduce_bytes / 2**20:.3g} MiB of gradients over "
        f"{cluster.bandwidth_bytes_per_s / 1e9:g} GB/s and {1e6 * cluster.latency_s:g} us a message.",
        f"Lowest limit: {prediction.limit}: {advice}",
    ]
    if cluster.batch_images / cluster.devices < rates.batch_images:
        lines.append(
            f"Optimistic: the rates were measured with {rates.batch_images} images per process and step, and here are "
            f"{cluster.batch_images / cluster.devices:g}; smaller batches are slower per image, especially on a GPU."
        )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
