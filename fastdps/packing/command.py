"""The commands `tools/make_shards.py` and `tools/check_shards.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from fastdps.datasets.deadleaves import DeadLeaves
from fastdps.datasets.folder import Folder
from fastdps.datasets.source import Source
from fastdps.errors import ConfigError, FastDPSError, run_command
from fastdps.packing.executor import default_workers
from fastdps.packing.options import SAMPLES_PER_SHARD, SIZE, Fit, PackOptions
from fastdps.packing.pack import PackResult, pack
from fastdps.packing.verify import check_set, find_sets
from fastdps.report.live import counter
from fastdps.shards import Encoding

#: How each kind of source is made from the options.
SOURCES: dict[str, Callable[[argparse.Namespace], Source]] = {
    "folder": lambda a: Folder(_source_path(a)),
    "deadleaves": lambda a: DeadLeaves(a.count, a.size or SIZE, a.seed),
}


def _source_path(arguments: argparse.Namespace) -> Path:
    if arguments.source is None:
        raise ConfigError(f"{arguments.kind} needs --source PATH.")
    return Path(arguments.source)


def make_shards_parser() -> argparse.ArgumentParser:
    """The options of `make_shards.py`."""
    parser = argparse.ArgumentParser(
        prog="make_shards.py",
        description="Pack images into a shard set: OUT/train, and OUT/val with --holdout. The same input and options "
        "give the same bytes, whatever the number of workers; a run that was interrupted goes on where it stopped.",
    )
    parser.add_argument("kind", choices=SOURCES, help="what to pack")
    parser.add_argument("--source", help="where it is")
    parser.add_argument("--out", type=Path, required=True, help="directory of the shard set")
    parser.add_argument(
        "--size", type=int, help=f"side of the square images in pixels (default {SIZE}; none with keep)"
    )
    parser.add_argument(
        "--encoding", choices=get_args(Encoding), default="raw", help="raw is fastest to load; keep leaves JPEGs as is"
    )
    parser.add_argument(
        "--fit",
        choices=get_args(Fit),
        default="squash",
        help="squash to a square as the paper does, or crop the centre",
    )
    parser.add_argument("--holdout", type=float, default=0.0, metavar="FRACTION", help="part that becomes OUT/val")
    parser.add_argument("--samples-per-shard", type=int, default=SAMPLES_PER_SHARD, metavar="N")
    parser.add_argument(
        "--workers", type=int, default=default_workers(), metavar="N", help="processes (default: cores)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order, and of dead leaves")
    parser.add_argument(
        "--max-rejects", type=float, default=0.01, metavar="FRACTION", help="fail beyond this share (default 0.01)"
    )
    parser.add_argument("--count", type=int, default=1500, help="number of dead-leaves images (default 1500)")
    parser.add_argument("--overwrite", action="store_true", help="replace what OUT holds")
    return parser


def make_shards(argv: Sequence[str] | None = None) -> int:
    """Entry of `tools/make_shards.py`; returns the exit status."""
    arguments = make_shards_parser().parse_args(argv)
    return run_command(lambda: _make_shards(arguments))


def _make_shards(arguments: argparse.Namespace) -> None:
    keep = arguments.encoding == "keep"
    if keep and arguments.size is not None:
        raise ConfigError("--encoding keep leaves images as they are; leave --size away, and give it when loading.")
    if arguments.workers < 1:
        raise ConfigError(f"--workers must be at least 1, not {arguments.workers}.")
    options = PackOptions(
        encoding=arguments.encoding,
        size=None if keep else arguments.size or SIZE,
        fit=arguments.fit,
        samples_per_shard=arguments.samples_per_shard,
        holdout=arguments.holdout,
        seed=arguments.seed,
        max_rejects=arguments.max_rejects,
    )
    source = SOURCES[arguments.kind](arguments)
    print_result(pack_with_progress(source, arguments.out, options, arguments.workers, overwrite=arguments.overwrite))


def pack_with_progress(
    source: Source, out: Path, options: PackOptions, workers: int | None = None, *, overwrite: bool = False
) -> PackResult:
    """`pack` with live progress on the terminal."""
    with counter("packing", unit="images") as count:
        return pack(
            source,
            out,
            options,
            workers=workers,
            overwrite=overwrite,
            on_start=count.start,
            on_progress=count.advance,
        )


def print_result(result: PackResult) -> None:
    """Say what is where."""
    for split, manifest in result.manifests.items():
        size = sum(shard.bytes for shard in manifest.shards) / 2**20
        shards = len(manifest.shards)
        print(f"{result.out / split}: {manifest.samples:,} samples in {shards:,} shards, {size:,.1f} MiB")
    if result.rejects:
        print(f"{len(result.rejects)} items were rejected; see rejects.jsonl beside each manifest.")


def check_shards(argv: Sequence[str] | None = None) -> int:
    """Entry of `tools/check_shards.py`; returns the exit status, not 0 if anything is wrong."""
    parser = argparse.ArgumentParser(
        prog="check_shards.py", description="Check the shard sets in a directory, and say what is wrong with them."
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--quick", action="store_true", help="sizes and indexes only")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _check_shards(arguments.directory, quick=arguments.quick))


def _check_shards(directory: Path, *, quick: bool) -> None:
    found = 0
    for shard_set in find_sets(directory):
        problems = 0
        for problem in check_set(shard_set, quick=quick):
            print(problem)
            problems += 1
        print(f"{shard_set}: " + (f"{problems} problems" if problems else "sound"))
        found += problems
    if found:
        raise FastDPSError(f"{found} problems in {directory}. Restore the files, or pack again with --overwrite.")
