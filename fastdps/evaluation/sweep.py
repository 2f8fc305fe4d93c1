"""Sweeps: many runs from one grid, and one table of their scores.

A grid file is JSON:

    {
      "shards": "shards/sample/train", "held_out": "shards/sample/val",
      "validation": null, "bapps": null,
      "contexts": "24", "contexts_seed": 0,
      "settings": {"recipe": "fast", "epochs": 10},
      "grid": {"backbone": ["alexnet", "vgg16"], "comparison": ["spatial", "mean"], "seed": [0, 1]}
    }

Every combination of the grid is a case: a run directory OUT/cases/NAME, trained and evaluated on the same contexts.
A case with scores is not run again, and an interrupted case resumes, so that the same sweep continues where it
stopped.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import Ranking, select_rankings
from fastdps.errors import ConfigError, ShardError, did_you_mean
from fastdps.evaluation.evaluate import evaluate
from fastdps.evaluation.run_scores import RunScores, read_scores
from fastdps.metric.backbones import check_backbone
from fastdps.run_directory import RunDirectory
from fastdps.runtime.files import write_json, write_text
from fastdps.runtime.json_files import Anything, Filled, Maybe, Number, Values, check, parse_json
from fastdps.shards.format import read_manifest
from fastdps.training.recipes import SETTINGS, TrainConfig, get_recipe
from fastdps.training.run import train
from fastdps.training.run_config import read_settings

#: Number of resamples of a bootstrap confidence interval, and its confidence level.
RESAMPLES, CONFIDENCE = 2000, 0.95
#: Largest number of cases; they are all named before the first one is run.
MOST_CASES = 10_000
_CASE = re.compile(r"[\w.,+=-]{0,200}", re.ASCII)
_SCHEMA = {
    "shards": str,
    "held_out": str,
    "grid": Values(Filled(Anything())),
    "settings?": Values(Anything()),
    "contexts?": str,
    "contexts_seed?": Number(0, 2**63 - 1),
    "validation?": Maybe(str),
    "bapps?": Maybe(str),
}
COLUMNS = ("case", "ranking", "baseline_accuracy", "adapted_accuracy", "improved")


@dataclass(frozen=True)
class Grid:
    """The content of a grid file; see the top of this module.

    Attributes:
        shards: Shard set to train on.
        held_out: Shard set to score on.
        grid: Values of each setting that is varied.
        settings: Settings common to all cases.
        contexts: What to adapt to, as `--contexts` of `fastdps train`.
        contexts_seed: Seed of contexts that are drawn.
        validation: Shard set to choose the best epoch by.
        bapps: Judged sets to score on as well.
    """

    shards: str
    held_out: str
    grid: dict[str, list[Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    contexts: str = "all"
    contexts_seed: int = 0
    validation: str | None = None
    bapps: str | None = None

    def cases(self) -> dict[str, dict[str, Any]]:
        """Return the settings of every case by its name, in the order of the grid."""
        names = list(self.grid)
        combinations = [dict(zip(names, values, strict=True)) for values in itertools.product(*self.grid.values())]
        return {
            ",".join(f"{key}={_text(value)}" for key, value in combination.items()): {**self.settings, **combination}
            for combination in combinations
        }


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep.

    Attributes:
        scores: Scores of each case by its name.
        summary: Means over all contexts of all cases with confidence intervals, see `summarize`.
    """

    scores: Mapping[str, RunScores]
    summary: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the scores and the summary as JSON types."""
        return {
            "summary": dict(self.summary),
            "scores": {name: scores.to_dict() for name, scores in self.scores.items()},
        }


@dataclass(frozen=True)
class SweepProgress:
    """Callbacks that report the progress of a sweep.

    Attributes:
        start: Called before a case is run with its number, from 1, the number of cases, and its name.
        done: Called after a case was run, with its run directory and its scores.
    """

    start: Callable[[int, int, str], object] = lambda *_: None
    done: Callable[[Path, RunScores], object] = lambda *_: None


def read_grid(path: Path) -> Grid:
    """Read a grid file and check all of it. Raises `ConfigError`, which names the problem."""
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
        check(data, _SCHEMA)
        known = [f.name for f in fields(Grid)]
        if unknown := sorted(set(data) - set(known)):
            raise ValueError(
                f"unknown keys {', '.join(unknown)}.{did_you_mean(unknown[0], known)} Known: {', '.join(known)}."
            )
        grid = Grid(**data)
        check_grid(grid)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not a grid: {error}") from error
    return grid


def check_grid(grid: Grid) -> None:
    """Raise `ConfigError` if a setting, a value or the name of a case cannot be used."""
    for key in (*grid.grid, *grid.settings):
        if key not in SETTINGS:
            raise ConfigError(f"{key} is not a setting.{did_you_mean(key, SETTINGS)} Known: {', '.join(SETTINGS)}.")
    for key, values in grid.grid.items():
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError(f"{key} in the grid must be a list of values, not {values!r}.")
    if (count := math.prod(map(len, grid.grid.values()))) > MOST_CASES:
        raise ConfigError(f"the grid has {count:,} cases, more than {MOST_CASES:,}. Divide it into several grids.")
    cases = grid.cases()
    if len(cases) < count:
        raise ConfigError("a value comes twice in the list of a setting. Remove the second one.")
    backbones: set[tuple[str, tuple[int, ...] | None]] = set()
    for name, settings in cases.items():
        if not _CASE.fullmatch(name):
            raise ConfigError(
                f"the case {name[:100]!r} cannot be the name of a directory: values may have letters, digits and "
                "_ . , + - only, and 200 characters together."
            )
        config = config_of(settings)
        backbones.add((config.backbone, config.taps))
    for backbone, taps in backbones:
        check_backbone(backbone, taps)
    select_rankings(grid.contexts, NAMES, grid.contexts_seed)


def config_of(settings: Mapping[str, Any]) -> TrainConfig:
    """Return the complete settings of a case. Raises `ConfigError` for values that cannot be used."""
    recipe = settings.get("recipe", "fast")
    if not isinstance(recipe, str):
        raise ConfigError(f"recipe must be a name, not {recipe!r}.")
    return get_recipe(recipe, {key: value for key, value in settings.items() if key != "recipe"})


def sweep(
    grid: Grid | str | PathLike[str], out: str | PathLike[str], *, progress: SweepProgress | None = None
) -> SweepResult:
    """Train and evaluate all cases of a grid, and write `sweep.csv` and `sweep.json`.

    Args:
        grid: The grid, or the path of a grid file.
        out: Directory of the sweep.
        progress: Callbacks that report progress.

    Returns:
        The scores of all cases, and their summary.

    Raises:
        ConfigError: The grid cannot be used, or a finished case was run with other settings or contexts.
        FastDPSError: A case fails, as `fastdps.train` and `fastdps.evaluate` do.
    """
    grid = grid if isinstance(grid, Grid) else read_grid(Path(grid))
    check_grid(grid)
    out, progress = Path(out), progress or SweepProgress()
    rankings = select_rankings(grid.contexts, NAMES, grid.contexts_seed)
    cases = grid.cases()
    scores: dict[str, RunScores] = {}
    for number, (name, settings) in enumerate(cases.items(), start=1):
        run = RunDirectory(out / "cases" / name)
        found = read_scores(run)
        if found is None:
            progress.start(number, len(cases), name)
            found = run_case(grid, settings, rankings, run)
            progress.done(run.path, found)
        else:
            refuse_other_settings(run, settings, rankings)
            refuse_other_set(run, found, grid)
        scores[name] = found
    summary = summarize(scores)
    write_table(out, scores, summary)
    return SweepResult(scores, summary)


def run_case(grid: Grid, settings: Mapping[str, Any], rankings: list[Ranking], run: RunDirectory) -> RunScores:
    """Train and evaluate one case."""
    train(grid.shards, run.path, contexts=rankings, validation=grid.validation, config=config_of(settings))
    return evaluate(run.path, shards=grid.held_out, bapps=grid.bapps)


def refuse_other_settings(run: RunDirectory, settings: Mapping[str, Any], rankings: list[Ranking]) -> None:
    """Raise `ConfigError` if a finished case was run with other settings or contexts than the grid has now."""
    before = run.read_config()
    same_contexts = [tuple(ranking) for ranking in before["rankings"]] == rankings
    if read_settings(run) != config_of(settings) or not same_contexts:
        raise ConfigError(
            f"{run.path} was finished with other settings or contexts than the grid has now. Choose another --out, or "
            "remove that directory to run the case again."
        )


def refuse_other_set(run: RunDirectory, scores: RunScores, grid: Grid) -> None:
    """Raise `ConfigError` if a finished case was scored on another set than the grid has now."""
    hashes = {one.sha256 for one in scores.sets if one.kind == "contexts"}
    try:
        now = read_manifest(grid.held_out).content_sha256()
    except ShardError:  # the cases are finished, and the set may have been removed
        return
    if hashes and hashes != {now}:
        raise ConfigError(
            f"{run.path} was scored on another set than {grid.held_out}, so cases cannot be compared. Choose another "
            f"--out, or remove {run.scores} to score the case again."
        )


def bootstrap(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """Return the mean of independent values, and its percentile bootstrap confidence interval (Efron 1979).

    Args:
        values: The values, (n,).
        seed: Seed of the resampling.

    Returns:
        Mean, low and high end of the interval at the level `CONFIDENCE`.
    """
    random = np.random.Generator(np.random.Philox(seed))
    means = values[random.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(values.mean()), float(low), float(high)


def summarize(scores: Mapping[str, RunScores]) -> dict[str, Any]:
    """Return means over all contexts of all cases, among them the paper's main result, with confidence intervals.

    Contexts are resampled. The contexts of one metric share its features, so the intervals are somewhat too narrow.
    """
    contexts = [context for case in scores.values() for context in case.contexts]
    before = np.array([context.baseline_accuracy for context in contexts])
    after = np.array([context.adapted_accuracy for context in contexts])
    columns = {
        "improved_fraction": (after > before).astype(np.float64),
        "baseline_accuracy": before,
        "adapted_accuracy": after,
        "worst_adapted_accuracy": np.array(
            [min(context.adapted_accuracy for context in case.contexts) for case in scores.values()]
        ),
    }
    averages = [case.bapps.averages["all"] for case in scores.values() if case.bapps]
    if changes := [average.change for average in averages if average]:
        columns["bapps_change"] = np.array(changes)
    summary: dict[str, Any] = {"cases": len(scores), "contexts": len(contexts), "confidence": CONFIDENCE}
    for name, values in columns.items():
        mean, low, high = bootstrap(values)
        summary[name] = {"mean": mean, "low": low, "high": high}
    return summary


def write_table(out: Path, scores: Mapping[str, RunScores], summary: Mapping[str, Any]) -> None:
    """Write `sweep.csv`, a row per case and context, and `sweep.json`, the same with the summary."""
    rows = [
        {
            "case": name,
            "ranking": ",".join(context.ranking),
            "baseline_accuracy": context.baseline_accuracy,
            "adapted_accuracy": context.adapted_accuracy,
            "improved": context.adapted_accuracy > context.baseline_accuracy,
        }
        for name, case in scores.items()
        for context in case.contexts
    ]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "sweep.csv", table.getvalue())
    write_json(out / "sweep.json", {"summary": summary, "rows": rows})


def _text(value: Any) -> str:
    return ",".join(str(part) for part in value) if isinstance(value, list | tuple) else str(value)
