"""`fastdps check` (also `tools/check_shards.py`): verify shard sets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fastdps.commands.options import Parser, add_quiet, location, run_command
from fastdps.errors import ShardError
from fastdps.packing.verify import check_set, find_sets
from fastdps.runtime.console import print_result, quiet_mode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps check`."""
    parser.description = (
        "Verify all shard sets in a directory and report each problem: manifest, sizes, indexes, checksums, names and "
        "order of the members, and that every image decodes."
    )
    parser.add_argument(
        "directory",
        type=location,
        help="directory, or a URL such as s3://BUCKET/NAME, whose shards are fetched one after another",
    )
    parser.add_argument("--quick", action="store_true", help="manifest, sizes and indexes only; reads no shard")
    add_quiet(parser)


def check_shards(argv: Sequence[str] | None = None) -> int:
    """Run `tools/check_shards.py` and return the exit status, not 0 if there is any problem."""
    parser = Parser(prog="check_shards.py")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    with quiet_mode(arguments.quiet):
        return run_command(lambda: run_check(arguments))


def run_check(arguments: argparse.Namespace) -> None:
    """Run `fastdps check`. Raises `ShardError` if there is any problem."""
    found = 0
    for shard_set in find_sets(arguments.directory):
        problems = 0
        for problem in check_set(shard_set, quick=arguments.quick, progress=True):
            print(problem)  # an error, so --quiet prints it too
            problems += 1
        print_result(f"{shard_set}: " + (f"{problems} problem{'s' * (problems > 1)}" if problems else "sound"))
        found += problems
    if found:
        raise ShardError(
            f"{found} problem{'s' * (found > 1)} in {arguments.directory}. Restore the files, or pack again with "
            "--overwrite."
        )
