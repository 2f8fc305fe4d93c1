"""`python -m bench staging`: simulate staging and print its tables in Markdown.

Tables: shards and bytes per node; training rate for streams and cache sizes; cost of shard sizes; shuffle quality.
"""

from __future__ import annotations

import argparse
import functools
import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bench.analyse.simulate_staging import (
    IMAGE_BYTES,
    NODES,
    PER_NODE,
    SHUFFLED_SHARDS,
    StoreModel,
    divide_shards,
    made_up,
    mix,
    simulate,
)
from fastdps.errors import ConfigError
from fastdps.loading.index_cache import KEPT_SAMPLES
from fastdps.loading.order import EpochOrder
from fastdps.shards.cache import STREAMS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m bench staging`."""
    service = StoreModel()
    parser.add_argument(
        "--images", type=int, default=100_000_000, metavar="N", help="images of the set (default 100 million)"
    )
    parser.add_argument("--shard-images", type=int, default=5000, metavar="N", help="images of a shard (default 5000)")
    parser.add_argument(
        "--rate", type=float, default=44_300, metavar="N", help="images/s of a device (default 44,300: docs/scaling.md)"
    )
    parser.add_argument("--batch-size", type=int, default=1024, metavar="N", help="images per step of each process")
    parser.add_argument(
        "--stream", type=float, default=service.stream_bytes_per_s / 1e6, metavar="MB/s", help="median rate of a stream"
    )
    parser.add_argument(
        "--latency", type=float, default=service.latency_s * 1e3, metavar="MS", help="median latency of a request"
    )
    parser.add_argument(
        "--failing", type=float, default=service.failing, metavar="SHARE", help="share of failing requests"
    )


def run(arguments: argparse.Namespace) -> None:
    """Simulate and print the tables. Raises `ConfigError` for values out of range."""
    if min(arguments.shard_images, arguments.batch_size) < 1 or not 0 <= arguments.failing < 1:
        raise ConfigError("--shard-images and --batch-size must be at least 1, and --failing in [0, 1).")
    if min(arguments.rate, arguments.stream, arguments.latency) <= 0:
        raise ConfigError("--rate, --stream and --latency must be above 0.")
    least = NODES[-1] * PER_NODE * arguments.batch_size
    if arguments.images < least:
        raise ConfigError(f"--images must be at least {least:,}: one step of all processes of {NODES[-1]} nodes.")
    service = StoreModel(arguments.latency / 1e3, stream_bytes_per_s=arguments.stream * 1e6, failing=arguments.failing)
    for table in (_divided, functools.partial(_simulated, service=service), _sizes, _mixed):
        print("\n".join(table(arguments)), end="\n\n", flush=True)


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    return [_row(head), "|" + "---:|" * len(head), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _divided(arguments: argparse.Namespace) -> list[str]:
    manifest = made_up(arguments.images, arguments.shard_images)
    need = arguments.rate * IMAGE_BYTES / 1e9

    def rows() -> Iterator[Sequence[str]]:
        for nodes in NODES:
            part = divide_shards(manifest, nodes)
            epoch_s = arguments.images / (nodes * PER_NODE * arguments.rate)
            yield (
                f"{nodes}",
                f"{part.shards_per_process:,.1f}",
                f"{part.bytes_per_node / 1e9:,.1f}",
                f"{part.amplification - 1:.2%}",
                f"{epoch_s:,.0f}",
                f"{PER_NODE * need:.2f}",
                f"{nodes * PER_NODE * need:,.0f}",
            )

    head = [
        "nodes",
        "shards a process",
        "GB a node and epoch",
        "brought twice",
        "epoch, s",
        "GB/s a node",
        "GB/s of all",
    ]
    return _table(head, rows())


def _simulated(arguments: argparse.Namespace, service: StoreModel) -> list[str]:
    manifest = made_up(arguments.images, arguments.shard_images)
    size = manifest.shards[0].bytes

    def rows() -> Iterator[Sequence[str]]:
        for streams in (STREAMS // 2, STREAMS, 2 * STREAMS):
            for held in (4, 8, 16):
                cells = [f"{streams}", f"{held}", f"{PER_NODE * held * size / 1e9:.1f}"]
                for nodes in NODES:
                    found = simulate(
                        manifest,
                        nodes * PER_NODE,
                        service,
                        quota=held * size,
                        streams=streams,
                        batch_size=arguments.batch_size,
                        device_images_per_s=arguments.rate,
                    )
                    share = found.images_per_s / (arguments.rate * nodes * PER_NODE)
                    cells.append(f"{share:.0%}, {found.first_batch_s:.1f} s")
                yield cells

    head = ["streams", "shards of cache a process", "GB a node", *(f"{nodes} nodes" for nodes in NODES)]
    return _table(head, rows())


def _sizes(arguments: argparse.Namespace) -> list[str]:
    def rows() -> Iterator[Sequence[str]]:
        for shard_images in (1000, arguments.shard_images, 20_000):
            manifest = made_up(arguments.images, shard_images)
            text = manifest.to_json()
            read_s, held = _loaded(text)
            sizes = [shard.samples for shard in manifest.shards]
            order = _memory_of(functools.partial(EpochOrder, sizes, seed=0, epoch=0, shuffle=True))
            yield (
                f"{shard_images:,}",
                f"{manifest.shards[0].bytes / 1e6:.1f}",
                f"{len(manifest.shards):,}",
                f"{len(text) / 1e6:.1f}",
                f"{read_s:.2f}",
                f"{held / 1e6:.1f}",
                f"{order / 1e6:.2f}",
            )

    head = ["images a shard", "MB a shard", "shards", "manifest, MB", "read in s", "in memory, MB", "order, MB"]
    return [
        *_table(head, rows()),
        "",
        f"A process keeps the indexes of at most {KEPT_SAMPLES:,} samples. Packing plans the order of all items in one "
        f"process, with {_planned_bytes():.0f} bytes per item in addition to the file names.",
    ]


def _loaded(text: str) -> tuple[float, int]:
    """Return the seconds of reading a manifest, and the bytes that it occupies."""
    import tempfile
    from pathlib import Path

    from fastdps.shards.format import MANIFEST, read_manifest

    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / MANIFEST).write_text(text, encoding="utf-8")
        started_s = time.perf_counter()
        read_manifest(directory)
        seconds = time.perf_counter() - started_s
        return seconds, _memory_of(lambda: read_manifest(directory))


def _planned_bytes() -> float:
    """Return the peak bytes per item of planning, for items that are numbers."""
    from fastdps.packing.options import PackOptions
    from fastdps.packing.plan import plan_sets
    from fastdps.packing.sources.deadleaves import DeadLeaves

    items = 1_000_000
    tracemalloc.start()
    try:
        plan_sets(DeadLeaves(items, 64, seed=0), PackOptions(encoding="raw", size=64))
        return tracemalloc.get_traced_memory()[1] / items
    finally:
        tracemalloc.stop()


def _memory_of(make: Callable[[], Any]) -> int:
    """Return the bytes of memory, of Python and NumPy, that the result of `make` occupies."""
    gc.collect()
    tracemalloc.start()
    try:
        result = make()
        gc.collect()
        nbytes = tracemalloc.get_traced_memory()[0]
        del result
        return nbytes
    finally:
        tracemalloc.stop()


def _mixed(arguments: argparse.Namespace) -> list[str]:
    def rows() -> Iterator[Sequence[str]]:
        for shard_images in (1000, arguments.shard_images, 20_000):
            labels = np.random.default_rng(1).standard_normal(SHUFFLED_SHARDS * arguments.shard_images)
            found = mix(shard_images, labels)
            in_order = mix(shard_images, np.sort(labels))
            yield (
                f"{shard_images:,}",
                f"{found.shards:.2f}",
                f"{found.variance_ratio:.3f}",
                f"{found.pairs_again:.2%}",
                f"{in_order.variance_ratio:.0f}",
            )

    head = [
        "images a shard",
        "shards in a batch of 256",
        "variance of batch means",
        "pairs again",
        "if packed in order",
    ]
    return _table(head, rows())
