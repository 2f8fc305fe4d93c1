"""Loading without DALI, with threads: they run in parallel while the work is done outside Python's lock.

    raw images     --whole.py: a shard at once----> its rows into a batch-----------------> the device
    JPEG, PNG, ... --members.py: read one by one--> decoding.py: into a batch, in chunks--> the device

webdataset decodes (see decoding.py) but does not read. Its readers stream complete tars in the order of a list, so
processes with unequal shards wait for each other, epochs are not exact, and none can be resumed. Here every sample is
located by the index, in the same order that DALI reads.

Up to `PREFETCH_BATCHES` batches are being made while the caller uses one.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdps.loading.background import BackgroundMap
from fastdps.loading.checks import check_votes
from fastdps.loading.decoding import decode_member
from fastdps.loading.members import read_members, shard_error
from fastdps.loading.segments import SampleRef, Segment, ShardSlice
from fastdps.loading.spec import Component, Loaded, ReadSpec, dtype_of
from fastdps.loading.whole import MAX_SHARD_BYTES, Buffers, WholeShard, WholeShards
from fastdps.runtime.stages import stage
from fastdps.shards.images import scale_for

_Opened = BackgroundMap[Segment, tuple[Segment, WholeShards]]

PREFETCH_BATCHES = 4
#: More threads only wait for the interpreter's lock. An image takes about 0.03 ms with the lock held, whatever its
#: size; without the lock a full-size JPEG takes 1 ms, and one of 64 px 0.03 ms.
MAX_SCALING_THREADS = 8
MAX_DECODING_THREADS = 4
#: Memory bandwidth is the limit of copying.
MAX_COPYING_THREADS = 2
#: From this number of threads DALI, which decodes at full size at 0.6 times the rate of a thread here, is faster than
#: `MAX_SCALING_THREADS` at reduced scale.
DALI_IS_FASTER_FROM_THREADS = 13
_CHUNKS_PER_THREAD = 2  # of a batch, so that a thread with small images does not wait for one with large images


def is_faster_than_dali(spec: ReadSpec) -> bool:
    """Return whether this loader is faster: on a CPU, for images that are copied or decoded at reduced scale."""
    if spec.device.type != "cpu":
        return False
    return spec.is_stored_as_wanted or (_may_scale(spec) and spec.num_threads < DALI_IS_FASTER_FROM_THREADS)


def _may_scale(spec: ReadSpec) -> bool:
    """Return whether JPEGs are decoded at reduced scale, or may be because their sizes vary."""
    has_jpegs = any("jpg" in component.extensions for component in spec.components)
    return has_jpegs and (spec.stored_size is None or scale_for(*spec.stored_size, spec.size) > 1)


def _threads(spec: ReadSpec) -> int:
    if spec.is_stored_as_wanted:
        return min(spec.num_threads, MAX_COPYING_THREADS)
    return min(spec.num_threads, MAX_SCALING_THREADS if _may_scale(spec) else MAX_DECODING_THREADS)


class PortableReader:
    """Reads segments of any set to any device; see `fastdps.loading.spec.Reader`."""

    def __init__(self, spec: ReadSpec) -> None:
        self._spec = spec
        self._buffers = {c.name: Buffers(spec.bytes(c, spec.batch_size), PREFETCH_BATCHES + 2) for c in spec.components}
        # The current shard, the next, and the last one of the segment before.
        self._shards = Buffers(MAX_SHARD_BYTES, most=3)

    def read(self, segments: Iterator[Segment]) -> Generator[Loaded, None, None]:
        """Yield the batches of the segments, prefetched."""
        threads = _threads(self._spec)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="fastdps-load")
        started: deque[_PortableBatch] = deque()
        try:
            with closing(BackgroundMap(segments, lambda s: (s, WholeShards(s.slices, self._shards, pool)))) as opened:
                for segment, shards in opened:
                    for batch in self._started(segment, shards, opened, pool, threads):
                        started.append(batch)
                        if len(started) > PREFETCH_BATCHES:
                            yield started.popleft().finish()
                    while started and not opened.is_ready:  # it may be waiting for room that these batches' shards hold
                        yield started.popleft().finish()
                while started:
                    yield started.popleft().finish()
        finally:
            pool.shutdown(cancel_futures=True)

    def _started(
        self, segment: Segment, shards: WholeShards, opened: _Opened, pool: ThreadPoolExecutor, threads: int
    ) -> Iterator[_PortableBatch]:
        """Yield the batches of a segment, each started when it is requested."""
        spec = self._spec
        for number in range(segment.batches):
            ids = segment.batch_ids(number)
            batch = _PortableBatch(spec, ids, self._buffers)
            if spec.is_stored_as_wanted:
                batch.start(pool, _copy, shards.of(segment.batch_slices(number)), 0)
                if not shards.prefetch() and (following := opened.peek()):
                    following[1].prefetch()
            else:
                samples = segment.samples(number)
                chunk = -(-len(ids) // (threads * _CHUNKS_PER_THREAD))
                for start in range(0, len(ids), chunk):
                    batch.start(pool, _decode, samples[start : start + chunk], start)
            yield batch


class _PortableBatch:
    """A batch that is being made: its tensors on the CPU and the tasks that fill them."""

    def __init__(self, spec: ReadSpec, ids: NDArray[np.int64], buffers: Mapping[str, Buffers]) -> None:
        self._spec, self._ids = spec, torch.from_numpy(ids)
        self._tensors = {c.name: _tensor(spec, c, len(ids), buffers[c.name]) for c in spec.components}
        self._tasks: list[Future[None]] = []

    def start(self, pool: ThreadPoolExecutor, fill: Callable[..., None], samples: Sequence[Any], start: int) -> None:
        """Submit a task that fills the arrays of the batch from row `start` on."""
        arrays = {name: tensor.numpy() for name, tensor in self._tensors.items()}
        self._tasks.append(pool.submit(fill, arrays, start, samples, self._spec))

    def finish(self) -> Loaded:
        """Wait for the tasks, raise their errors, and return the tensors on the device."""
        for task in self._tasks:
            task.result()
        for component in self._spec.components:
            if component.is_scalar:
                check_votes(self._tensors[component.name], self._ids, component, self._spec)
        device = self._spec.device
        with stage("copy"):
            return {name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors.items()}, self._ids


def _tensor(spec: ReadSpec, component: Component, n: int, buffers: Buffers) -> Tensor:
    """Return an uninitialised batch of a component on the CPU."""
    shape, dtype = spec.shape(component, n), dtype_of(component)
    if spec.device.type == "cuda":
        return torch.empty(shape, dtype=dtype, pin_memory=True)  # for an asynchronous copy; torch caches these
    return torch.from_numpy(buffers.array(spec.bytes(component, n))).view(dtype).view(shape)


def _copy(
    arrays: dict[str, NDArray[Any]], start: int, parts: Sequence[tuple[ShardSlice, WholeShard | None]], spec: ReadSpec
) -> None:
    """Copy the members of a batch, slice by slice, into the arrays of the batch from row `start` on."""
    for (index, rows), whole in parts:
        stop = start + len(rows)
        outs = [arrays[c.name][start:stop].reshape(len(rows), -1).view(np.uint8) for c in spec.components]
        if whole is not None:
            for component, out in zip(spec.components, outs, strict=True):
                whole.gather(rows, component.place, out)
        else:
            with _opened(index.tar) as tar:
                for component, out in zip(spec.components, outs, strict=True):
                    read_members(tar, index, rows, component.place, out)
        start = stop


def _decode(arrays: dict[str, NDArray[Any]], start: int, samples: Sequence[SampleRef], spec: ReadSpec) -> None:
    """Decode samples into the arrays of a batch from row `start` on."""
    target = start
    for path, of_one_shard in itertools.groupby(samples, key=lambda sample: sample.shard_index.tar):
        with _opened(path) as tar:
            for index, row in of_one_shard:
                for component in spec.components:
                    arrays[component.name][target] = decode_member(tar, index, row, component, spec)
                target += 1


def _opened(tar: Path) -> BinaryIO:
    try:
        return tar.open("rb", buffering=0)
    except OSError as error:
        raise shard_error(tar.parent, tar.name, f"cannot be opened: {error}") from error
