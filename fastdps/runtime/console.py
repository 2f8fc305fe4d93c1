"""Live progress of packing, training and scoring: one display in a terminal, plain lines elsewhere."""

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

Item = TypeVar("Item")
Show = Callable[[dict[str, Any]], None]
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet_mode(quiet: bool) -> Iterator[None]:
    """A context in which, if `quiet`, nothing of this module shows anything."""
    token = _quiet.set(quiet or _quiet.get())
    try:
        yield
    finally:
        _quiet.reset(token)


def is_quiet() -> bool:
    """Whether results are not to be printed either."""
    return _quiet.get()


def print_result(text: str) -> None:
    """Print a result, such as where something is."""
    if not is_quiet():
        print(text, flush=True)


def print_notice(text: str) -> None:
    """Say what is done now, or what became of it, where progress is shown."""
    if not is_quiet():
        print(text, file=sys.stderr, flush=True)


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
    if not enabled or is_quiet():
        yield lambda _: None
    elif not console.is_terminal:
        yield lambda record: print(format_step(record, epochs=epochs), file=console.file, flush=True)
    else:
        with _progress("adapting", console) as progress:
            task = progress.add_task("", total=steps)
            yield lambda record: progress.update(
                task, completed=record["step"], description=format_step(record, epochs=epochs), refresh=True
            )


def track(items: Iterable[Item], *, total: int, what: str, enabled: bool, unit: str = "batches") -> Iterator[Item]:
    """Yield the items, counting them where `enabled`: see `Counter`."""
    with counter(what, unit=unit, enabled=enabled) as count:
        count.start(total)
        for item in items:
            yield item
            count.advance(1)


class Counter:
    """Counts items of a long piece of work: a bar in a terminal, a line every few seconds elsewhere.

    Shows nothing without `progress` and `console`.
    """

    LINE_EVERY_S = 5.0

    def __init__(self, what: str, unit: str, console: Console | None, progress: Progress | None) -> None:
        self._what, self._unit, self._console, self._progress = what, unit, console, progress
        self._total = self._done = self._found = 0
        self._started_s = self._shown_s = time.perf_counter()
        self._task: TaskID | None = None

    def start(self, total: int, found: int = 0) -> None:
        """Begin; `total` is the number of items, `found` that of those which an earlier run has done."""
        self._total, self._done, self._found = total, found, found
        self._started_s = self._shown_s = time.perf_counter()
        if self._progress:
            self._task = self._progress.add_task("", total=total, completed=found)

    def advance(self, items: int) -> None:
        """Count items that are done."""
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
                f"{self._what} {self._done:,}/{self._total:,}  {rate}  {left_s:.0f} s left",
                file=self._console.file,
                flush=True,
            )


@contextmanager
def counter(what: str, *, unit: str, enabled: bool = True) -> Iterator[Counter]:
    """A context that gives a `Counter`, one that shows nothing unless `enabled`."""
    console = Console(stderr=True)
    if not enabled or is_quiet():
        yield Counter(what, unit, None, None)
    elif console.is_terminal:
        with _progress(what, console) as progress:
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
        self._table = Table(title=None if title is None else Text(title, "table.title"), title_justify="left")
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
        Console().print(self._table)


def print_line(*parts: str | Styled, wrap: bool = True) -> None:
    """Print a line of text to the standard output; without `wrap` it is left to the terminal to break it."""
    Console().print(Text.assemble(*map(_text, parts)), soft_wrap=not wrap)


def _text(part: str | Styled) -> Text:
    return Text(part) if isinstance(part, str) else Text(part.text, part.style)
