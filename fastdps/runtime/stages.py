"""Time by stage: how long each part of a training takes, on the CPU or on a GPU.

    with stage("features"): ... --> the running `StageClock` of this thread: seconds by stage, named ranges of a trace
                                '-> nothing if none runs

Times are exclusive: a stage inside another one is not counted for the outer one too. So all stages together, with
`OTHER` for what is in none of them, add up to the time from the first mark to the last.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

#: The stages of a step, in the order of the data flow.
STEP_STAGES = ("load", "copy", "distort", "features", "distances", "heads", "backward", "update")
#: All stages of a training.
STAGES = (*STEP_STAGES, "exchange", "validation", "checkpoint", "log")
#: What is in no stage.
OTHER = "other"

#: Laps that a `StageClock` keeps.
RECENT_LAPS = 40
_LAP = ""
#: Marks from which on `StageClock` adds up those that the device has passed, so that they do not pile up.
_MANY_MARKS = 1_000
Item = TypeVar("Item")
_clock: ContextVar[StageClock | None] = ContextVar("clock", default=None)
_nothing = nullcontext()


def stage(name: str) -> AbstractContextManager[None]:
    """Return a context whose time is counted for a stage, if a `StageClock` runs in this thread.

    Args:
        name: One of `STAGES`.

    Example:
        >>> clock = StageClock(torch.device("cpu"))
        >>> with clock.running(), stage("features"):
        ...     total = torch.ones(8).sum()
        >>> list(clock.seconds())
        ['features']
    """
    clock = _clock.get()
    return _nothing if clock is None else clock.stage(name)


def whole_stage(name: str) -> AbstractContextManager[None]:
    """Return a context as `stage` does, whose inner stages are counted for it too."""
    clock = _clock.get()
    return _nothing if clock is None else clock.whole_stage(name)


def staged(name: str, items: Iterable[Item]) -> Iterator[Item]:
    """Yield items; the time in which they are made is counted for a stage."""
    iterator = iter(items)
    while True:
        with stage(name):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


class TimeMark(Protocol):
    """A point in the time of a device: the interface of `torch.cuda.Event` that is used here."""

    def record(self) -> None:
        """Set the mark after all work that has been submitted to the device so far."""
        ...

    def query(self) -> bool:
        """Return whether the device has reached the mark."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has reached the mark."""
        ...

    def elapsed_time(self, end: Self) -> float:
        """Return the milliseconds from this mark to another one."""
        ...


class HostMark:
    """A mark of the CPU, which computes what it submits at once."""

    def __init__(self) -> None:
        self._s = 0.0

    def record(self) -> None:
        """Set the mark to now."""
        self._s = time.perf_counter()

    def query(self) -> bool:
        """Return True."""
        return True

    def synchronize(self) -> None:
        """Do nothing."""

    def elapsed_time(self, end: Self) -> float:
        """Return the milliseconds from this mark to another one."""
        return 1e3 * (end._s - self._s)


class StageClock:
    """Adds up the time of each stage.

    On a GPU a stage ends when its kernels end, which marks in the stream of kernels tell; the host never waits for them
    before `seconds`.

    Args:
        device: The device that computes.

    Attributes:
        label: If set, all time is counted for this name, whatever the stage.
        is_traced: The stages are also ranges of a `torch.profiler` trace.
        laps: The seconds by stage of each of the last `RECENT_LAPS` laps.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._stage = OTHER
        self._seconds: dict[str, float] = {}
        self._last: TimeMark | None = None
        self._pending: deque[tuple[str, TimeMark]] = deque()
        self._since_lap: dict[str, float] = {}
        self._free: list[TimeMark] = []
        self.label: str | None = None
        self.is_traced = False
        self.laps: deque[dict[str, float]] = deque(maxlen=RECENT_LAPS)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the context; `stage` finds this clock in the thread of the caller."""
        token = _clock.set(self)
        self._last = self._mark()
        try:
            yield
        finally:
            self.switch(OTHER)
            self._add_up(wait=True)
            _clock.reset(token)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the context for a stage."""
        before = self.switch(name)
        try:
            with torch.profiler.record_function(name) if self.is_traced else _nothing:
                yield
        finally:
            self.switch(before)

    @contextmanager
    def whole_stage(self, name: str) -> Iterator[None]:
        """Count the time of the context, inner stages included, for a stage."""
        with self.stage(name):
            before, self.label = self.label, self.label or name
            try:
                yield
            finally:
                self.label = before

    def switch(self, name: str) -> str:
        """Count the time from now on for a stage, and return the stage before."""
        before, self._stage = self._stage, name
        if self._last is not None:
            self._pending.append((self.label or before, self._mark()))
            if len(self._pending) >= _MANY_MARKS:
                self._add_up(wait=False)
        return before

    def lap(self) -> None:
        """End a lap, and begin the next."""
        self.switch(self._stage)
        self._pending.append((_LAP, self._mark()))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage that was entered, and of `OTHER`. Waits for the device."""
        self._add_up(wait=True)
        return dict(self._seconds)

    def _mark(self) -> TimeMark:
        mark: TimeMark = self._free.pop() if self._free else self._new_mark()
        mark.record()
        return mark

    def _new_mark(self) -> TimeMark:
        return torch.cuda.Event(enable_timing=True) if self._on_gpu else HostMark()

    def _add_up(self, *, wait: bool) -> None:
        """Add up the marks that the device has passed; `wait` for all of them."""
        if wait and self._pending:
            self._pending[-1][1].synchronize()
        while self._pending and (wait or self._pending[0][1].query()):
            name, mark = self._pending.popleft()
            if name == _LAP:
                self.laps.append(self._since_lap)
                self._since_lap = {}
                self._free.append(mark)
            elif self._last is not None:
                elapsed_s = self._last.elapsed_time(mark) / 1e3
                for seconds in (self._seconds, self._since_lap):
                    seconds[name] = seconds.get(name, 0.0) + elapsed_s
                self._free.append(self._last)
                self._last = mark


class ExchangeWatch:
    """Counts the end of a backward pass, in which processes wait for each other's gradients, for the stage "exchange".

    The exchange of the first gradients overlaps with the computation of the others. What takes time is the rest, after
    the last gradient of a process.

    Args:
        clock: The clock.
        module: The module whose gradients are exchanged.
    """

    def __init__(self, clock: StageClock, module: nn.Module) -> None:
        self._clock = clock
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._missing = self._all = len(parameters)
        self._handles = [parameter.register_post_accumulate_grad_hook(self._arrived) for parameter in parameters]

    def begin(self) -> None:
        """Expect all gradients: a step begins."""
        self._missing = self._all

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def _arrived(self, _: Tensor) -> None:
        self._missing -= 1
        if not self._missing:
            self._clock.switch("exchange")
            self.begin()
