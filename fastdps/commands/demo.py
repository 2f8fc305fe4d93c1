"""`fastdps demo`: the whole way of the data on made-up images, as the commands that a person would type."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from pathlib import Path

from fastdps.commands import cli
from fastdps.commands.make_shards import make_shards
from fastdps.commands.options import add_quiet
from fastdps.runtime.console import is_quiet, print_result

IMAGES = 800
HOLDOUT = 0.2
EPOCHS = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastdps demo`."""
    parser.add_argument("--shards", type=Path, default=Path("shards/demo"), help="where to pack (default: shards/demo)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where the run goes (default: runs/demo)")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"dead-leaves images to make (default: {IMAGES})")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"passes over them (default: {EPOCHS})")
    add_quiet(parser)


def run_demo(arguments: argparse.Namespace) -> None:
    """Pack dead leaves, adapt to all contexts, score on held-out images, report, and say where everything is.

    A step that fails or is stopped ends the demo with its exit status.
    """
    shards, out = arguments.shards, arguments.out
    pack = ["deadleaves", "--count", arguments.images, "--out", shards, "--holdout", HOLDOUT, "--overwrite"]
    _step("python tools/make_shards.py", pack, make_shards)
    train = ["train", "--shards", shards / "train", "--out", out, "--epochs", arguments.epochs, "--overwrite"]
    _step("fastdps", train, cli.main)
    _step("fastdps", ["evaluate", out, "--shards", shards / "val"], cli.main)
    _step("fastdps", ["report", out], cli.main)
    print_result(f"\nImages: {shards}, metric: {out / 'metric.safetensors'}, log: {out / 'log.jsonl'}")


def _step(command: str, arguments: list[object], run: cli.Entry) -> None:
    argv = [str(argument) for argument in arguments]
    print_result(f"\n$ {command} {shlex.join(argv)}")
    with contextlib.redirect_stdout(None) if is_quiet() else contextlib.nullcontext():
        status = run(argv)
    if status:
        print("The demo stopped at this step.", file=sys.stderr)
        sys.exit(status)
