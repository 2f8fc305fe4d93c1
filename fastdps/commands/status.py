"""`fastdps status`: say where runs are: what they adapt to, how far they are, and what comes next."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastdps.commands.options import counted, examples
from fastdps.runtime.console import print_result

if TYPE_CHECKING:
    from fastdps.report.reading import RunRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps status`."""
    parser.epilog = examples("fastdps status runs/photos", "fastdps status runs/*")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories")


def run_status(arguments: argparse.Namespace) -> None:
    """Run `fastdps status`."""
    from fastdps.report.reading import read_run

    for path in arguments.runs:
        for line in status_lines(read_run(path)):
            print_result(line)


def status_lines(record: RunRecord) -> list[str]:
    """Return where a run is: settings, state, scores, and the next command."""
    config = record.config["config"]
    adapted_to = counted(len(record.config["rankings"]), "context") if record.has_contexts else "judgements"
    head = f"{record.run.path}: {config['backbone']}, {config['variant']}, recipe {config['recipe']}, {adapted_to}"
    state, is_finished = _state(record)
    lines = [head, *(f"  trained on {text}" for text in record.mixed_sets), f"  {state}"]
    if not is_finished:
        return lines if record.run.owner is not None else [*lines, f"  next: {record.train_command}"]
    scores = _scores(record)
    lines += [f"  {text}" for text in scores] or ["  not scored"]
    if not scores:
        return [*lines, f"  next: {record.evaluate_command}"]
    if record.run.report.exists():
        return [*lines, f"  report: {record.run.report}"]
    return [*lines, f"  next: fastdps report {record.run.path}"]


def _state(record: RunRecord) -> tuple[str, bool]:
    """Return the state of the training as text, and whether it has ended."""
    run, config = record.run, record.config["config"]
    paths = run.metrics()
    trainings = max(1, len(record.config["rankings"]), len(record.judges or ()))
    per_context = config["variant"] in ("tune", "scratch") and trainings > 1
    done, all_of_them = sum(path.is_file() for path in paths), trainings if per_context else 1
    owner = run.owner
    if done >= all_of_them:
        return (f"finished; in use: {owner}" if owner else "finished"), True
    steps = [entry for entry in record.log if entry["event"] == "step"]
    where = "no step yet"
    if steps:
        last = steps[-1]
        epochs = config.get("epochs", "?")
        where = f"epoch {last.get('epoch', '?')} of {epochs}, step {last['step']:,}, accuracy {last['accuracy']:.3f}"
    if per_context:
        where = f"{done} of {all_of_them} contexts trained; {where}"
    return (f"running, {owner}: {where}" if owner else f"not finished, and no process trains in it: {where}"), False


def _scores(record: RunRecord) -> Sequence[str]:
    """Return the scores of a run, each as a line."""
    lines = []
    if record.scores and (summary := record.scores["summary"]):
        before, after = summary["baseline_accuracy"], summary["adapted_accuracy"]
        seen = record.seen_as("contexts")
        images = "held-out images" if seen is None else f"the {seen} images"
        lines.append(f"accuracy on {images}: {before:.3f} -> {after:.3f}")
    if record.judgements:
        votes = record.judgements["pooled"]["votes"]
        lines.append(f"agreement with votes: {votes['before']['value']:.3f} -> {votes['after']['value']:.3f}")
    average = record.bapps["averages"]["all"] if record.bapps else None
    if average:
        lines.append(f"agreement with people, 2AFC: {average['baseline']:.3f} -> {average['adapted']:.3f}")
    return lines
