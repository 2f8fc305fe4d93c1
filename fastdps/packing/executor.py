"""Where the work of packing is done: an `Executor` takes shards to be packed and gives those that are in place.

Here it is done by processes of this machine, which share the chunks of a shard; in `on_ray.py` by those of a Ray
cluster, a shard for each core.
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

#: Chunks in flight per worker: memory stays bounded, and a chunk that takes long keeps no other worker waiting.
IN_FLIGHT = 4
#: Shards that wait for their upload while the next one is written: room on disk stays bounded.
UPLOADS = 2

_SIGNALS = {signal.SIGINT, signal.SIGTERM}
#: Windows can keep no signals back.
_CAN_BLOCK = hasattr(signal, "pthread_sigmask")


class ChunkTask(NamedTuple):
    """The arguments of `make_fragment`: what a worker is sent."""

    source: Source
    chunk: WorkChunk
    options: PackOptions


class Executor(Protocol):
    """Whoever packs shards."""

    def run(self, works: Sequence[ShardWork], on_chunk: OnChunk) -> Generator[PackedShard, None, None]:
        """Pack the shards and give each once its files are in place, in any order.

        Closing the generator ends the work, and what it was about to write is gone or can be told by its name. Raises
        `FastDPSError` when the work cannot go on.
        """
        ...


class LocalExecutor:
    """Packs with `workers` processes of this machine (default: cores), or in this one if it is one."""

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers or cores()

    def run(self, works: Sequence[ShardWork], on_chunk: OnChunk) -> Generator[PackedShard, None, None]:
        """As in `Executor`, in order. Uploads go on while the next shard is packed."""
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
            'finished shards are kept. A script of your own has to pack below `if __name__ == "__main__":`, since '
            "workers import it."
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
