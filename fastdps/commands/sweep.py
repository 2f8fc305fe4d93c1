"""`fastdps sweep`: train and score all cases of a grid file; see `fastdps.evaluation.sweep`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fastdps.commands.evaluate import print_evaluation
from fastdps.commands.options import add_quiet, examples, is_main_rank
from fastdps.runtime.console import is_quiet, print_result
from fastdps.training.recipes import SETTINGS

if TYPE_CHECKING:
    from fastdps.evaluation.run_scores import RunScores


GRID = f"""a grid file has these keys; contexts, contexts_seed, validation, bapps and settings may be missing:
  {{
    "shards": "shards/photos/train", "held_out": "shards/photos/val",
    "contexts": "24", "contexts_seed": 0, "validation": null, "bapps": null,
    "settings": {{"recipe": "fast", "epochs": 10}},
    "grid": {{"backbone": ["alexnet", "vgg16"], "seed": [0, 1]}}
  }}
Each combination of the values in grid is a case. Settings: {", ".join(SETTINGS)}.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps sweep`."""
    parser.epilog = GRID + examples(
        "fastdps sweep --grid grid.json --out sweeps/backbones",
        "fastdps report sweeps/backbones",
    )
    parser.add_argument("--grid", type=Path, required=True, help="JSON file of settings and of the values to combine")
    parser.add_argument("--out", type=Path, required=True, help="directory of the sweep")
    add_quiet(parser)


def run_sweep(arguments: argparse.Namespace) -> None:
    """Run `fastdps sweep`."""
    from fastdps.commands.tables import print_sweep
    from fastdps.evaluation.sweep import SweepProgress, read_grid, sweep

    grid = read_grid(arguments.grid)

    def start(number: int, cases: int, name: str) -> None:
        print_result(f"\ncase {number} of {cases}: {name}")

    def done(run: Path, scores: RunScores) -> None:
        if is_main_rank():
            print_evaluation(run, scores, on_contexts=True, on_people=grid.bapps is not None)

    result = sweep(grid, arguments.out, progress=SweepProgress(start, done))
    if not is_quiet() and is_main_rank():
        print_sweep(result.summary, result.scores, arguments.out)
