"""Signals that ask a training to stop: it finishes its step, saves a checkpoint and ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: What ends a job: a user, a launcher or a batch system, and what SLURM can be told to send ahead of time.
SIGNALS = tuple(
    number for name in ("SIGINT", "SIGTERM", "SIGUSR1") if (number := getattr(signal, name, None)) is not None
)


class StopRequest:
    """Whether a signal has come: `number` is the last one, or 0."""

    def __init__(self) -> None:
        self.number = 0

    def set(self, number: int, frame: FrameType | None = None) -> None:  # noqa: ARG002, a signal handler's signature
        """Take note of a signal; the second one ends the process at once."""
        if self.number:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """A context in which `SIGNALS` are only taken note of. Outside of the main thread no signals arrive."""
    request = StopRequest()
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                stack.callback(signal.signal, number, signal.signal(number, request.set))
        yield request
