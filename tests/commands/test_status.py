"""`fastdps status`, and the lines that end a training."""

import json
import os
from pathlib import Path

import pytest

from fastdps.commands.cli import main
from fastdps.commands.summary import summary_lines
from fastdps.contexts.distortions import NAMES
from fastdps.run_directory import RunDirectory
from fastdps.training.recipes import fast
from fastdps.training.run import TrainingResult
from helpers.made_up_runs import make_run, write_log


def status_of(run: Path, capsys) -> str:
    assert main(["status", str(run)]) == 0
    return capsys.readouterr().out


def test_where_a_run_is(tmp_path, capsys):
    run = make_run(tmp_path / "run", [list(NAMES)], scored=False, bapps=False)
    said = status_of(run, capsys)
    assert said.splitlines()[0] == f"{run}: alexnet, lin, recipe fast, 1 context"
    assert "finished\n  not scored\n  next: fastdps evaluate" in said
    (run / "metric.safetensors").unlink()
    said = status_of(run, capsys)
    assert "not finished, and no process trains in it: epoch 1 of 2, step 1,980, accuracy 0.800" in said
    assert f"next: fastdps train --resume {run}" in said
    with RunDirectory(run).locked("training"):
        said = status_of(run, capsys)
    assert f"running, training (process {os.getpid()} on" in said
    assert "next" not in said
    assert not (run / "run.lock").exists()


def test_scores_and_what_comes_next(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    summary = json.loads((run / "scores.json").read_text())["summary"]
    said = status_of(run, capsys)
    assert (
        f"accuracy on held-out images: {summary['baseline_accuracy']:.3f} -> {summary['adapted_accuracy']:.3f}" in said
    )
    assert "agreement with people, 2AFC: 0.700 -> 0.690" in said
    assert f"next: fastdps report {run}" in said
    (run / "report.html").write_text("")
    assert f"report: {run / 'report.html'}" in status_of(run, capsys)
    assert main(["status", str(tmp_path)]) == 1
    assert "is not a run" in capsys.readouterr().err


@pytest.mark.parametrize(("processes", "text"), [(1, "by 1 process:"), (2, "by 2 processes:")])
def test_the_lines_that_end_a_training(tmp_path, processes, text):
    run = make_run(tmp_path / "run", scored=False, bapps=False)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    log[-1] |= {"processes": processes, "elapsed_s": 57.4}
    chosen = {"event": "chosen", "step": 1980, "epochs": [2, 1, 2], "accuracies": [0.7, 0.8, 0.9]}
    write_log(run, [*log, chosen])
    rankings = tuple(map(tuple, json.loads((run / "config.json").read_text())["rankings"]))
    first, second, third = summary_lines(TrainingResult(RunDirectory(run), fast(), rankings))
    assert first == (
        f"Adapted to 24 contexts in 57 s {text} accuracy 0.800 on the training images, 0.800 on the validation images "
        "(epochs 1 to 2 chosen)"
    )
    size = (run / "metric.safetensors").stat().st_size
    assert second == f"Run: {run}; metric: {run / 'metric.safetensors'} ({size / 1e6:.1f} MB)"
    assert third == f"Next: fastdps evaluate {run} --shards HELD_OUT"
