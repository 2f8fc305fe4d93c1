"""Shards of raw images read whole, in order, and their samples picked from memory.

    tar: | header | image | header | image | ...     samples at one distance from each other are the rows of a matrix
         '-- row 0 -------'-- row 1 -------'         a batch is some of its rows: one copy, outside the interpreter

Nearly all of a shard is wanted, in a random order: reading it in its own order is what disks are good at, and on the
way to a batch there is nothing of Python for each sample. A memory map would save a copy and is a tenth faster, but
kills the process when a shard is cut, or its disk fails, meanwhile.
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

from fastdps.loading.members import BLOCK, ShardIndex, are_headers_of, read_member, shard_error
from fastdps.loading.segments import ShardSlice

#: Larger shards are read member by member: their images are larger, too, and take longer than the call for each.
MOST_BYTES = 1 << 27
#: What numpy collects in one go before it goes to its place: little enough to stay in the processor's cache.
CHUNK_BYTES = 1 << 18


def is_read_whole(part: ShardSlice) -> bool:
    """Whether a shard is to be read whole for this part of it: it is small, regular, and at least half of it wanted."""
    index = part.shard_index
    return index.distance is not None and index.end <= MOST_BYTES and 2 * len(part.rows) >= len(index.ids)


class WholeShards:
    """The shards of a segment that are read whole, each while batches are made of the one before."""

    def __init__(self, parts: Sequence[ShardSlice], buffers: Buffers, pool: Executor) -> None:
        self._shards = {p.shard_index.tar: WholeShard(p.shard_index, buffers) for p in parts if is_read_whole(p)}
        self._pool = pool
        self._last: set[Path] = set()  # the shards of the last batch

    def of(self, parts: Sequence[ShardSlice]) -> list[tuple[ShardSlice, WholeShard | None]]:
        """The parts of the next batch and their shards, None for those to be read member by member."""
        tars = {part.shard_index.tar for part in parts}
        for tar in self._last - tars:
            self._shards.pop(tar, None)
        self._last = tars
        return [(part, self._shards.get(part.shard_index.tar)) for part in parts]

    def read_ahead(self) -> bool:
        """Begin to read the shard after those of the last batch, and say whether there is one.

        To be called once that batch has been begun, or none yet.
        """
        in_use = len(self._last & self._shards.keys())  # the others come after them
        for following in itertools.islice(self._shards.values(), in_use, in_use + 1):
            if not following.is_begun:
                following.is_begun = True
                self._pool.submit(following.load)  # what goes wrong there goes wrong again when it is used
            return True
        return False


class WholeShard:
    """A shard in memory, from its first use on. To be used from several threads."""

    def __init__(self, index: ShardIndex, buffers: Buffers) -> None:
        self._index, self._buffers = index, buffers
        self._data: NDArray[np.uint8] | None = None
        self.is_begun = False
        self._lock = threading.Lock()

    def gather(self, rows: NDArray[np.int64], component: int, out: NDArray[np.uint8]) -> None:
        """Copy one component of some samples to `out` (n, size).

        Raises `SampleError` where a tar header is not that of the member the index names, and `ShardError` where the
        tar cannot be read or ends early.
        """
        members = self._members(component)
        is_right = are_headers_of(self._index, rows, component, members[rows, :BLOCK])
        for row in rows[~is_right].tolist():
            with self._index.tar.open("rb", buffering=0) as tar:
                read_member(tar, self._index, row, component)  # says what is wrong
            raise shard_error(self._index.tar.parent, self._index.tar.name, "has changed while it was read")
        step = max(1, CHUNK_BYTES // out.shape[1])
        for start in range(0, len(rows), step):
            out[start : start + step] = members[rows[start : start + step], BLOCK:]

    def _members(self, component: int) -> NDArray[np.uint8]:
        """All members with their headers in front, uint8 (samples, BLOCK + size); a view of the shard."""
        index, data = self._index, self.load()
        shape = len(index.ids), BLOCK + int(index.sizes[0, component])
        offset, distance = int(index.offsets[0, component]) - BLOCK, index.distance or 0
        # The caller uses it before this object, and so the memory, can go away.
        return np.ndarray(shape, np.uint8, buffer=data.data, offset=offset, strides=(distance, 1))

    def load(self) -> NDArray[np.uint8]:
        """The bytes of the shard, read now unless they have been. Raises `ShardError`."""
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
            raise shard_error(tar.parent, tar.name, f"has been cut to {done} bytes; its samples have {len(data)}")
        return data


class Buffers:
    """Arrays of at most `size` bytes; of those that are no longer used, the memory of `most` is kept for the next.

    Fresh memory costs more to get, page by page, than to copy a batch into it.
    An array's memory is free when the array goes away, and that is when nobody holds a tensor made of it by
    `torch.from_numpy`, nor a view of that tensor. To be used from several threads.
    """

    def __init__(self, size: int, most: int) -> None:
        self._size = size
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=most)

    def array(self, size: int) -> NDArray[np.uint8]:
        """An array of undefined content, uint8 (size,). Numpy's own views of it do not keep its memory."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(self._size, np.uint8)
        array = memory[:size]
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array
