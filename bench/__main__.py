"""`python -m bench`: measure stages, and put results into the README."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastdps.errors import ConfigError, run_command

#: (rounds, seconds of a sample, images of the 64 px sets)
FULL = (5, 0.4, 20_000)
QUICK = (3, 0.1, 2_000)
SHARDS = Path("shards/bench")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["readme"]:
        arguments = readme_parser().parse_args(argv[1:])
        return run_command(lambda: run_readme(arguments))
    arguments = measure_parser().parse_args(argv)
    return run_command(lambda: run_measure(arguments))


def measure_parser() -> argparse.ArgumentParser:
    """The options of measuring."""
    from bench.stages import STAGES

    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the images per second of each stage, and what share of the machine's limit that is.",
        epilog="Stages:\n"
        + "\n".join(f"  {name:10} {what}" for name, what in STAGES.items())
        + "\n\n`python -m bench readme [--json FILE]` puts results into the README.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="what to measure (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to a file")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter samples, fewer variants")
    parser.add_argument("--images", type=int, metavar="N", help=f"of the 64 px sets (default {FULL[2]:,})")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="by default the GPU if there is one")
    parser.add_argument("--shards", type=Path, default=SHARDS, help=f"where packed images are kept (default {SHARDS})")
    return parser


def run_measure(arguments: argparse.Namespace) -> None:
    """Measure, show, and write after every stage, so that a later one that fails takes nothing with it."""
    from rich.console import Console

    from bench.bench import Bench, find_device
    from bench.data import Data, find_photos
    from bench.measure import Measurement, Timing
    from bench.results import describe_run, with_measurements
    from bench.stages import run_stage, select
    from bench.tables import print_results
    from fastdps.files import write_json

    names = select(arguments.stages)
    rounds, seconds, images = QUICK if arguments.quick else FULL
    images = images if arguments.images is None else arguments.images
    if images < 1:
        raise ConfigError(f"--images is {images}; it has to be at least 1.")
    device = find_device(arguments.device)
    data = Data(arguments.shards, images, find_photos())
    bench = Bench(device, Timing(rounds, seconds, device), data, quick=arguments.quick)
    run = describe_run(bench)
    measurements: list[Measurement] = []
    progress = Console(stderr=True)
    try:
        for name in names:
            with progress.status(f"measuring {name}"):
                measurements += run_stage(name, bench)
            if not progress.is_terminal:
                progress.print(f"measured {name}")
            if arguments.json:
                write_json(arguments.json, with_measurements(run, measurements))
    finally:
        if measurements:
            print_results(with_measurements(run, measurements))


def readme_parser() -> argparse.ArgumentParser:
    """The options of `python -m bench readme`."""
    parser = argparse.ArgumentParser(
        prog="python -m bench readme", description="Write the README's table from a results file, between its markers."
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="results (default: the newest of bench/results)")
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    return parser


def run_readme(arguments: argparse.Namespace) -> None:
    """Read, check, write."""
    from bench.results import DIRECTORY, read_results
    from bench.tables import write_readme

    path = arguments.json
    if path is None:
        found = {file: read_results(file)["date"] for file in DIRECTORY.glob("*.json")}
        if not found:
            raise ConfigError(f"{DIRECTORY} has no results; measure with `python -m bench --json FILE`.")
        path = max(found, key=lambda file: found[file])
    if not arguments.readme.is_file():
        raise ConfigError(f"{arguments.readme} does not exist; name a README with --readme.")
    write_readme(read_results(path), arguments.readme)
    print(f"{arguments.readme}: table of {path}")


if __name__ == "__main__":
    sys.exit(main())
