"""The lines that end a training: what was learned, in what time, where it is, and what comes next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fastdps.commands.options import byte_text, counted
from fastdps.report.reading import RunRecord, read_run
from fastdps.training.run import TrainingResult


def summary_lines(result: TrainingResult) -> list[str]:
    """Return the summary of a finished run.

    Raises:
        FastDPSError: A file of the run is damaged.
    """
    record = read_run(result.path)
    ends = [entry for entry in record.log if entry["event"] == "end"]
    first = f"Adapted to {_what(result)}"
    if ends:
        seconds = sum(end.get("elapsed_s", 0.0) for end in ends)
        processes = ends[-1]["processes"]
        took = f" in {_duration(seconds)}" if seconds else ""
        first += f"{took} by {processes} process{'es' if processes > 1 else ''}"
    if accuracy := _accuracy(record.log):
        first += f": {accuracy}"
    metrics = [path for path in record.run.metrics() if path.is_file()]
    size = byte_text(sum(path.stat().st_size for path in metrics))
    place = metrics[0] if len(metrics) == 1 else record.run.metric_of(0).parent
    return [first, f"Run: {result.path}; metric: {place} ({size})", f"Next: {_next(record)}"]


def _what(result: TrainingResult) -> str:
    if result.rankings:
        return counted(len(result.rankings), "context")
    if result.judges:
        return f"the judgements of {counted(len(result.judges), 'judge')}, and to all together"
    return "the judgements"


def _accuracy(log: Sequence[Mapping[str, Any]]) -> str:
    """Return the accuracy of the last steps of the trainings, and the validation accuracy of the chosen epochs."""
    last: dict[int | None, float] = {
        entry.get("context"): entry["accuracy"] for entry in log if entry["event"] == "step"
    }
    parts = [f"accuracy {fmean(last.values()):.3f} on the training images"] if last else []
    if chosen := [entry for entry in log if entry["event"] == "chosen"]:
        accuracies = [value for entry in chosen for value in entry["accuracies"]]
        epochs = sorted({epoch for entry in chosen for epoch in entry["epochs"]})
        which = f"epoch {epochs[0]}" if len(epochs) == 1 else f"epochs {epochs[0]} to {epochs[-1]}"
        parts.append(f"{fmean(accuracies):.3f} on the validation images ({which} chosen)")
    return ", ".join(parts)


def _next(record: RunRecord) -> str:
    return record.evaluate_command if record.has_contexts or record.has_judgement_set else record.bapps_command


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
