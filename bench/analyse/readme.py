"""`python -m bench readme`: the headline rows of a results file, between the markers of the project's README."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.analyse.results import newest_results, read_results
from bench.analyse.tables import write_readme
from fastdps.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench readme`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="results (default: the newest of bench/results)")
    parser.add_argument("--readme", type=Path, default=Path("README.md"))


def run(arguments: argparse.Namespace) -> None:
    """Read, check, write."""
    path = arguments.json or newest_results()
    if not arguments.readme.is_file():
        raise ConfigError(f"{arguments.readme} does not exist; name a README with --readme.")
    write_readme(read_results(path), arguments.readme)
    print(f"{arguments.readme}: table of {path}")
