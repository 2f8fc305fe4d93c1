"""Arrays that are kept during a training: in memory, or in a file that is mapped into memory."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastdps.runtime.files import write_errors

Place = Literal["memory", "disk"]


def kept_array(shape: tuple[int, ...], dtype: DTypeLike, place: Place, directory: Path | None) -> NDArray[Any]:
    """Return an array whose content is undefined, in memory or in a file without a name.

    Args:
        shape: The shape of the array.
        dtype: The type of its elements.
        place: "memory" or "disk".
        directory: Directory of the file, created if it is missing; None for the system's temporary directory.

    Raises:
        FastDPSError: The disk is full.
    """
    if place == "memory":
        return np.empty(shape, dtype)
    with write_errors(Path(directory or tempfile.gettempdir())):
        return map_file(shape, directory, dtype)


def map_file(
    shape: tuple[int, ...], directory: Path | None, dtype: DTypeLike = np.float32
) -> np.memmap[Any, np.dtype[Any]]:
    """Return an array in a file without a name, which disappears with this process.

    Args:
        shape: The shape of the array.
        directory: Directory of the file, created if it is missing; None for the system's temporary directory.
        dtype: The type of its elements.

    Raises:
        OSError: The disk is full.
    """
    if directory:
        directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory, prefix="fastdps-kept-") as file:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if hasattr(os, "posix_fallocate"):  # on Linux
            os.posix_fallocate(file.fileno(), 0, size)  # fails now if the disk is full
        return np.memmap(file, dtype, mode="r+", shape=shape)
