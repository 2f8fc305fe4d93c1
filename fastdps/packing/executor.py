"""Where the work of packing is done: in this process, or in several on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import NamedTuple

from fastdps.datasets.source import Source
from fastdps.errors import FastDPSError
from fastdps.packing.fragment import Fragment, make_fragment
from fastdps.packing.options import PackOptions
from fastdps.packing.plan import Part

#: Parts in flight per worker: memory stays bounded, and a part that takes long keeps no other worker waiting.
IN_FLIGHT = 4

_SIGNALS = {signal.SIGINT, signal.SIGTERM}
#: Windows can keep no signals back.
_CAN_BLOCK = hasattr(signal, "pthread_sigmask")


class Task(NamedTuple):
    """The arguments of `make_fragment`: what a worker is sent."""

    source: Source
    part: Part
    options: PackOptions


def default_workers() -> int:
    """As many as this process may use cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_fragments(tasks: Iterable[Task], workers: int) -> Generator[Fragment, None, None]:
    """The fragments of the tasks, in order, made by `workers` processes, or here if there is one.

    Closing the generator ends the processes; they also end when this process does, however that happens. Raises
    `FastDPSError` when a worker process dies.
    """
    if workers == 1:
        for task in tasks:
            yield make_fragment(*task)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker)
    waiting: deque[Future[Fragment]] = deque()
    try:
        for task in tasks:
            with _signals_kept_back():  # submitting starts processes
                waiting.append(pool.submit(make_fragment, *task))
            if len(waiting) == workers * IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise FastDPSError(
            "a worker process died, most likely for want of memory. Run the same command again with fewer --workers; "
            "finished shards are kept."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _signals_kept_back() -> Iterator[None]:
    """A context in which SIGINT and SIGTERM wait, for this thread and for processes that it starts."""
    if not _CAN_BLOCK:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    """Leave signals, which reach the whole process group, to the parent; end when it ends, even by SIGKILL."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if _CAN_BLOCK:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
