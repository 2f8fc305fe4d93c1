"""`fastdps report`: the page of a run, or one that compares several."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from fastdps.commands.options import add_quiet
from fastdps.errors import ConfigError
from fastdps.report.comparison import render_comparison
from fastdps.report.page import render_run
from fastdps.report.reading import read_bench, read_run
from fastdps.runtime.console import print_result
from fastdps.runtime.files import write_text

COMPARISON = Path("comparison.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastdps report`."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directory; of several, a comparison")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"the page (default: RUN/report.html, of several {COMPARISON})"
    )
    parser.add_argument("--bench", type=Path, metavar="FILE", help="results of `python -m bench --json`, to show too")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    add_quiet(parser)


def run_report(arguments: argparse.Namespace) -> None:
    """Write the page, and say where it is."""
    records = [read_run(path) for path in dict.fromkeys(arguments.runs)]
    if len(records) == 1:
        out = arguments.out or records[0].run.report
        page = render_run(records[0], read_bench(arguments.bench) if arguments.bench else None)
    else:
        if arguments.bench:
            raise ConfigError("--bench goes with one run; a comparison has no room for it.")
        out = arguments.out or COMPARISON
        page = render_comparison(records)
    if out.is_dir():
        raise ConfigError(f"{out} is a directory. Name a file such as {out / 'report.html'} with --out.")
    write_text(out, page)
    print_result(str(out))
    if arguments.open:
        webbrowser.open(out.resolve().as_uri())
