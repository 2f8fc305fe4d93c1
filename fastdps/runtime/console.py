"""Console output: results, notices and progress. Live displays in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from fastdps.runtime.files import printable
from fastdps.runtime.progress_line import TrainingStatus, plain_line, progress_line

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


class _TrainingLine(ProgressColumn):
    """One line with all that is known of a training, as much as fits into the terminal."""

    def __init__(self, status: TrainingStatus, console: Console) -> None:
        super().__init__()
        self._status, self._console = status, console

    def render(self, task: Task) -> Text:
        """Return the line."""
        return Text(progress_line(self._status, task.time_remaining, self._console.width), no_wrap=True)


@contextmanager
def training_display(*, steps: int, epochs: int, enabled: bool) -> Iterator[Show]:
    """Show the progress of a training.

    Args:
        steps: The steps of the training.
        epochs: The epochs of the training.
        enabled: False to show nothing.

    Yields:
        A function that shows a record of the log, of the event "step" or "validation".
    """
    console, status = Console(stderr=True), TrainingStatus(steps, epochs)
    if not enabled or is_quiet():
        yield lambda _: None
    elif not console.is_terminal:

        def show_line(record: dict[str, Any]) -> None:
            status.update(record)
            print(plain_line(status, record), file=console.file, flush=True)

        yield show_line
    else:
        with Progress(_TrainingLine(status, console), console=console, speed_estimate_period=60) as progress:
            task = progress.add_task("", total=steps)

            def show(record: dict[str, Any]) -> None:
                status.update(record)
                progress.update(task, completed=status.step.get("step", 0), refresh=True)

            yield show


def track(items: Iterable[Item], *, total: int, what: str, enabled: bool, unit: str = "batches") -> Iterator[Item]:
    """Yield the items and show how many were processed.

    Args:
        items: The items.
        total: Their number.
        what: What is being done, the label of the display.
        enabled: False to show nothing.
        unit: What the items are; "" to show no rate.
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
        rate = _rate(items_per_s, self._unit)
        if self._progress and self._task is not None:
            self._progress.update(self._task, completed=self._done, description=rate)
        elif self._console and (now_s - self._shown_s >= self.LINE_EVERY_S or self._done == self._total):
            self._shown_s = now_s
            left_s = (self._total - self._done) / max(items_per_s, 1e-9)
            parts = [f"{printable(self._what)} {self._done:,}/{self._total:,}", rate, f"{left_s:.0f} s left"]
            print("  ".join(part for part in parts if part), file=self._console.file, flush=True)


def _rate(items_per_s: float, unit: str) -> str:
    """Return a rate as text, "" without a unit and where an item takes longer than ten seconds."""
    if items_per_s < 0.1 or not unit:
        return ""
    return f"{items_per_s:,.0f} {unit}/s" if items_per_s >= 10 else f"{items_per_s:.1f} {unit}/s"


@contextmanager
def counter(what: str, *, unit: str, enabled: bool = True) -> Iterator[Counter]:
    """Create a `Counter` for the context.

    Args:
        what: What is being done, the label of the display.
        unit: What the items are; "" to show no rate.
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
    """A column of a table: its heading, right-aligned for numbers; words that are too long are folded, or cut."""

    heading: str = ""
    right: bool = False
    fold: bool = False


class TextTable:
    """A table for the terminal. Names and paths in its cells are never taken for markup.

    In a narrow terminal text is wrapped, and numbers keep all of their digits.
    """

    def __init__(self, columns: Sequence[Column], title: str | None = None) -> None:
        self._columns, self._title = columns, title
        self._rows: list[tuple[list[Text], str | None]] = []
        self._ends_section: set[int] = set()

    def add_row(self, *cells: str | Styled, style: str | None = None) -> None:
        """Add a row; `style` applies to all of it."""
        self._rows.append((list(map(_text, cells)), style))

    def add_section(self) -> None:
        """Draw a line below the rows so far."""
        self._ends_section.add(len(self._rows) - 1)

    def print(self) -> None:
        """Print the table to the standard output."""
        output = _Output()
        table = self._table({})
        if output.measure(table, options=output.options.update_width(10_000)).maximum > output.width:
            widths = {n: self._narrowest(n) for n, column in enumerate(self._columns) if column.right}
            table = self._table(widths)
        output.print(table)

    def _narrowest(self, number: int) -> int:
        """Return the width of a column in which neither a number nor a word of the heading is broken."""
        words = [*self._columns[number].heading.split(), *(cells[number].plain for cells, _ in self._rows)]
        return max(map(len, words), default=1)

    def _table(self, widths: Mapping[int, int]) -> Table:
        title = None if self._title is None else Text(printable(self._title), "table.title")
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(self._columns):
            table.add_column(
                Text(column.heading),
                justify="right" if column.right else "left",
                overflow="fold" if column.fold or column.right else "ellipsis",
                width=widths.get(number),
            )
        for number, (cells, style) in enumerate(self._rows):
            table.add_row(*cells, style=style, end_section=number in self._ends_section)
        return table


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
