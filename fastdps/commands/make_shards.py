"""`fastdps pack` (also `tools/make_shards.py`): pack images or judgements into shard sets."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from fastdps.commands.options import Parser, add_quiet, counted, examples, location, run_command
from fastdps.errors import ConfigError
from fastdps.packing.executor import Executor, LocalExecutor
from fastdps.packing.ledger import REJECTED_ROWS, REJECTS
from fastdps.packing.options import SAMPLES_PER_SHARD, SIZE, PackOptions, Share
from fastdps.packing.pack import PackProgress, PackResult, merge, pack
from fastdps.packing.sources.judged_rows import HOLDOUT_BY
from fastdps.packing.sources.registry import COUNT, SOURCES, open_source
from fastdps.packing.sources.source import Dataset
from fastdps.runtime.console import counter, print_result, quiet_mode
from fastdps.shards.format import Encoding, Manifest
from fastdps.shards.images import Fit
from fastdps.shards.storage import Location

#: Options that only some kinds of source take, and the setting of each.
_OPTIONS_OF_KINDS = {
    "source": "path",
    "download": "download",
    "count": "count",
    "by": "by",
    "holdout_by": "holdout_by",
    "component": "component",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps pack`."""
    parser.description = (
        "Pack images into shard sets, one for each split: OUT/train, OUT/val and so on. The same input and options "
        "give the same bytes, whatever the number of workers. An interrupted run resumes when the same command is run "
        "again."
    )
    parser.epilog = examples(
        "fastdps pack folder --source photos --out shards/photos --size 64 --holdout 0.2",
        "fastdps pack webdataset --source laion --out shards/laion --size 96 --encoding jpeg",
        "fastdps pack judgements --source judged.csv --by person --out shards/judged --holdout 0.3",
    )
    add = parser.add_argument
    add("kind", choices=list(SOURCES), help="kind of data to pack")
    add("--source", type=Path, metavar="PATH", help="directory of the data; for imagenet also one of the tars; for "
        "webdataset also a tar or a pattern such as 'laion/{000..099}.tar'; for triplets and judgements a file with "
        "ref, p0, p1, judge, and paths relative to the file")  # fmt: skip
    add("--out", required=True, type=location, metavar="DIR",
        help="directory of the shard sets, or a URL such as s3://BUCKET/NAME")  # fmt: skip
    add("--size", type=int, help=f"side of the square images in pixels (default {SIZE}; not with keep)")
    add(
        "--encoding", choices=get_args(Encoding), default="raw", help="raw loads fastest; keep leaves JPEGs as they are"
    )
    add(
        "--fit",
        choices=get_args(Fit),
        default="squash",
        help="squash to a square as the paper does, or crop the centre",
    )
    add("--splits", nargs="+", metavar="NAME", help="splits to pack (default: all; for stl10 and svhn: train and test)")
    add("--holdout", type=float, default=0.0, metavar="FRACTION", help="fraction of train that becomes OUT/val")
    add("--holdout-by", choices=HOLDOUT_BY,
        help="for judgements: what --holdout divides (default image: no image is in both)")  # fmt: skip
    add("--by", metavar="COLUMN", help="for judgements: the column that says who judged")
    add("--component", metavar="EXT",
        help="for webdataset: the extension of the image in samples that have several, such as jpg")  # fmt: skip
    add("--samples-per-shard", type=int, default=SAMPLES_PER_SHARD, metavar="N", help=f"default {SAMPLES_PER_SHARD}")
    add("--seed", type=int, default=0, help="seed of the order, and of dead leaves")
    add("--max-rejects", type=float, default=0.01, metavar="FRACTION",
        help="fail if more than this fraction of the items cannot be packed (default 0.01)")  # fmt: skip
    add("--count", type=int, metavar="N", help=f"for deadleaves: number of images (default {COUNT})")
    add("--download", action="store_true", default=None, help="for stl10 and svhn: download missing files to --source")
    add("--overwrite", action="store_true", help="replace the existing sets in OUT")
    _add_workers(parser)
    add_quiet(parser)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    """Add the options that divide the work."""
    add = parser.add_argument
    add("--workers", type=int, metavar="N",
        help="processes (default: one per core); with ray, shards at a time (default: two per core)")  # fmt: skip
    add("--executor", choices=("local", "ray"), default="local",
        help="where to pack: in local processes, or on a Ray cluster (`pip install 'fastdps[ray]'`)")  # fmt: skip
    add(
        "--ray-address",
        metavar="ADDRESS",
        help="address of the cluster (default: RAY_ADDRESS, or a cluster on this machine)",
    )
    divided = parser.add_mutually_exclusive_group()
    divided.add_argument("--part", metavar="I/N", help="pack every N-th shard, starting with the I-th, into the same "
        "OUT as the other parts; I counts from 0, as in a job array")  # fmt: skip
    divided.add_argument("--merge", action="store_true", help="complete the sets once all parts are packed")


def make_shards(argv: Sequence[str] | None = None) -> int:
    """Run `tools/make_shards.py` and return the exit status: 1 after an error, 130 after Ctrl-C, 143 after SIGTERM."""
    parser = Parser(prog="make_shards.py")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    with quiet_mode(arguments.quiet):
        return run_command(lambda: run_pack(arguments), can_resume=True)


