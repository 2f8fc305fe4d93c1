"""`fastdps demo`: the whole way of the data on made-up images, as the commands that a person would type."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from fastdps import cli
from fastdps.errors import FastDPSError
from fastdps.packing.command import make_shards

IMAGES = 800
HOLDOUT = 0.2
EPOCHS = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastdps demo`."""
    parser.add_argument("--shards", type=Path, default=Path("shards/demo"), help="where to pack (default: shards/demo)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where the run goes (default: runs/demo)")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"dead-leaves images to make (default: {IMAGES})")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"passes over them (default: {EPOCHS})")


def run_demo(arguments: argparse.Namespace) -> None:
    """Pack dead leaves, adapt to all contexts, score on held-out images, report, and say where everything is."""
    shards, out = arguments.shards, arguments.out
    pack = ["deadleaves", "--count", arguments.images, "--out", shards, "--holdout", HOLDOUT, "--overwrite"]
    _step("python tools/make_shards.py", pack, make_shards)
    train = ["train", "--shards", shards / "train", "--out", out, "--epochs", arguments.epochs, "--overwrite"]
    _step("fastdps", train, cli.main)
    _step("fastdps", ["evaluate", out, "--shards", shards / "val"], cli.main)
    _step("fastdps", ["report", out], cli.main)
    print(f"\nImages: {shards}, metric: {out / 'metric.safetensors'}, log: {out / 'log.jsonl'}")


def _step(command: str, arguments: list[object], run: cli.Entry) -> None:
    argv = [str(argument) for argument in arguments]
    print(f"\n$ {command} {shlex.join(argv)}", flush=True)
    if run(argv):
        raise FastDPSError("The demo stopped at the step above.")
