"""Executors run the work of packing: they take shards to pack, and yield the finished ones.

`LocalExecutor` uses processes of this machine, which share the chunks of a shard. `on_ray.RayExecutor` uses a Ray
cluster, with one shard per core.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, nullcontext
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, Protocol

from fastdps.errors import FastDPSError
from fastdps.packing.fragment import Fragment, make_fragment
from fastdps.packing.options import PackOptions
from fastdps.packing.plan import WorkChunk
from fastdps.packing.sources.source import Source
from fastdps.packing.target import Directory
from fastdps.packing.work import OnChunk, PackedShard, ShardWork, write_shard
from fastdps.runtime.machine import cores

#: Chunks in flight per worker. This bounds the memory, and a slow chunk does not block the other workers.
IN_FLIGHT = 4
#: Shards that wait for their upload while the next one is written. This bounds the disk space.
UPLOADS = 2

_SIGNALS = {signal.SIGINT, signal.SIGTERM}
#: Windows cannot block signals.
_CAN_BLOCK = hasattr(signal, "pthread_sigmask")


class ChunkTask(NamedTuple):
    """The arguments of `make_fragment`, which are sent to a worker process."""

    source: Source
    chunk: WorkChunk
    options: PackOptions


class Executor(Protocol):
    """The interface of an executor."""

    def run(self, works: Sequence[ShardWork], on_chunk: OnChunk) -> Generator[PackedShard, None, None]:
        """Pack the shards, and yield each one once its files are in place, in any order.

        Closing the generator stops the work. Unfinished files are removed, or have the suffix of partial files.

        Args:
            works: The shards to pack.
            on_chunk: Called after each chunk (or shard) with its items and rejects.

        Yields:
            A packed shard and its record.

        Raises:
            FastDPSError: The work cannot continue.
        """
        ...


class LocalExecutor:
    """Packs with processes of this machine.

    Args:
        workers: The number of worker processes, by default one per core. With 1, this process does the work.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers or cores()

    def run(self, works: Sequence[ShardWork], on_chunk: OnChunk) -> Generator[PackedShard, None, None]:
        """Pack as described in `Executor`, in order. Uploads overlap with packing the next shard."""
        tasks = (
            ChunkTask(work.source, chunk, work.options) for work in works for chunk in work.shard.chunks(work.options)
        )
        first = list(islice(tasks, self._workers))
        uploads: deque[Future[PackedShard]] = deque()
        is_remote = any(not isinstance(work.target, Directory) for work in works)
        with (
            TemporaryDirectory(prefix="fastdps-") if is_remote else nullcontext("") as temporary,
            ThreadPoolExecutor(UPLOADS) as uploader,
            closing(make_fragments(chain(first, tasks), max(1, len(first)))) as fragments,
        ):
            try:
                for work in works:
                    written = write_shard(work, fragments, Path(temporary), on_chunk)
                    if isinstance(work.target, Directory):
                        yield written.deliver()
                        continue
                    uploads.append(uploader.submit(written.deliver))
                    while len(uploads) > UPLOADS or (uploads and uploads[0].done()):
                        yield uploads.popleft().result()
                while uploads:
                    yield uploads.popleft().result()
            finally:
                for upload in uploads:
                    upload.cancel()


def make_fragments(tasks: Iterable[ChunkTask], workers: int) -> Generator[Fragment, None, None]:
    """Yield the fragments of the tasks, in order.

    Closing the generator ends the worker processes. They also end when this process ends, even by SIGKILL.

    Args:
        tasks: The chunks to pack.
        workers: The number of worker processes. With 1, this process does the work.

    Yields:
        One fragment per task.

    Raises:
        FastDPSError: A worker process died.
    """
    if workers == 1:
        for task in tasks:
            yield make_fragment(*task)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker)
    waiting: deque[Future[Fragment]] = deque()
    try:
        for task in tasks:
            with _signals_blocked():  # submitting starts processes
                waiting.append(pool.submit(make_fragment, *task))
            if len(waiting) == workers * IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise FastDPSError(
            "a worker process died, most likely because memory ran out. Run the same command again with fewer "
            "--workers; finished shards are kept. A script of your own must call `pack` below "
            '`if __name__ == "__main__":`, because the workers import the script.'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block SIGINT and SIGTERM, for this thread and for processes that it starts."""
    if not _CAN_BLOCK:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    """Ignore signals, which reach the whole process group, and exit when the parent process ends, even by SIGKILL."""
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
