"""`python -m bench plan`: what N devices on M nodes would do, what would limit them, and what to change."""

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

#: Channels of the comparison that is measured: all taps of AlexNet.
CHANNELS = 1152
OrNone = TypeVar("OrNone", float, None)
PAIRS = 15
#: The row of `remote` that says what a process brings.
STAGED = "brought from a web server"

#: What to change where a limit is the lowest.
ADVICE = {
    "storage": "pack smaller images (`--size 64`; JPEG instead of raw), or keep the shards on "
    "each node's own disk or in its memory.",
    "shared storage": "pack smaller images (`--size 64`; JPEG instead of raw), copy the shards to each node's disk "
    "before the first epoch, or give each node a cache for all of them (`--cache-size`), which epoch by epoch fills.",
    "staging": "more processes or cores a node bring more at a time, JPEG instead of raw is less to bring, and a cache "
    "for all shards (`--cache-size`) spares it from the second epoch on.",
    "decode": "pack raw 64 px, which needs no decoding, or give each device more cores.",
    "device": "as it should be. More {devices} go faster, and so would a faster {largest_part}, its largest part.",
    "all-reduce": "take more images a step (`--batch-size`), so that there are fewer of them, or a faster link.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench plan`."""
    parser.add_argument("--rates", type=Path, required=True, metavar="FILE", help="results of the bench on one device")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="devices in all, a process each")
    parser.add_argument("--nodes", type=int, default=1, metavar="M", help="machines they are spread over (default 1)")
    parser.add_argument(
        "--contexts", type=int, default=720, metavar="K", help="contexts that were measured: 1, 24, 720"
    )
    parser.add_argument("--data", default=RAW, metavar="ROW", help=f"row of `load` to train on (default {RAW!r})")
    parser.add_argument("--storage", type=float, metavar="MB/s", help="that each node reads (default: all in memory)")
    parser.add_argument(
        "--shared-storage", type=float, metavar="MB/s", help="that all nodes together read of one store (default: any)"
    )
    parser.add_argument(
        "--remote", action="store_true", help="shards are staged, at the rate that `remote` was measured to have"
    )
    parser.add_argument("--image-bytes", type=float, metavar="BYTES", help="of an image in the shards")
    parser.add_argument("--cores", type=int, metavar="N", help="of each node (default: as measured)")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images a step of all (default: measured x devices)"
    )
    parser.add_argument(
        "--channels", type=int, default=CHANNELS, metavar="C", help=f"of the heads (default {CHANNELS})"
    )
    parser.add_argument("--bandwidth", type=float, metavar="GB/s", help="of the slowest link between two processes")
    parser.add_argument("--latency", type=float, metavar="US", help="microseconds a message takes on it")


def run(arguments: argparse.Namespace) -> None:
    """Read, predict, show. Raises `ConfigError` where a row or an option is missing or does not fit."""
    results = read_results(arguments.rates)
    rates = rates_from(results, contexts=arguments.contexts, data=arguments.data)
    if arguments.remote:
        notes = find_row(results, "remote", STAGED)["notes"]
        rates = replace(rates, staged_bytes_per_s=notes["staged_MB_per_s"] * 1e6)
    image_bytes = arguments.image_bytes
    if image_bytes is None:
        by_bytes = arguments.storage is not None or arguments.shared_storage is not None or arguments.remote
        if by_bytes and arguments.data != RAW:
            raise ConfigError(f"--image-bytes is needed for the storage of {arguments.data!r}.")
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
            f"Measured: {what}: {format_number(measured)} images/s; the model says {format_number(predicted)} "
            f"({predicted / measured - 1:+.0%})."
        )


def _in(unit: float, option: float | None, otherwise: OrNone) -> float | OrNone:
    """An option in its unit, or what there is without it."""
    return otherwise if option is None else option * unit


def show(rates: Rates, cluster: Cluster, plan: Prediction) -> None:
    """The limits in order, the lowest marked, what the whole would do, and what to change."""
    from rich.console import Console
    from rich.table import Table

    what = f"processes that share {cluster.cores_per_node} cores a node" if rates.shared_cores else "devices"
    title = f"{cluster.devices} {what}; nodes: {cluster.nodes}; contexts: {rates.contexts}"
    table = Table(title=title, title_justify="left")
    for name in ("limit", "images/s", "share used"):
        table.add_column(name, justify="left" if name == "limit" else "right")
    for name, limit in sorted(plan.limits.items(), key=lambda item: item[1]):
        marked = f"[bold]{name}[/]" if name == plan.limit else name
        table.add_row(marked, format_number(limit), f"{plan.images_per_s / limit:.0%}")
    console = Console() if Console().is_terminal else Console(width=100)
    console.print(table)
    devices = "nodes or cores" if rates.shared_cores else "devices"
    advice = ADVICE[plan.limit].format(largest_part=rates.largest_part, devices=devices)
    lines = [
        f"The whole: {format_number(plan.images_per_s)} images/s, "
        f"{plan.images_per_s * PAIRS * rates.contexts:.3g} context-triplets/s, "
        f"{plan.speedup:.3g} times one {'process with all cores' if rates.shared_cores else 'device'}.",
        f"A step: {cluster.batch_images} images in {1e3 * plan.step_s:.3g} ms, of which {1e3 * plan.all_reduce_s:.3g} "
        f"ms to add up {plan.all_reduce_bytes / 2**20:.3g} MiB of gradients over "
        f"{cluster.bandwidth_bytes_per_s / 1e9:g} GB/s and {1e6 * cluster.latency_s:g} us a message.",
        f"Lowest limit: {plan.limit}: {advice}",
    ]
    if cluster.batch_images / cluster.devices < rates.batch_images:
        lines.append(
            f"Too good: rates are of {rates.batch_images} images a process and step, and here are "
            f"{cluster.batch_images / cluster.devices:g}; fewer are slower an image, on a GPU above all."
        )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