def run_pack(arguments: argparse.Namespace) -> None:
    """Run `fastdps pack`."""
    _check(arguments)
    options = PackOptions(
        encoding=arguments.encoding,
        size=None if arguments.encoding == "keep" else SIZE if arguments.size is None else arguments.size,
        fit=arguments.fit,
        samples_per_shard=arguments.samples_per_shard,
        holdout=arguments.holdout,
        seed=arguments.seed,
        max_rejects=arguments.max_rejects,
    )
    splits = arguments.splits or SOURCES[arguments.kind].splits
    if arguments.merge:
        print_summary(merge(_source(arguments), arguments.out, options, splits=splits))
        return
    share = None if arguments.part is None else Share.parse(arguments.part)
    if share and arguments.overwrite:
        raise ConfigError(
            "--part cannot go with --overwrite: each part would remove what the others have packed. "
            "Remove the directory, or choose another --out."
        )
    if arguments.executor == "ray" and arguments.source is not None:
        arguments.source = arguments.source.absolute()  # workers of the cluster may be in other directories
    with counter("packing", unit="images") as count, _executor(arguments) as executor:
        result = pack(
            _source(arguments),
            arguments.out,
            options,
            splits=splits,
            workers=executor,
            share=share,
            overwrite=arguments.overwrite,
            progress=PackProgress(count.start, count.advance),
        )
    print_summary(result)


def _check(arguments: argparse.Namespace) -> None:
    """Raise `ConfigError` for options that cannot be combined."""
    settings = SOURCES[arguments.kind].settings
    for option, setting in _OPTIONS_OF_KINDS.items():
        if getattr(arguments, option) is not None and setting not in settings:
            raise ConfigError(f"{arguments.kind} takes no --{option.replace('_', '-')}.")
    if "path" in settings and arguments.source is None:
        raise ConfigError(f"{arguments.kind} needs --source PATH.")
    if arguments.holdout_by is not None and not arguments.holdout:
        raise ConfigError("--holdout-by says what --holdout divides; give --holdout FRACTION, too.")
    if arguments.encoding == "keep" and arguments.size is not None:
        raise ConfigError("--encoding keep leaves images as they are; omit --size here, and give it when loading.")
    if arguments.workers is not None and arguments.workers < 1:
        raise ConfigError(f"--workers must be at least 1, not {arguments.workers}.")
    if arguments.ray_address is not None and arguments.executor != "ray":
        raise ConfigError("--ray-address is the address of the cluster for --executor ray.")
    if arguments.merge and arguments.overwrite:
        raise ConfigError("--merge keeps what the parts have packed, and --overwrite would remove it.")


def _source(arguments: argparse.Namespace) -> Dataset:
    """Return the source of the data that the options describe."""
    given = {"path": arguments.source, "download": bool(arguments.download), "count": arguments.count}
    given |= {"size": arguments.size or SIZE, "seed": arguments.seed}
    given |= {"component": arguments.component, "by": arguments.by, "holdout_by": arguments.holdout_by or HOLDOUT_BY[0]}
    taken = SOURCES[arguments.kind].settings
    return open_source(arguments.kind, **{name: value for name, value in given.items() if name in taken})


@contextmanager
def _executor(arguments: argparse.Namespace) -> Iterator[Executor]:
    """Yield the executor that the options describe."""
    if arguments.executor == "local":
        yield LocalExecutor(arguments.workers)
        return
    from fastdps.packing.on_ray import RayExecutor

    with RayExecutor(arguments.ray_address, arguments.workers) as executor:
        yield executor


def _print_rows(location: Location, manifest: Manifest) -> None:
    """Print what became of the rows of a judgement file."""
    found = {**manifest.source, **manifest.source["result"]}
    by = f" of {found['judges']:,} judges" if found["judges"] else ""
    print_result(f"{location}: {found['judgements']:,} judgements{by}, from a file of {found['rows']:,} rows")
    _print_left_out(manifest)
    if found["unjudged_lines"]:
        print_result(f"{found['unjudged_lines']:,} lines have no answer")
    if rejected := found["rejected_rows"] + found["lost_rows"]:
        lost = f", {found['lost_rows']:,} of them with an image" if found["lost_rows"] else ""
        print_result(f"{rejected:,} rows were rejected{lost}: see {location / REJECTED_ROWS}")


def _print_left_out(manifest: Manifest) -> None:
    """Print how many rows a holdout left out."""
    if rows := manifest.source.get("left_out_rows"):
        print_result(f"{rows:,} rows have images of both splits and are in neither")


def print_summary(result: PackResult) -> None:
    """Print the location and size of each set, the rejects, and what remains to be done."""
    for split, manifest in result.manifests.items():
        size_MiB = sum(shard.bytes for shard in manifest.shards) / 2**20
        samples, shards = counted(manifest.samples, "sample"), counted(len(manifest.shards), "shard")
        print_result(f"{result.out / split}: {samples} in {shards}, {size_MiB:,.1f} MiB")
        if manifest.kind == "judgements":
            _print_rows(result.out / split, manifest)
        elif "holdout_by" in manifest.source:
            print_result(f"held out by {manifest.source['holdout_by']}: no image is in both splits")
            _print_left_out(manifest)
        if rejects := result.rejects[split]:
            were = "was" if len(rejects) == 1 else "were"
            print_result(f"{counted(len(rejects), 'item')} {were} rejected: see {result.out / split / REJECTS}")
    for split, missing in result.missing.items():
        are = "is" if len(missing) == 1 else "are"
        left = f"{counted(len(missing), 'shard')} {are} left to other parts" if missing else "all shards are packed"
        print_result(f"{result.out / split}: this part is done, {left}")
    if result.missing:
        when = "once all parts are done" if any(result.missing.values()) else "now"
        print_result(f"Run the same command with --merge instead of --part {when}.")
