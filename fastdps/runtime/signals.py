"""Signals that ask to stop, and what each phase of a command does with them.

imports       end the process at once: nothing has begun
a command     unwinds, so that unfinished files go: Ctrl-C as Python has it, SIGTERM alike
a training    finishes its step, saves a checkpoint and ends
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]

#: What ends a job: a user, a launcher or a batch system, and what SLURM can be told to send ahead of time.
SIGNALS = tuple(
    number for name in ("SIGINT", "SIGTERM", "SIGUSR1") if (number := getattr(signal, name, None)) is not None
)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which unwinds a command as Ctrl-C does."""


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """A context in which SIGINT and SIGTERM end the process, with 128 + the signal's number.

    For imports, where libraries make errors of their own of a KeyboardInterrupt, and before anything has begun.
    """

    def end(number: int, _: FrameType | None) -> None:
        os.write(2, b"interrupted\n")
        os._exit(128 + number)

    with _handlers_installed({signal.SIGINT: end, signal.SIGTERM: end}):
        yield


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """A context in which SIGTERM raises `Terminated`.

    Not in a process of a job: one that waits for another outside of Python would not hear it.
    """

    def unwind(_: int, __: FrameType | None) -> None:
        raise Terminated

    with _handlers_installed({} if "RANK" in os.environ else {signal.SIGTERM: unwind}):
        yield


@contextmanager
def _handlers_installed(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """A context in which signals that nobody handles are handled. Outside of the main thread none can be."""
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    stack.callback(signal.signal, number, signal.signal(number, handler))
        yield


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
