"""The `fastdps` command. The module of a command is imported when it is called, so that `--help` is fast."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import ModuleType

from fastdps.commands.options import Parser, examples, run_command
from fastdps.runtime.garbage_collection import importing_modules
from fastdps.runtime.signals import exit_on_signal


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        module: The module in `fastdps.commands` with its `add_arguments` and `run_<name>`.
        summary: Its purpose, for `--help`.
        can_resume: The same command resumes after a signal, and a message says so.
        needs: Modules that the command imports when it runs, and not for its help, because they import torch.
    """

    module: str
    summary: str
    can_resume: bool = False
    needs: tuple[str, ...] = ()


COMMANDS = {
    "pack": Command("make_shards", "pack images or judgements into shard sets", can_resume=True),
    "check": Command("check_shards", "verify shard sets: manifest, checksums, indexes, and that every image decodes"),
    "train": Command(
        "train", "adapt a metric to one context, to many or to all", needs=("training.run", "commands.summary")
    ),
    "adapt": Command(
        "adapt", "adapt a metric to few judgements in seconds, and say what to expect of it", needs=("training.adapt",)
    ),
    "judge": Command("judge", "open a page to give judgements on, and adapt a metric to them meanwhile"),
    "evaluate": Command(
        "evaluate",
        "score a run on held-out images and on human judgement, before and after",
        needs=("evaluation.evaluate", "commands.tables"),
    ),
    "report": Command("report", "show a run as one self-contained page, or compare several", needs=("report.write",)),
    "status": Command("status", "say where runs are, and what comes next"),
    "sweep": Command(
        "sweep",
        "train and evaluate all cases of a grid, and collect their scores in one table",
        needs=("evaluation.sweep", "commands.tables"),
    ),
    "score": Command(
        "score",
        "rank images by their distance to a reference; show where two images differ",
        needs=("commands.score_images",),
    ),
    "export": Command(
        "export",
        "write a metric for the lpips package, as ONNX or for torch.export, or push it to the Hugging Face hub",
        needs=("export.export",),
    ),
    "doctor": Command("doctor", "check whether this machine can train, and advise on problems"),
    "gallery": Command(
        "gallery", "draw samples of a shard set, distorted or with their votes, as a picture", needs=("report.gallery",)
    ),
    "demo": Command(
        "demo",
        "pack, adapt and score on generated images, in minutes",
        needs=("training.run", "evaluation.evaluate", "report.write", "commands.tables"),
    ),
    "completion": Command("completion", "print a completion script for bash, zsh or fish"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        argv: The arguments, by default those of the process.

    Returns:
        0, 1 after an error, or 128 + the number of the signal that stopped the command.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["help"]:
        argv = [*argv[1:2], "--help"]
    with exit_on_signal(), importing_modules():
        arguments = make_parser(argv[:1]).parse_args(argv)
        from fastdps.runtime.console import quiet_mode

        command = COMMANDS[arguments.command]
        run = getattr(_import(command), f"run_{arguments.command}")
        arguments.argv = tuple(argv)
        for module in command.needs:
            importlib.import_module(f"fastdps.{module}")
    with quiet_mode(getattr(arguments, "quiet", False)):
        return run_command(lambda: run(arguments), can_resume=command.can_resume)


def make_parser(complete: Collection[str]) -> Parser:
    """Return the parser, with the options of the commands named in `complete`, whose modules are imported."""
    parser = Parser(
        prog="fastdps",
        description="Adapt a perceptual image metric to your notion of similarity.",
        epilog="fastdps help COMMAND shows the options of a command.\n\n"
        + examples(
            "fastdps demo",
            "fastdps pack folder --source photos --out shards/photos --holdout 0.2",
            "fastdps train --shards shards/photos/train --out runs/photos",
        ),
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name, help=command.summary, description=command.summary[0].upper() + command.summary[1:]
        )
        if name in complete:
            _import(command).add_arguments(sub)
    return parser


class _Version(argparse.Action):
    """Print the version, which is read only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"fastdps {version('fastdps')}")
        parser.exit()


def _import(command: Command) -> ModuleType:
    return importlib.import_module(f"fastdps.commands.{command.module}")
