"""Evaluations that are interrupted while they write: scores are never shown with details of another evaluation."""

import json
from pathlib import Path

import pytest
import torch

from fastdps.contexts.distortions import NAMES
from fastdps.evaluation import evaluate, examples
from fastdps.evaluation.examples import Details, Example
from fastdps.evaluation.run_scores import ContextScore, RunScores, ScoreSummary
from fastdps.report.reading import read_run
from fastdps.run_directory import RunDirectory
from fastdps.run_log import Throughput
from helpers.made_up_runs import make_run


class CrashError(Exception):
    """What ends an evaluation in these tests."""


def results(accuracy: float) -> tuple[RunScores, Details]:
    """Return scores and details whose values are all `accuracy`."""
    context = ContextScore(NAMES, accuracy, accuracy)
    scores = RunScores(
        "alexnet", "lin", "spatial", "fast", Throughput(), (context,), ScoreSummary(1, 0.0, accuracy, accuracy)
    )
    entry = {**context.to_dict(), "searched": 1, "wrong": []}
    held_out = {"shards": "val", "samples": 1, "draws": 1, "sha256": str(accuracy)}
    examples = [Example(entry, {f"0-{accuracy}.png".replace(".", "", 1): torch.ones(3, 8, 8)})]
    legend = Example({"sample": 0, "reference": "legend-0.png", "views": []}, {"legend-0.png": torch.ones(3, 8, 8)})
    return scores, Details(held_out, [], examples, legend)


def found(run: RunDirectory) -> tuple[float | None, str | None]:
    """Return which scores and which details the files hold, without the report's own comparison."""
    scores = json.loads(run.scores.read_text()) if run.scores.exists() else None
    details = json.loads(run.details.read_text()) if run.details.exists() else None
    return (
        scores and scores["contexts"][0]["adapted_accuracy"],
        details and details["held_out"]["sha256"],
    )


def crash_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """Raise `CrashError` before the n-th file operation."""
    done = 0

    def counted(function):
        def call(*arguments, **options):
            nonlocal done
            done += 1
            if done == number:
                raise CrashError
            return function(*arguments, **options)

        return call

    for name in ("replace", "unlink", "mkdir"):
        patch.setattr(Path, name, counted(getattr(Path, name)))
    patch.setattr(examples.shutil, "rmtree", counted(examples.shutil.rmtree))


def test_a_crash_at_any_moment_never_mixes_two_evaluations(tmp_path):
    run = RunDirectory(make_run(tmp_path / "run", [list(NAMES)], scored=False, bapps=False))
    evaluate._write(run, *results(0.25))
    seen = [found(run)]
    for number in range(1, 100):
        evaluate._write(run, *results(0.25))
        assert found(run) == (0.25, "0.25")
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, number)
            try:
                evaluate._write(run, *results(0.75))
                break
            except CrashError:
                seen.append(found(run))
        record = read_run(run.path)
        shown = record.scores["contexts"][0]["adapted_accuracy"]
        assert record.details is None or record.details["held_out"]["sha256"] == str(shown)
    assert number > 5
    assert set(seen) == {(0.25, "0.25"), (0.25, None), (0.75, None)}
    assert found(run) == (0.75, "0.75")
    assert {path.name for path in run.examples.iterdir()} == {"0-075.png", "legend-0.png"}


def test_the_next_evaluation_removes_partial_files(tmp_path):
    run = RunDirectory(make_run(tmp_path / "run", [list(NAMES)]))
    for name in ("scores.json.0123.partial", "details.json.0123.partial", "examples/0-7.png.0123.partial"):
        (run.path / name).write_text("{")
    evaluate._write(run, *results(0.75))
    assert not list(run.path.rglob("*.partial"))


def test_human_judgements_keep_the_details(tmp_path):
    run = RunDirectory(make_run(tmp_path / "run", [list(NAMES)]))
    scores, details = results(0.25)
    evaluate._write(run, scores, details)
    evaluate._write(run, scores, None)
    assert found(run) == (0.25, "0.25")


def test_details_that_an_earlier_version_left_are_not_shown(tmp_path):
    run = RunDirectory(make_run(tmp_path / "run", [list(NAMES)]))
    evaluate._write(run, *results(0.25))
    assert read_run(run.path).details is not None
    details = run.details.read_text()
    evaluate._write(run, *results(0.75))
    run.details.write_text(details)
    assert read_run(run.path).details is None
    run.scores.unlink()
    assert read_run(run.path).details is None
