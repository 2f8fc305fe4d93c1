"""`fastdps report`: write the page of a run or of a sweep, or a page that compares several runs."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from fastdps.commands.options import add_quiet, examples
from fastdps.runtime.console import print_result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps report`."""
    parser.epilog = examples(
        "fastdps report runs/photos --open",
        "fastdps report runs/one runs/other --out both.html",
        "fastdps report sweeps/backbones",
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="run directory; several give a comparison, and a sweep its page with those of all its cases",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="page to write (default: RUN/report.html; for several runs comparison.html)",
    )
    parser.add_argument(
        "--bench", type=Path, metavar="FILE", help="also show these results of `python -m bench --json`"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    add_quiet(parser)


def run_report(arguments: argparse.Namespace) -> None:
    """Run `fastdps report`."""
    from fastdps.report.write import report

    file = report(arguments.runs, arguments.out, bench=arguments.bench)
    print_result(str(file))
    if arguments.open:
        webbrowser.open(file.resolve().as_uri())
