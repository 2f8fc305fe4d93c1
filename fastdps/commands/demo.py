"""`fastdps demo`: pack, adapt, score and report on generated images, and print the command of each step.

It adapts twice: the heads on the frozen backbone, and one backbone with all heads. A page compares the two.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from fastdps.commands.evaluate import print_evaluation
from fastdps.commands.make_shards import print_summary
from fastdps.commands.options import add_quiet, examples
from fastdps.errors import FastDPSError
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import PackProgress, pack
from fastdps.packing.sources.registry import open_source
from fastdps.runtime.console import counter, print_result

IMAGES = 800
HOLDOUT = 0.2
#: Epochs of each variant, in the order in which they are trained.
EPOCHS = {"lin": 20, "shared": 12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps demo`."""
    parser.epilog = examples("fastdps demo", "fastdps demo --images 200 --epochs 10")
    parser.add_argument(
        "--shards", type=Path, default=Path("shards/demo"), help="directory of the shard sets (default: shards/demo)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="directory of the two runs (default: runs/demo)"
    )
    parser.add_argument(
        "--images", type=int, default=IMAGES, help=f"number of dead-leaves images to generate (default: {IMAGES})"
    )
    default = ", ".join(f"{epochs} for {variant}" for variant, epochs in EPOCHS.items())
    parser.add_argument("--epochs", type=int, help=f"number of passes over the images (default: {default})")
    add_quiet(parser)


def run_demo(arguments: argparse.Namespace) -> None:
    """Run `fastdps demo`. If a step fails or is stopped, the demo ends with the exit status of that step."""
    try:
        _run_steps(arguments)
    except (FastDPSError, KeyboardInterrupt):
        print("The demo stopped at this step.", file=sys.stderr)
        raise


def _run_steps(arguments: argparse.Namespace) -> None:
    """Print the command of each step and call the Python function behind it."""
    from fastdps.report.write import report

    shards, out = arguments.shards, arguments.out
    _show("pack", "deadleaves", "--count", arguments.images, "--out", shards, "--holdout", HOLDOUT, "--overwrite")
    with counter("packing", unit="images") as count:
        packed = pack(
            open_source("deadleaves", count=arguments.images),
            shards,
            PackOptions(holdout=HOLDOUT),
            overwrite=True,
            progress=PackProgress(count.start, count.advance),
        )
    print_summary(packed)
    for variant, epochs in EPOCHS.items():
        _adapt(shards, out / variant, variant, arguments.epochs or epochs)
    page = out / "comparison.html"
    _show("report", *(out / variant for variant in EPOCHS), "--out", page)
    report([out / variant for variant in EPOCHS], page)
    print_result(f"\nImages: {shards}, metrics: {out / '*' / 'metric.safetensors'}, the two compared: {page}")


def _adapt(shards: Path, out: Path, variant: str, epochs: int) -> None:
    """Train one variant, score it and write its report."""
    from fastdps.evaluation.evaluate import evaluate
    from fastdps.report.write import report
    from fastdps.training.run import train

    _show("train", "--shards", shards / "train", "--variant", variant, "--out", out, "--epochs", epochs, "--overwrite")
    run = train(shards / "train", out, overwrite=True, variant=variant, epochs=epochs)
    print_result(f"Adapted to {len(run.rankings)} contexts: {out}")
    _show("evaluate", out, "--shards", shards / "val")
    print_evaluation(out, evaluate(out, shards=shards / "val"), on_contexts=True, on_people=False)
    _show("report", out)
    print_result(str(report(out)))


def _show(*command: object) -> None:
    """Print the command of a step."""
    print_result(f"\n$ fastdps {shlex.join(str(part) for part in command)}")
