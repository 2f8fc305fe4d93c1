"""Files and locks of the shard cache: which tars it holds, who uses them, which may be evicted.

Readers hold a shared flock on a finished tar. The process that downloads a shard holds an exclusive flock on its
partial file. The operating system drops both when a process ends, also when it is killed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastdps.runtime.files import PARTIAL, write_errors
from fastdps.runtime.locks import is_same_file


@dataclass(frozen=True)
class CachedTar:
    """A tar in the cache, finished or partial.

    Attributes:
        path: The tar.
        bytes: Its size.
        used_ns: Time of the last use, in ns since the epoch.
    """

    path: Path
    bytes: int
    used_ns: int

    def evict(self) -> bool:
        """Remove the tar and its index unless a process holds a lock on it; return True if they are gone."""
        import fcntl

        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            self.path.with_suffix(".idx").unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            return True
        finally:
            os.close(descriptor)


def list_tars(directory: Path) -> Iterator[CachedTar]:
    """Yield the tars of all sets in a cache directory."""
    for path in (*directory.glob("*/*.tar"), *directory.glob(f"*/*.tar{PARTIAL}")):
        with contextlib.suppress(FileNotFoundError):
            state = path.stat()
            yield CachedTar(path, state.st_size, state.st_atime_ns)


def open_shared(tar: Path, size: int) -> int | None:
    """Open a finished shard under a shared lock and record the time of use.

    A tar that is not `size` bytes large, or has no index, was damaged by someone else and is removed.

    Returns:
        A descriptor that holds the lock until it is closed, or None if the shard is not in the cache.
    """
    import fcntl

    try:
        descriptor = os.open(tar, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        state = os.fstat(descriptor)
        if is_same_file(tar, descriptor):
            if state.st_size == size and tar.with_suffix(".idx").exists():
                os.utime(descriptor, ns=(time.time_ns(), state.st_mtime_ns))  # the access time orders evictions
                return descriptor
            tar.unlink()
    except BlockingIOError:  # it is being evicted, or its downloader has not yet released the exclusive lock
        pass
    os.close(descriptor)
    return None


@contextmanager
def open_partial(tar: Path) -> Iterator[int | None]:
    """Open the partial file of a shard under an exclusive lock; remove the file if the context raises.

    Yields:
        The descriptor, or None if another process is downloading the shard or has just finished.
    """
    import fcntl

    path = partial_path(tar)
    with write_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        if not is_same_file(path, descriptor):  # renamed or removed since it was opened
            yield None
            return
        if tar.exists():  # finished before we opened it, and still locked by its downloader when `open_shared` looked
            path.unlink()
            yield None
            return
        try:
            yield descriptor
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    finally:
        os.close(descriptor)


@contextmanager
def cache_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a cache directory: no other thread or process adds, renames or evicts files meanwhile."""
    import fcntl

    path = directory / "lock"
    with write_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def partial_path(tar: Path) -> Path:
    """Return the path of a shard that is being downloaded."""
    return tar.with_name(tar.name + PARTIAL)
