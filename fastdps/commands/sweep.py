"""`fastdps sweep`: many runs from one file, and one table of everything.

The file is JSON:

    {
      "shards": "shards/sample/train", "held_out": "shards/sample/val",
      "validation": null, "bapps": null,
      "contexts": "24", "contexts_seed": 0,
      "settings": {"recipe": "fast", "epochs": 10},
      "grid": {"backbone": ["alexnet", "vgg16"], "comparison": ["spatial", "mean"], "seed": [0, 1]}
    }

Every combination of the grid is a case: a run directory OUT/cases/NAME, trained and evaluated on the same contexts. A
case that has scores is not run again, and one that was interrupted goes on, so that the same command goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdps.commands.options import add_quiet
from fastdps.commands.tables import print_sweep
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import select_rankings
from fastdps.errors import ConfigError
from fastdps.evaluation.evaluate import add_arguments as add_evaluate_arguments
from fastdps.evaluation.evaluate import run_evaluate
from fastdps.run_directory import RunDirectory
from fastdps.runtime.console import is_quiet, print_result
from fastdps.runtime.files import write_json, write_text
from fastdps.training.recipes import TrainConfig, config_from_json, get_recipe
from fastdps.training.run import OVERRIDES, run_train
from fastdps.training.run import add_arguments as add_train_arguments

#: Resamples of a bootstrap confidence interval, and the share of them that it holds.
RESAMPLES, CONFIDENCE = 2000, 0.95
SETTINGS = ("recipe", *OVERRIDES)
COLUMNS = ("case", "ranking", "baseline_accuracy", "adapted_accuracy", "improved")


@dataclass(frozen=True)
class Grid:
    """What a grid file says; see the top of this module."""

    shards: str
    held_out: str
    grid: dict[str, list[Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    contexts: str = "all"
    contexts_seed: int = 0
    validation: str | None = None
    bapps: str | None = None

    def cases(self) -> dict[str, dict[str, Any]]:
        """The settings of every case by its name, in the order of the grid."""
        names = list(self.grid)
        combinations = [dict(zip(names, values, strict=True)) for values in itertools.product(*self.grid.values())]
        return {
            ",".join(f"{key}={_text(value)}" for key, value in combination.items()): {**self.settings, **combination}
            for combination in combinations
        }


def read_grid(path: Path) -> Grid:
    """Read and check a grid file. Raises `ConfigError` that says what is wrong, before anything is run."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        unknown = sorted(set(data) - {f.name for f in fields(Grid)})
        if unknown:
            raise ConfigError(f"{path}: unknown keys {', '.join(unknown)}.")
        grid = Grid(**data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not a grid: {error}") from error
    for key, values in grid.grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: {key} in the grid must be a list of values.")
    for key in (*grid.grid, *grid.settings):
        if key not in SETTINGS:
            raise ConfigError(f"{path}: {key} is no setting. Known: {', '.join(SETTINGS)}.")
    for settings in grid.cases().values():
        config_of(settings)
    return grid


def config_of(settings: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a case. Raises `ConfigError` for values that cannot be used."""
    overrides = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items() if key != "recipe"}
    return get_recipe(settings.get("recipe", "fast"), overrides)


def run_case(grid: Grid, settings: Mapping[str, Any], rankings: str, run: RunDirectory) -> None:
    """Train and evaluate one case."""
    train = ["--shards", grid.shards, "--out", str(run.path), "--contexts", rankings]
    evaluate = [str(run.path), "--shards", grid.held_out]
    if grid.validation:
        train += ["--validation", grid.validation]
    if grid.bapps:
        evaluate += ["--bapps", grid.bapps]
    for key, value in settings.items():
        train += [f"--{key.replace('_', '-')}", _text(value)]
    run_train(_parse(add_train_arguments, train))
    run_evaluate(_parse(add_evaluate_arguments, evaluate))


def refuse_other_settings(run: RunDirectory, settings: Mapping[str, Any], rankings: str) -> None:
    """Raise `ConfigError` if a finished case was run with other settings or contexts than the grid has now."""
    before = run.read_config()
    same_contexts = ";".join(map(",".join, before["rankings"])) == rankings
    if config_from_json(before["config"]) != config_of(settings) or not same_contexts:
        raise ConfigError(
            f"{run.path} was finished with other settings or contexts than the grid has now. Choose another --out, or "
            "remove that directory to run the case again."
        )


def bootstrap(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """The mean of independent cases, and its percentile bootstrap confidence interval (Efron 1979)."""
    random = np.random.Generator(np.random.Philox(seed))
    means = values[random.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(values.mean()), float(low), float(high)


def summarize(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The paper's headline and more, over all contexts of all cases; each value with its confidence interval.

    Contexts are what is resampled: those of one metric share its features, so the intervals are on the narrow side.
    """
    contexts = [context for case in scores.values() for context in case["contexts"]]
    before = np.array([context["baseline_accuracy"] for context in contexts])
    after = np.array([context["adapted_accuracy"] for context in contexts])
    columns = {
        "improved_fraction": (after > before).astype(np.float64),
        "baseline_accuracy": before,
        "adapted_accuracy": after,
        "worst_adapted_accuracy": np.array(
            [min(context["adapted_accuracy"] for context in case["contexts"]) for case in scores.values()]
        ),
    }
    averages = [case["bapps"]["averages"]["all"] for case in scores.values() if case["bapps"]]
    if changes := [average["change"] for average in averages if average]:
        columns["bapps_change"] = np.array(changes)
    summary: dict[str, Any] = {"cases": len(scores), "contexts": len(contexts), "confidence": CONFIDENCE}
    for name, values in columns.items():
        mean, low, high = bootstrap(values)
        summary[name] = {"mean": mean, "low": low, "high": high}
    return summary


def write_table(out: Path, scores: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
    """Write `sweep.csv`, a row per case and context, and `sweep.json`, the same with the summary."""
    rows = [
        {
            "case": name,
            "ranking": ",".join(context["ranking"]),
            "baseline_accuracy": context["baseline_accuracy"],
            "adapted_accuracy": context["adapted_accuracy"],
            "improved": context["adapted_accuracy"] > context["baseline_accuracy"],
        }
        for name, case in scores.items()
        for context in case["contexts"]
    ]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "sweep.csv", table.getvalue())
    write_json(out / "sweep.json", {"summary": summary, "rows": rows})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastdps sweep`."""
    parser.add_argument("--grid", type=Path, required=True, help="JSON file of what to run")
    parser.add_argument("--out", type=Path, required=True, help="directory of the sweep")
    add_quiet(parser)


def run_sweep(arguments: argparse.Namespace) -> None:
    """What `fastdps sweep` does with its options."""
    grid = read_grid(arguments.grid)
    rankings = ";".join(",".join(r) for r in select_rankings(grid.contexts, NAMES, grid.contexts_seed))
    scores = {}
    for number, (name, settings) in enumerate(grid.cases().items(), start=1):
        run = RunDirectory(arguments.out / "cases" / name)
        if run.scores.exists():
            refuse_other_settings(run, settings, rankings)
        else:
            print_result(f"\ncase {number} of {len(grid.cases())}: {name}")
            run_case(grid, settings, rankings, run)
        scores[name] = json.loads(run.scores.read_text(encoding="utf-8"))
    summary = summarize(scores)
    write_table(arguments.out, scores, summary)
    if not is_quiet():
        print_sweep(summary, scores, arguments.out)


def _parse(add: Any, argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add(parser)
    return parser.parse_args(argv)


def _text(value: Any) -> str:
    return ",".join(str(part) for part in value) if isinstance(value, list | tuple) else str(value)
