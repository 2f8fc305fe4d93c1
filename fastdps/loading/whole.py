"""Read shards of raw images sequentially into memory and gather batches from there.

    tar: | header | image | header | image | ...     equally spaced samples are the rows of a matrix
         '-- row 0 -------'-- row 1 -------'         a batch is some of its rows: one copy, outside the interpreter

Nearly all of a shard is needed, in random order. Disks are fast at sequential reads, and no Python code runs per
sample. A memory map would save a copy and is 10 % faster, but kills the process if a shard is truncated, or its disk
fails, meanwhile.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastdps.loading.members import ShardIndex, match_headers, read_member, shard_error
from fastdps.loading.segments import ShardSlice
from fastdps.shards.tar_headers import BLOCK

#: Larger shards are read member by member: their images are larger, so the call per member matters less.
MAX_SHARD_BYTES = 1 << 27
#: Bytes that numpy gathers before it copies them to their place: few enough to stay in the processor's cache.
CHUNK_BYTES = 1 << 18


def is_read_whole(part: ShardSlice) -> bool:
    """Return whether to read a shard completely for this part: it is small, regular, and at least half is needed."""
    index = part.shard_index
    return index.stride is not None and index.end <= MAX_SHARD_BYTES and 2 * len(part.rows) >= len(index.ids)


class WholeShards:
    """The shards of a segment that are read completely, each while batches are made of the one before."""

    def __init__(self, parts: Sequence[ShardSlice], buffers: Buffers, pool: Executor) -> None:
        self._shards = {p.shard_index.tar: WholeShard(p.shard_index, buffers) for p in parts if is_read_whole(p)}
        self._pool = pool
        self._last: set[Path] = set()  # the shards of the last batch

    def of(self, parts: Sequence[ShardSlice]) -> list[tuple[ShardSlice, WholeShard | None]]:
        """Return the parts of the next batch and their shards, None for shards to be read member by member."""
        tars = {part.shard_index.tar for part in parts}
        for tar in self._last - tars:
            self._shards.pop(tar, None)
        self._last = tars
        return [(part, self._shards.get(part.shard_index.tar)) for part in parts]

    def prefetch(self) -> bool:
        """Start to read the shard after those of the last batch; return whether there is one.

        Call it after that batch was started, or before the first.
        """
        in_use = len(self._last & self._shards.keys())  # the others come after them
        for following in itertools.islice(self._shards.values(), in_use, in_use + 1):
            if not following.is_started:
                following.is_started = True
                self._pool.submit(following.load)  # an error there is raised again when the shard is used
            return True
        return False


class WholeShard:
    """A shard that is read into memory on first use. Thread-safe."""

    def __init__(self, index: ShardIndex, buffers: Buffers) -> None:
        self._index, self._buffers = index, buffers
        self._data: NDArray[np.uint8] | None = None
        self.is_started = False
        self._lock = threading.Lock()

    def gather(self, rows: NDArray[np.int64], component: int, out: NDArray[np.uint8]) -> None:
        """Copy one component of n samples to `out` (n, size).

        Raises:
            SampleError: A tar header does not belong to the member in the index.
            ShardError: The tar cannot be read or ends early.
        """
        members = self._members(component)
        is_valid = match_headers(self._index, rows, component, members[rows, :BLOCK])
        for row in rows[~is_valid].tolist():
            with self._index.tar.open("rb", buffering=0) as tar:
                read_member(tar, self._index, row, component)  # raises the error
            raise shard_error(self._index.tar.parent, self._index.tar.name, "has changed while it was read")
        step = max(1, CHUNK_BYTES // out.shape[1])
        for start in range(0, len(rows), step):
            out[start : start + step] = members[rows[start : start + step], BLOCK:]

    def _members(self, component: int) -> NDArray[np.uint8]:
        """Return all members with their headers, uint8 (samples, BLOCK + size), as a view of the shard."""
        index, data = self._index, self.load()
        shape = len(index.ids), BLOCK + int(index.sizes[0, component])
        offset, stride = int(index.offsets[0, component]) - BLOCK, index.stride or 0
        # The view is used only while this object, and so the memory, exists.
        return np.ndarray(shape, np.uint8, buffer=data.data, offset=offset, strides=(stride, 1))

    def load(self) -> NDArray[np.uint8]:
        """Return the bytes of the shard, read on the first call. Raises `ShardError`."""
        with self._lock:
            if self._data is None:
                self._data = self._read()
            return self._data

    def _read(self) -> NDArray[np.uint8]:
        tar, data = self._index.tar, self._buffers.array(self._index.end)
        done = 0
        try:
            with tar.open("rb", buffering=0) as file:
                while done < len(data) and (more := file.readinto(data[done:].data)):
                    done += more
        except OSError as error:
            raise shard_error(tar.parent, tar.name, f"cannot be read: {error}") from error
        if done < len(data):
            raise shard_error(tar.parent, tar.name, f"is truncated to {done} bytes; its samples need {len(data)}")
        return data


class Buffers:
    """A pool of arrays whose memory is reused. Thread-safe.

    Allocating fresh memory, page by page, takes longer than copying a batch into it. The memory of an array is reused
    once the array is freed: when no tensor made of it by `torch.from_numpy`, nor a view of one, exists any more.

    Args:
        size: The largest array in bytes.
        most: The number of unused arrays to keep.
    """

    def __init__(self, size: int, most: int) -> None:
        self._size = size
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=most)

    def array(self, size: int) -> NDArray[np.uint8]:
        """Return an uninitialised array, uint8 (size,). Numpy views of it do not keep its memory from being reused."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(self._size, np.uint8)
        array = memory[:size]
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array
