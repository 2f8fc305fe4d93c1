"""Console output: results, notices and progress. Live displays in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fastdps.runtime.files import printable

Item = TypeVar("Item")
Show = Callable[[dict[str, Any]], None]
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet_mode(quiet: bool) -> Iterator[None]:
    """Suppress all output of this module in the context if `quiet` is true."""
    token = _quiet.set(quiet or _quiet.get())
    try:
        yield
    finally:
        _quiet.reset(token)


def is_quiet() -> bool:
    """Return whether output is suppressed."""
    return _quiet.get()


def print_result(text: str) -> None:
    """Print a result to standard output."""
    if not is_quiet():
        print(printable(text), flush=True)


def print_notice(text: str) -> None:
    """Print a message about the progress of a command to standard error."""
    if not is_quiet():
        print(printable(text), file=sys.stderr, flush=True)


def _progress(console: Console) -> Progress:
    """Return a display whose tasks have a field "label". Labels and descriptions are never taken for markup."""
    return Progress(
        TextColumn("{task.fields[label]}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
    )


def format_step(record: dict[str, Any], *, epochs: int) -> str:
    """Format a "step" record of `log.jsonl` as a line."""
    return (
        f"epoch {record['epoch']}/{epochs}  step {record['step']}  "
        f"{record['images_per_s']:,.0f} images/s  {record['triplets_per_s']:,.0f} context-triplets/s  "
        f"data wait {record['data_wait_fraction']:.1%}  loss {record['loss']:.4f}  accuracy {record['accuracy']:.4f}"
    )


@contextmanager
def training_display(*, steps: int, epochs: int, enabled: bool) -> Iterator[Show]:
    """Show the progress of a training.

    Args:
        steps: The steps of the training.
        epochs: The epochs of the training.
        enabled: False to show nothing.

    Yields:
        A function that shows a "step" record of the log.
    """
    console = Console(stderr=True)
    if not enabled or is_quiet():
        yield lambda _: None
    elif not console.is_terminal:
        yield lambda record: print(format_step(record, epochs=epochs), file=console.file, flush=True)
    else:
        with _progress(console) as progress:
            task = progress.add_task("", total=steps, label="adapting")
            yield lambda record: progress.update(
                task, completed=record["step"], description=format_step(record, epochs=epochs), refresh=True
            )


def track(items: Iterable[Item], *, total: int, what: str, enabled: bool, unit: str = "batches") -> Iterator[Item]:
    """Yield the items and show how many were processed.

    Args:
        items: The items.
        total: Their number.
        what: What is being done, the label of the display.
        enabled: False to show nothing.
        unit: What the items are.
    """
    with counter(what, unit=unit, enabled=enabled) as count:
        count.start(total)
        for item in items:
            yield item
            count.advance(1)


class Counter:
    """Counter of processed items: a progress bar in a terminal, a line every few seconds elsewhere.

    Shows nothing without `progress` and `console`. Use `counter` to create one.
    """

    LINE_EVERY_S = 5.0

    def __init__(self, what: str, unit: str, console: Console | None, progress: Progress | None) -> None:
        self._what, self._unit, self._console, self._progress = what, unit, console, progress
        self._total = self._done = self._found = 0
        self._started_s = self._shown_s = time.perf_counter()
        self._task: TaskID | None = None

    def start(self, total: int, found: int = 0) -> None:
        """Start the clock.

        Args:
            total: The number of items.
            found: The number of items that an earlier run has processed.
        """
        self._total, self._done, self._found = total, found, found
        self._started_s = self._shown_s = time.perf_counter()
        if self._progress:
            self._task = self._progress.add_task("", total=total, completed=found, label=printable(self._what))

    def advance(self, items: int) -> None:
        """Count further items as processed."""
        self._done += items
        now_s = time.perf_counter()
        items_per_s = (self._done - self._found) / max(now_s - self._started_s, 1e-9)
        rate = f"{items_per_s:,.0f} {self._unit}/s"
        if self._progress and self._task is not None:
            self._progress.update(self._task, completed=self._done, description=rate)
        elif self._console and (now_s - self._shown_s >= self.LINE_EVERY_S or self._done == self._total):
            self._shown_s = now_s
            left_s = (self._total - self._done) / max(items_per_s, 1e-9)
            print(
                f"{printable(self._what)} {self._done:,}/{self._total:,}  {rate}  {left_s:.0f} s left",
                file=self._console.file,
                flush=True,
            )


@contextmanager
def counter(what: str, *, unit: str, enabled: bool = True) -> Iterator[Counter]:
    """Create a `Counter` for the context.

    Args:
        what: What is being done, the label of the display.
        unit: What the items are.
        enabled: False to show nothing.
    """
    console = Console(stderr=True)
    if not enabled or is_quiet():
        yield Counter(what, unit, None, None)
    elif console.is_terminal:
        with _progress(console) as progress:
            yield Counter(what, unit, console, progress)
    else:
        yield Counter(what, unit, console, None)


@dataclass(frozen=True)
class Styled:
    """Text in a style of Rich, such as "bold" or "green". Neither it nor a plain string is taken for markup."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, right-aligned for numbers; long text is folded, or kept on one line."""

    heading: str = ""
    right: bool = False
    fold: bool = False
    no_wrap: bool = False


class TextTable:
    """A table for the terminal. Names and paths in its cells are never taken for markup."""

    def __init__(self, columns: Sequence[Column], title: str | None = None) -> None:
        self._table = Table(
            title=None if title is None else Text(printable(title), "table.title"), title_justify="left"
        )
        for column in columns:
            self._table.add_column(
                Text(column.heading),
                justify="right" if column.right else "left",
                overflow="fold" if column.fold else "ellipsis",
                no_wrap=column.no_wrap,
            )

    def add_row(self, *cells: str | Styled, style: str | None = None) -> None:
        """Add a row; `style` applies to all of it."""
        self._table.add_row(*map(_text, cells), style=style)

    def add_section(self) -> None:
        """Draw a line below the rows so far."""
        self._table.add_section()

    def print(self) -> None:
        """Print the table to the standard output."""
        _Output().print(self._table)


def print_line(*parts: str | Styled, wrap: bool = True) -> None:
    """Print a line of text to the standard output; without `wrap` it is left to the terminal to break it."""
    _Output().print(Text.assemble(*map(_text, parts)), soft_wrap=not wrap)


class _Output(Console):
    """The standard output. Rich ends the process when nobody reads it; here the command decides."""

    def on_broken_pipe(self) -> None:
        """Raise the error on."""
        raise BrokenPipeError


def _text(part: str | Styled) -> Text:
    return Text(printable(part)) if isinstance(part, str) else Text(printable(part.text), part.style)
