"""`fastdps check` (also `tools/check_shards.py`): verify shard sets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fastdps.commands.options import Parser, add_quiet, examples, location, run_command
from fastdps.errors import ShardError
from fastdps.packing.verify import check_set, find_sets
from fastdps.runtime.console import print_result, quiet_mode
from fastdps.shards.judgements import read_names
from fastdps.shards.storage import Location

#: Characters of names that would break the lines of `--names`.
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps check`."""
    parser.description = (
        "Verify all shard sets in a directory and report each problem: manifest, sizes, indexes, checksums, names and "
        "order of the members, that every image decodes, the names of samples, and judgements."
    )
    parser.epilog = examples("fastdps check shards/photos", "fastdps check shards/photos/train --names")
    parser.add_argument(
        "directory",
        type=location,
        help="directory, or a URL such as s3://BUCKET/NAME, whose shards are fetched one after another",
    )
    parser.add_argument("--quick", action="store_true", help="manifest, sizes, indexes and tables only; reads no shard")
    parser.add_argument(
        "--names", action="store_true", help="print the id and the name in the source of each sample, and check nothing"
    )
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
    if arguments.names:
        _print_names(arguments.directory)
        return
    found = 0
    for shard_set in find_sets(arguments.directory):
        problems = 0
        for problem in check_set(shard_set, quick=arguments.quick, progress=True):
            if problem.is_note:
                print_result(str(problem))
                continue
            print(problem)  # an error, so --quiet prints it too
            problems += 1
        print_result(f"{shard_set}: " + (f"{problems} problem{'s' * (problems > 1)}" if problems else "sound"))
        found += problems
    if found:
        raise ShardError(
            f"{found} problem{'s' * (found > 1)} in {arguments.directory}. Restore the files, or pack again with "
            "--overwrite."
        )


def _print_names(location: Location) -> None:
    """Print a line for each sample of a set. Raises `ShardError` if the set has no names."""
    names = read_names(location)
    if not names:
        raise ShardError(
            f"{location} has no names of its samples: an earlier version of fastdps packed it. Pack it again with "
            "--overwrite; the shards keep their bytes."
        )
    for sample_id, name in names.items():
        print(f"{sample_id}\t{name.translate(_ESCAPES)}")
