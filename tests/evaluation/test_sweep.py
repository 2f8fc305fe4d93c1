"""Sweeps without training: which cases run, when and with what, and the numbers of their table."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest

import fastdps.evaluation.sweep as module
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import sample_rankings
from fastdps.errors import ConfigError
from fastdps.evaluation.run_scores import ContextScore, HumanAgreement, RunScores, ScoreSummary, SubsetScores
from fastdps.evaluation.sweep import (
    MOST_CASES,
    Grid,
    SweepProgress,
    bootstrap,
    check_grid,
    config_of,
    read_grid,
    summarize,
    sweep,
    write_table,
)
from fastdps.run_directory import RunDirectory
from fastdps.run_log import Throughput
from fastdps.runtime.files import write_json

GRID = {"comparison": ["spatial", "mean"], "seed": [0, 1]}
NAMES_OF_CASES = [f"comparison={comparison},seed={seed}" for comparison in ("spatial", "mean") for seed in (0, 1)]


def scores(*accuracies: tuple[float, float], change: float | None = None) -> RunScores:
    """Return scores of contexts with accuracies before and after, and the change in agreement with people."""
    agreement = None
    if change is not None:
        everything = SubsetScores(10, 0.7, 0.5, 0.5 + change, change, (0.5 + change,), ("cnn",))
        agreement = HumanAgreement({}, {}, {"all": everything, "jnd": None})
    contexts = tuple(ContextScore(NAMES, before, after) for before, after in accuracies)
    summary = ScoreSummary(len(contexts), 0.5, 0.5, 0.5)
    return RunScores("alexnet", "lin", "spatial", "fast", Throughput(1.0, 2.0, 0.5), contexts, summary, agreement)


@pytest.fixture
def ran(monkeypatch):
    """The calls of `run_case`, which writes scores instead of training."""
    calls = []

    def run_case(grid, settings, rankings, run):
        calls.append((run.path.name, dict(settings), rankings))
        found = scores()
        contexts = tuple(ContextScore(ranking, 0.5, 0.6) for ranking in rankings)
        found = dataclasses.replace(found, contexts=contexts, summary=ScoreSummary(len(contexts), 1.0, 0.5, 0.6))
        run.path.mkdir(parents=True)
        write_json(run.scores, found.to_dict())
        content = {"config": config_of(settings).to_json(), "rankings": [list(ranking) for ranking in rankings]}
        write_json(run.config, content)
        return found

    monkeypatch.setattr(module, "run_case", run_case)
    monkeypatch.setattr(RunDirectory, "read_config", lambda run: json.loads(run.config.read_text()))
    return calls


def test_each_case_runs_once_in_the_order_of_the_grid(tmp_path, ran):
    grid = Grid("train", "val", GRID, {"epochs": 2}, contexts="3", contexts_seed=7)
    told = []
    progress = SweepProgress(lambda *started: told.append(started), lambda path, found: told.append((path, found)))
    result = sweep(grid, tmp_path, progress=progress)
    assert list(result.scores) == [name for name, *_ in ran] == NAMES_OF_CASES
    assert [settings for _, settings, _ in ran] == [
        {"epochs": 2, "comparison": comparison, "seed": seed} for comparison in ("spatial", "mean") for seed in (0, 1)
    ]
    assert all(rankings == sample_rankings(3, NAMES, 7) for *_, rankings in ran)
    assert told[0] == (1, 4, NAMES_OF_CASES[0])
    assert told[1] == (tmp_path / "cases" / NAMES_OF_CASES[0], result.scores[NAMES_OF_CASES[0]])
    assert [number for number, *_ in told[::2]] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "sweep.json").read_text())["summary"] == result.to_dict()["summary"]
    assert sweep(grid, tmp_path) == result
    assert len(ran) == 4


@pytest.mark.parametrize("change", [{"settings": {"epochs": 3}}, {"contexts_seed": 8}, {"contexts": "2"}])
def test_a_finished_case_of_another_grid_is_refused(tmp_path, ran, change):
    grid = Grid("train", "val", GRID, {"epochs": 2}, contexts="3", contexts_seed=7)
    sweep(grid, tmp_path)
    with pytest.raises(ConfigError, match=f"{NAMES_OF_CASES[0]} was finished with other settings or contexts"):
        sweep(dataclasses.replace(grid, **change), tmp_path)
    assert len(ran) == 4


@pytest.mark.parametrize(
    ("settings", "grid", "message"),
    [
        ({}, {"backbone": ["alexnet", "alexnets"]}, r"Unknown backbone 'alexnets'\. Did you mean alexnet"),
        ({"backbone": "vgg61"}, {"seed": [0]}, "Unknown backbone 'vgg61'"),
        ({}, {"taps": [[1, 4], [1, 77]]}, "alexnet has no tap 77"),
        ({"backbone": "vgg16"}, {"taps": [[30]]}, None),
        ({"taps": [30]}, {"backbone": ["vgg16", "alexnet"]}, "alexnet has no tap 30"),
        ({"backbone": "vgg13"}, {"seed": [0]}, "Taps must be given for vgg13, which has no preset"),
        ({"backbone": "vgg13"}, {"taps": [[1, 3]]}, None),
    ],
)
def test_a_backbone_or_tap_that_does_not_exist_is_found_before_anything_runs(tmp_path, ran, settings, grid, message):
    content = {"shards": "train", "held_out": "val", "settings": settings, "grid": grid, "contexts": "1"}
    (tmp_path / "grid.json").write_text(json.dumps(content))
    if message is None:
        read_grid(tmp_path / "grid.json")
        return
    with pytest.raises(ConfigError, match=message):
        sweep(tmp_path / "grid.json", tmp_path / "out")
    assert ran == []
    assert not (tmp_path / "out").exists()


def test_the_limits_of_a_grid_are_inclusive(monkeypatch):
    with pytest.raises(ConfigError, match="10,001 cases, more than 10,000"):
        check_grid(Grid("train", "val", {"seed": list(range(MOST_CASES + 1))}, contexts="1"))
    monkeypatch.setattr("fastdps.evaluation.sweep.MOST_CASES", 1000)  # each case of a grid is checked
    check_grid(Grid("train", "val", {"seed": list(range(1000))}, contexts="1"))
    with pytest.raises(ConfigError, match="1,001 cases, more than 1,000"):
        check_grid(Grid("train", "val", {"seed": list(range(1001))}, contexts="1"))
    check_grid(Grid("train", "val", {"seed": [int("9" * 18)]}, contexts="1"))
    with pytest.raises(ConfigError, match="have 1 to 720"):
        check_grid(Grid("train", "val", {"seed": [0]}, contexts="721"))


def test_a_grid_has_all_contexts_and_no_more_data_by_default():
    grid = Grid("train", "val", {"seed": [0]})
    assert (grid.settings, grid.contexts, grid.contexts_seed, grid.validation, grid.bapps) == ({}, "all", 0, None, None)
    assert config_of({}) == config_of({"recipe": "fast"}) != config_of({"recipe": "paper"})


def test_the_summary_is_over_all_contexts_of_all_cases():
    cases = {"a": scores((0.5, 0.75), (0.5, 0.25), change=0.125), "b": scores((0.25, 0.25), (0.75, 1.0), change=0.375)}
    summary = summarize(cases)
    assert {key: summary[key] for key in ("cases", "contexts", "confidence")} == {
        "cases": 2,
        "contexts": 4,
        "confidence": 0.95,
    }
    values = {
        "improved_fraction": [1, 0, 0, 1],  # an equal accuracy is no improvement
        "baseline_accuracy": [0.5, 0.5, 0.25, 0.75],
        "adapted_accuracy": [0.75, 0.25, 0.25, 1.0],
        "worst_adapted_accuracy": [0.25, 0.25],
        "bapps_change": [0.125, 0.375],
    }
    assert summary.keys() == {"cases", "contexts", "confidence", *values}
    for name, expected in values.items():
        mean, low, high = bootstrap(np.array(expected, dtype=np.float64))
        assert summary[name] == {"mean": mean, "low": low, "high": high}
        assert mean == np.mean(expected)
        assert low <= mean <= high
    assert "bapps_change" not in summarize({"a": scores((0.5, 0.75))})


def test_the_interval_holds_95_of_100_resampled_means():
    values = np.arange(10.0)
    _, low, high = bootstrap(values)
    rows = np.random.default_rng(1).choice(values, (100_000, 10)).mean(axis=1)
    assert np.mean(rows < low) == pytest.approx(0.025, abs=0.012)
    assert np.mean(rows > high) == pytest.approx(0.025, abs=0.012)
    assert bootstrap(values) == bootstrap(values) != bootstrap(values, seed=1)


def test_the_table_has_a_row_per_case_and_context(tmp_path):
    cases = {"a,b": scores((0.5, 0.75), (0.5, 0.5)), "c": scores((0.25, 0.125))}
    write_table(tmp_path, cases, {"cases": 2})
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    ranking = ",".join(NAMES)
    assert rows == [
        ["case", "ranking", "baseline_accuracy", "adapted_accuracy", "improved"],
        ["a,b", ranking, "0.5", "0.75", "True"],
        ["a,b", ranking, "0.5", "0.5", "False"],
        ["c", ranking, "0.25", "0.125", "False"],
    ]
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert content["summary"] == {"cases": 2}
    assert [list(map(str, row.values())) for row in content["rows"]] == rows[1:]
