"""The `fastdps` command. Sub-commands are imported when they are called, so that `--help` is quick."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from fastdps.commands.options import Parser, run_command
from fastdps.runtime.signals import exit_on_signal

#: The entry of a command: takes its arguments, returns the exit status.
Entry = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class Command:
    """A sub-command: the module that has its `add_arguments` and `run_<name>`, and what it is for."""

    module: str
    summary: str


COMMANDS = {
    "train": Command("fastdps.training.run", "adapt a metric to one context, to many or to all"),
    "evaluate": Command(
        "fastdps.evaluation.evaluate", "score a run on held-out images and on human judgement, before and after"
    ),
    "report": Command("fastdps.commands.report", "show a run as a page that stands alone, or compare several"),
    "sweep": Command("fastdps.commands.sweep", "train and evaluate all cases of a grid, and put them into one table"),
    "score": Command("fastdps.commands.score", "compare images with one, nearest first; show where two of them differ"),
    "export": Command("fastdps.commands.export", "write a metric for the lpips package, as ONNX, or for torch.export"),
    "doctor": Command(
        "fastdps.commands.doctor", "look at this machine: what training would find, and what to do about it"
    ),
    "gallery": Command(
        "fastdps.commands.gallery", "show samples of a shard set, distorted or with their votes, as a picture"
    ),
    "demo": Command("fastdps.commands.demo", "pack, adapt and score on made-up images, in minutes"),
    "completion": Command("fastdps.commands.completion", "print what makes a shell complete these commands"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the console script; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    with exit_on_signal():
        arguments = make_parser(argv[:1]).parse_args(argv)
        from fastdps.runtime.console import quiet_mode

        run = getattr(importlib.import_module(COMMANDS[arguments.command].module), f"run_{arguments.command}")
    with quiet_mode(getattr(arguments, "quiet", False)):
        return run_command(lambda: run(arguments))


def make_parser(complete: Collection[str]) -> Parser:
    """The parser, with the options of those commands that are named in `complete`, whose modules are imported."""
    parser = Parser(prog="fastdps", description="Adapt a perceptual image metric to your notion of similarity.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name, help=command.summary, description=command.summary[0].upper() + command.summary[1:]
        )
        if name in complete:
            importlib.import_module(command.module).add_arguments(sub)
    return parser
