"""Memory for batches that is used again: fresh memory costs more to get, page by page, than to copy a batch into it."""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray


class Buffers:
    """Arrays of at most `size` bytes; of those that are no longer used, the memory of `most` is kept for the next.

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
