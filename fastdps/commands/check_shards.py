"""The command `tools/check_shards.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fastdps.commands.options import Parser, add_quiet, location, run_command
from fastdps.errors import ShardError
from fastdps.packing.verify import check_set, find_sets
from fastdps.runtime.console import print_result, quiet_mode
from fastdps.shards.storage import Location


def check_shards_parser() -> argparse.ArgumentParser:
    """The options of `check_shards.py`."""
    parser = Parser(
        prog="check_shards.py",
        description="Check all shard sets in a directory and say what is wrong: manifest, sizes, indexes, checksums, "
        "names and order of the members, and that every image decodes.",
    )
    parser.add_argument(
        "directory", type=location, help="or a URL such as s3://BUCKET/NAME; shards are fetched one after another"
    )
    parser.add_argument("--quick", action="store_true", help="manifest, sizes and indexes only; reads no shard")
    add_quiet(parser)
    return parser


def check_shards(argv: Sequence[str] | None = None) -> int:
    """Entry of `tools/check_shards.py`; returns the exit status, not 0 if anything is wrong."""
    arguments = check_shards_parser().parse_args(argv)
    with quiet_mode(arguments.quiet):
        return run_command(lambda: _check_shards(arguments.directory, quick=arguments.quick))


def _check_shards(directory: Location, *, quick: bool) -> None:
    found = 0
    for shard_set in find_sets(directory):
        problems = 0
        for problem in check_set(shard_set, quick=quick, progress=True):
            print(problem)  # an error, which --quiet shows
            problems += 1
        print_result(f"{shard_set}: " + (f"{problems} problem{'s' * (problems > 1)}" if problems else "sound"))
        found += problems
    if found:
        raise ShardError(
            f"{found} problem{'s' * (found > 1)} in {directory}. Restore the files, or pack again with --overwrite."
        )
