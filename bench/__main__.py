"""`python -m bench`: measure stages; and with the name of a command before its options, make something of results."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from fastdps.commands.options import Parser, run_command
from fastdps.errors import ConfigError

#: (rounds, seconds of a sample, images of the 64 px sets)
FULL = (5, 0.4, 20_000)
QUICK = (3, 0.1, 2_000)
SHARDS = Path("shards/bench")
#: What can be made of results.
COMMANDS = {
    "compare": "what moved between two results files beyond the noise",
    "picture": "where the time of an end-to-end image goes, as a PNG",
    "plan": "what N devices on M nodes would do, and what would limit them",
    "staging": "what staging a large set on many nodes would take, simulated",
    "readme": "the headline rows, in bench/README.md and, three of them, in README.md",
}
#: Their modules in `bench.analyse`, each with `add_arguments(parser)` and `run(arguments)`, where the name is another.
MODULES = {"plan": "capacity", "staging": "staging_tables"}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parse(argv)
    if argv and argv[0] in COMMANDS:
        command = _module(argv[0])
        return run_command(lambda: command.run(arguments))
    return run_command(lambda: run_measure(arguments))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options of measuring, or of the command that the first of them names."""
    if not (argv and argv[0] in COMMANDS):
        return measure_parser().parse_args(argv)
    parser = Parser(prog=f"python -m bench {argv[0]}", description=f"Show {COMMANDS[argv[0]]}.")
    _module(argv[0]).add_arguments(parser)
    return parser.parse_args(argv[1:])


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"bench.analyse.{MODULES.get(command, command)}")


def measure_parser() -> argparse.ArgumentParser:
    """The options of measuring."""
    from bench.stages import STAGES

    parser = Parser(
        prog="python -m bench",
        description="Measure the images per second of each stage, and what share of the machine's limit that is.",
        epilog=f"Stages:\n{_list(STAGES)}\n\nCommands, in place of stages (see COMMAND --help):\n{_list(COMMANDS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="what to measure (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to a file")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter samples, fewer variants")
    parser.add_argument("--images", type=int, metavar="N", help=f"of the 64 px sets (default {FULL[2]:,})")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="by default the GPU if there is one")
    parser.add_argument("--shards", type=Path, default=SHARDS, help=f"where packed images are kept (default {SHARDS})")
    return parser


def _list(names: Mapping[str, str]) -> str:
    return "\n".join(f"  {name:10} {what}" for name, what in names.items())


def run_measure(arguments: argparse.Namespace) -> None:
    """Measure, show, and write after every stage, so that a later one that fails takes nothing with it."""
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
        raise ConfigError(f"--images is {images}; it has to be at least 1.")
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
