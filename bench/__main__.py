"""`python -m bench`: measure stages, or run a command that analyses results."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from fastdps.commands.options import Parser, run_command
from fastdps.errors import ConfigError

#: Rounds, seconds of a sample, images of the 64 px sets.
FULL = (5, 0.4, 20_000)
QUICK = (3, 0.1, 2_000)
SHARDS = Path("shards/bench")
#: Commands that analyse results, with their descriptions.
COMMANDS = {
    "compare": "the changes between two results files that exceed the noise",
    "elastic": "the loss of one training on 1, 2, 4 and a changing number of processes, as a PNG",
    "picture": "the time per image of training by parts, as a PNG",
    "plan": "the predicted rate of N devices on M nodes, and its limits",
    "staging": "a simulation of staging a large set on many nodes",
    "readme": "the headline rows, in bench/README.md and, three of them, in README.md",
}
#: Modules in `bench.analyse` that are not named like their command. Each module has `add_arguments` and `run`.
MODULES = {"plan": "capacity", "staging": "staging_tables"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parse(argv)
    if argv and argv[0] in COMMANDS:
        command = _module(argv[0])
        return run_command(lambda: command.run(arguments))
    return run_command(lambda: run_measure(arguments))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the options of measuring, or of the command named by the first argument."""
    if not (argv and argv[0] in COMMANDS):
        return measure_parser().parse_args(argv)
    parser = Parser(prog=f"python -m bench {argv[0]}", description=f"Show {COMMANDS[argv[0]]}.")
    _module(argv[0]).add_arguments(parser)
    return parser.parse_args(argv[1:])


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"bench.analyse.{MODULES.get(command, command)}")


def measure_parser() -> argparse.ArgumentParser:
    """Return the parser of measuring."""
    from bench.stages import STAGES

    parser = Parser(
        prog="python -m bench",
        description="Measure the images per second of each stage, and the share of the machine's limit it reaches.",
        epilog=f"Stages:\n{_list(STAGES)}\n\nCommands, instead of stages (see COMMAND --help):\n{_list(COMMANDS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="stages to measure (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter samples, fewer variants")
    parser.add_argument("--images", type=int, metavar="N", help=f"images of the 64 px sets (default {FULL[2]:,})")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: the GPU if there is one")
    parser.add_argument(
        "--shards", type=Path, default=SHARDS, help=f"directory of the packed images (default {SHARDS})"
    )
    return parser


def _list(names: Mapping[str, str]) -> str:
    return "\n".join(f"  {name:10} {what}" for name, what in names.items())


def run_measure(arguments: argparse.Namespace) -> None:
    """Measure, print, and write results after every stage, so that a failing stage loses no earlier results."""
    from rich.console import Console

    from bench.analyse.results import describe_run, with_measurements
    from bench.analyse.tables import print_results
    from bench.harness.bench import Bench, find_device
    from bench.harness.data import BenchData, find_photos
    from bench.harness.measure import Measurement, Timing
    from bench.stages import run_stage, select
    from fastdps.runtime.files import write_json

    names = select(arguments.stages)
    rounds, seconds, images = QUICK if arguments.quick else FULL
    images = images if arguments.images is None else arguments.images
    if images < 1:
        raise ConfigError(f"--images must be at least 1, not {images}.")
    device = find_device(arguments.device)
    data = BenchData(arguments.shards, images, find_photos())
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


if __name__ == "__main__":
    sys.exit(main())
