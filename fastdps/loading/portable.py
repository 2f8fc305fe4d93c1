"""Loading without DALI: Pillow in a pool of threads, which runs in parallel because decoding releases the GIL.

webdataset decodes the members (see decoding.py), but does not read them: its readers stream whole tars in the
order of a list, so that processes with unequal shards wait for each other, an epoch is not exact, and none can be
resumed. Here every sample is sought by the index instead, in exactly the order that DALI gets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import groupby
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdps.loading.background import one_ahead
from fastdps.loading.decoding import decode_member
from fastdps.loading.members import shard_error
from fastdps.loading.plan import Entry, Segment
from fastdps.loading.spec import Loaded, ReadSpec, dtype_of

PREFETCH_BATCHES = 3
#: More threads than these are slower, not faster, as they wait for the interpreter's lock (16 cores: 4 threads decode
#: 2,600 JPEGs of 256 px a second where 16 decode 1,700; raw 64 px, 2 threads 40,000 where 16 read 20,000).
MAX_DECODING_THREADS = 4
MAX_COPYING_THREADS = 2
_CHUNKS_PER_THREAD = 2  # of a batch, so that a thread with easy images does not wait for one with hard ones


class PortableReader:
    """Reads segments of any set on any device; see `fastdps.loading.spec.Reader`."""

    def __init__(self, spec: ReadSpec) -> None:
        self._spec = spec

    def read(self, segments: Iterator[Segment]) -> Generator[Loaded, None, None]:
        """The batches of the segments, some of them decoded ahead."""
        spec = self._spec
        most = MAX_DECODING_THREADS if spec.raw_shape is None else MAX_COPYING_THREADS
        threads = min(spec.num_threads, most)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="fastdps-decode")
        started: deque[_Pending] = deque()
        try:
            with closing(one_ahead(segments, lambda segment: segment)) as opened:
                for segment in opened:
                    for batch in range(segment.batches):
                        started.append(_Pending(spec, segment, batch, pool, threads))
                        if len(started) > PREFETCH_BATCHES:
                            yield started.popleft().finish()
                while started:
                    yield started.popleft().finish()
        finally:
            pool.shutdown(cancel_futures=True)


class _Pending:
    """A batch that is being decoded: its tensors on the CPU and the tasks that fill them."""

    def __init__(self, spec: ReadSpec, segment: Segment, batch: int, pool: ThreadPoolExecutor, threads: int) -> None:
        self._device = spec.device
        entries = segment.entries(batch)
        first = batch * segment.batch_size
        self._ids = torch.from_numpy(segment.ids[first : first + len(entries)])
        pinned = spec.device.type == "cuda"  # for a copy that does not wait
        self._tensors = {
            c.name: torch.empty(spec.shape(c, len(entries)), dtype=dtype_of(c), pin_memory=pinned)
            for c in spec.components
        }
        arrays = {name: tensor.numpy() for name, tensor in self._tensors.items()}
        chunk = -(-len(entries) // (threads * _CHUNKS_PER_THREAD))
        self._tasks: list[Future[None]] = [
            pool.submit(_fill, arrays, start, entries[start : start + chunk], spec)
            for start in range(0, len(entries), chunk)
        ]

    def finish(self) -> Loaded:
        """Wait for the tasks, raise what they raised, and bring the tensors to the device."""
        for task in self._tasks:
            task.result()
        on_device: dict[str, Tensor] = {
            name: tensor.to(self._device, non_blocking=True) for name, tensor in self._tensors.items()
        }
        return on_device, self._ids


def _fill(arrays: dict[str, NDArray[Any]], start: int, entries: Sequence[Entry], spec: ReadSpec) -> None:
    """Decode the entries of a batch that begin at its position `start` into the batch's arrays."""
    position = start
    for tar_path, of_one_shard in groupby(entries, key=lambda entry: entry.shard_index.tar):
        try:
            tar = tar_path.open("rb", buffering=0)
        except OSError as error:
            raise shard_error(tar_path.parent, tar_path.name, f"cannot be opened: {error}") from error
        with tar:
            for index, row in of_one_shard:
                for component in spec.components:
                    arrays[component.name][position] = decode_member(tar, index, row, component, spec)
                position += 1
