"""The line that shows the progress of a training: what matters first, and as much as fits into the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Width of the bar in characters.
_NARROWEST_BAR, _WIDEST_BAR = 6, 24
_FULL, _EMPTY = "\N{BOX DRAWINGS HEAVY HORIZONTAL}", "\N{BOX DRAWINGS LIGHT HORIZONTAL}"
_GAP = "  "


@dataclass
class TrainingStatus:
    """What is known of a running training.

    Attributes:
        steps: Number of its steps.
        epochs: Number of its epochs.
        step: The latest record of the event "step" in the log, empty before the first.
        validation: Mean validation accuracy of the latest epoch that was scored, and of the best one.
        best_epoch: The epoch with the best mean validation accuracy.
    """

    steps: int
    epochs: int
    step: Mapping[str, Any] = field(default_factory=dict)
    validation: tuple[float, float] | None = None
    best_epoch: int = 0

    def update(self, record: Mapping[str, Any]) -> None:
        """Take in a record of the log: of the event "step" or "validation"."""
        if record["event"] == "step":
            self.step = record
        elif record["event"] == "validation":
            mean = sum(record["accuracies"]) / len(record["accuracies"])
            best = mean if self.validation is None else max(mean, self.validation[1])
            if best == mean:
                self.best_epoch = record["epoch"]
            self.validation = mean, best


def progress_line(status: TrainingStatus, left_s: float | None, width: int) -> str:
    """Return the line of a training.

    Args:
        status: What is known of the training.
        left_s: Estimated seconds to its end, None if that is not known yet.
        width: Columns of the terminal.

    Returns:
        Epoch, bar, loss, accuracy and time left; then validation, speed and wait for data, as far as they fit.
    """
    done = status.step.get("step", 0) / max(1, status.steps)
    left = "" if left_s is None else f"{_duration(left_s)} left"
    if not status.step:
        start = "epoch 1/" + str(status.epochs)
        return _GAP.join([start, _bar(done, min(_WIDEST_BAR, max(0, width - len(start) - len(_GAP))))])[:width]
    step = status.step
    parts = [
        f"epoch {step['epoch']}/{status.epochs}",
        f"loss {step['loss']:.3f}",
        f"accuracy {step['accuracy']:.3f}",
        left,
    ]
    parts = [part for part in parts if part]
    optional = [
        _validation(status),
        [f"{step['images_per_s']:,.0f} images/s"],
        [f"wait {step['data_wait_fraction']:.0%}"],
        [f"{step['triplets_per_s']:,.0f} context-triplets/s"],
    ]
    for forms in filter(None, optional):
        fitting = [form for form in forms if _length([*parts, form]) + len(_GAP) + _NARROWEST_BAR <= width]
        if not fitting:
            break
        parts.append(fitting[0])
    bar = min(_WIDEST_BAR, width - _length(parts) - len(_GAP))
    if bar >= _NARROWEST_BAR:
        parts.insert(1, _bar(done, bar))
    return _GAP.join(parts)[:width]


def plain_line(status: TrainingStatus, record: Mapping[str, Any]) -> str:
    """Return a record of the event "step" or "validation" as a line for files and pipes."""
    if record["event"] == "validation":
        return f"epoch {record['epoch']}/{status.epochs}  {_validation(status)[0]}"
    return (
        f"epoch {record['epoch']}/{status.epochs}  step {record['step']}  loss {record['loss']:.4f}  "
        f"accuracy {record['accuracy']:.4f}  {record['images_per_s']:,.0f} images/s  "
        f"{record['triplets_per_s']:,.0f} context-triplets/s  data wait {record['data_wait_fraction']:.1%}"
    )


def _validation(status: TrainingStatus) -> list[str]:
    """Return the validation accuracy with the best epoch so far, and a shorter form; empty before it is known."""
    if status.validation is None:
        return []
    latest, best = status.validation
    short = f"validation {latest:.3f}"
    return [short] if latest == best else [f"{short} (best {best:.3f}, epoch {status.best_epoch})", short]


def _length(parts: list[str]) -> int:
    return len(_GAP.join(parts))


def _bar(done: float, width: int) -> str:
    full = round(min(1.0, done) * width)
    return _FULL * full + _EMPTY * (width - full)


def _duration(seconds: float) -> str:
    """Return a duration as minutes and seconds, or hours and minutes."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}h{minutes % 60:02d}"
