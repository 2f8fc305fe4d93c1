"""Where the work of packing is done: in this process, or in several on this machine."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from fastdps.datasets.source import Source
from fastdps.errors import FastDPSError
from fastdps.packing.fragment import Fragment, make_fragment
from fastdps.packing.options import PackOptions
from fastdps.packing.plan import Part

#: Parts in flight per worker: one in work, one waiting, so that memory stays bounded and no worker starves.
IN_FLIGHT = 2


def default_workers() -> int:
    """As many as this process may use cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_fragments(
    source: Source, parts: Iterable[Part], options: PackOptions, workers: int
) -> Generator[Fragment, None, None]:
    """Fragments of the parts, in order, made by `workers` processes, or here if there is one.

    Raises `FastDPSError` when a worker process dies.
    """
    if workers == 1:
        for part in parts:
            yield make_fragment(source, part, options)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_leave_signals_to_parent)
    waiting: deque[Future[Fragment]] = deque()
    try:
        for part in parts:
            waiting.append(pool.submit(make_fragment, source, part, options))
            if len(waiting) == workers * IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise FastDPSError(
            "A worker process died, most likely for want of memory. Run the same command again with fewer --workers; "
            "finished shards are kept."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_signals_to_parent() -> None:
    """Ctrl-C reaches the whole process group; the parent alone decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
