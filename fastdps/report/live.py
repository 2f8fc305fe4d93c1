"""Live progress of training and scoring: one display in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
Show = Callable[[dict[str, Any]], None]


def _progress(what: str, console: Console) -> Progress:
    return Progress(
        TextColumn(what),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
    )


def format_step(record: dict[str, Any], *, epochs: int) -> str:
    """One line for a "step" record of `log.jsonl`."""
    return (
        f"epoch {record['epoch']}/{epochs}  step {record['step']}  "
        f"{record['images_per_s']:,.0f} images/s  {record['triplets_per_s']:,.0f} context-triplets/s  "
        f"data wait {record['data_wait_fraction']:.1%}  loss {record['loss']:.4f}  accuracy {record['accuracy']:.4f}"
    )


@contextmanager
def training_display(*, steps: int, epochs: int, enabled: bool) -> Iterator[Show]:
    """A context that gives a function to show "step" records with; one that does nothing unless `enabled`."""
    console = Console(stderr=True)
    if not enabled:
        yield lambda _: None
    elif not console.is_terminal:
        yield lambda record: print(format_step(record, epochs=epochs), file=console.file, flush=True)
    else:
        with _progress("adapting", console) as progress:
            task = progress.add_task("", total=steps)
            yield lambda record: progress.update(
                task, completed=record["step"], description=format_step(record, epochs=epochs), refresh=True
            )


def track(items: Iterable[Item], *, total: int, what: str, enabled: bool) -> Iterator[Item]:
    """Yield the items, with a progress bar in a terminal where `enabled`."""
    console = Console(stderr=True)
    if not (enabled and console.is_terminal):
        yield from items
        return
    with _progress(what, console) as progress:
        yield from progress.track(items, total=total, description="")
