"""Handlers of the signals that ask a process to stop.

imports       exit at once: nothing has started
commands      unwind, so that incomplete files are removed: SIGTERM raises an exception as Ctrl-C does
training      finishes its step, saves a checkpoint and exits
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

#: Signals of a user, a launcher or a batch system; SLURM can be told to send SIGUSR1 ahead of the time limit.
SIGNALS = tuple(
    number for name in ("SIGINT", "SIGTERM", "SIGUSR1") if (number := getattr(signal, name, None)) is not None
)


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM; it unwinds a command as Ctrl-C does."""


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """Exit on SIGINT and SIGTERM with status 128 + signal number.

    For imports, during which libraries turn a KeyboardInterrupt into other errors, and before any work has started.
    """

    def end(number: int, _: FrameType | None) -> None:
        os.write(2, b"interrupted\n")
        os._exit(128 + number)

    with _handlers_installed({signal.SIGINT: end, signal.SIGTERM: end}):
        yield


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM.

    Not in a process of a distributed job: while it waits for another one in native code, Python runs no handler.
    """

    def raise_terminated(_: int, __: FrameType | None) -> None:
        raise Terminated

    with _handlers_installed({} if "RANK" in os.environ else {signal.SIGTERM: raise_terminated}):
        yield


@contextmanager
def _handlers_installed(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Install handlers of signals that have the default handler; does nothing outside the main thread."""
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    stack.callback(signal.signal, number, signal.signal(number, handler))
        yield


class StopRequest:
    """A request to stop.

    Attributes:
        number: The number of the signal that was received, or 0.
    """

    def __init__(self) -> None:
        self.number = 0

    def set(self, number: int, frame: FrameType | None = None) -> None:  # noqa: ARG002, a signal handler's signature
        """Record a signal; the second one raises `KeyboardInterrupt`."""
        if self.number:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Record `SIGNALS` instead of acting on them; does nothing outside the main thread.

    Yields:
        The request, on which the caller acts.
    """
    request = StopRequest()
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                stack.callback(signal.signal, number, signal.signal(number, request.set))
        yield request
