"""`python -m bench readme`: write the tables of a results file into bench/README.md and the project's README."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.analyse.results import newest_results, read_results
from bench.analyse.tables import (
    BEGIN,
    END,
    SUMMARY_BEGIN,
    SUMMARY_END,
    headline_rows,
    markdown_table,
    replace_between,
    summary_rows,
)
from fastdps.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m bench readme`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="results (default: the newest of bench/results)")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="file of the summary (%(default)s)")
    parser.add_argument(
        "--table", type=Path, default=Path("bench/README.md"), help="file of the full table (%(default)s)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write both tables, or neither where one of the files has no place for its table."""
    path = arguments.json or newest_results()
    for option in ("readme", "table"):
        if not getattr(arguments, option).is_file():
            raise ConfigError(f"{getattr(arguments, option)} does not exist. Name an existing file with --{option}.")
    results = read_results(path)
    full = markdown_table(results, headline_rows(results))
    summary = markdown_table(results, summary_rows(results))
    files = {
        arguments.table: replace_between(arguments.table, BEGIN, END, full),
        arguments.readme: replace_between(arguments.readme, SUMMARY_BEGIN, SUMMARY_END, summary),
    }
    for file, content in files.items():
        file.write_bytes(content)
        print(f"{file}: table of {path}")
