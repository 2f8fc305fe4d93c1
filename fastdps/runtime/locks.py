"""Locks on files and directories. The operating system releases them when their owner ends, also when it is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fastdps.errors import FastDPSError


@contextmanager
def locked(
    path: Path, conflict: Callable[[str], FastDPSError], *, shared: bool = False, owner: str = ""
) -> Iterator[None]:
    """Hold a lock (flock) on a directory or on a lock file, which is created and removed.

    Windows has no such locks, and some network file systems do not support them; nothing is locked there.

    Args:
        path: An existing directory, or the lock file. A symbolic link is refused.
        conflict: Makes the error to raise if the lock is held, from the owner that the lock file names or "".
        shared: Hold it together with other shared holders.
        owner: The text that the lock file holds meanwhile.

    Raises:
        FastDPSError: The error of `conflict`, or the lock file cannot be opened.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    is_directory = path.is_dir()
    while True:
        descriptor = _open(path, is_directory=is_directory)
        try:
            with contextlib.suppress(OSError):  # not supported by the file system
                try:
                    fcntl.flock(descriptor, operation)
                except BlockingIOError:
                    raise conflict(
                        "" if is_directory else os.pread(descriptor, 200, 0).decode(errors="replace")
                    ) from None
            if is_directory or is_same_file(path, descriptor):
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner removed it between our open and our lock
    try:
        if owner:
            with contextlib.suppress(OSError):  # it is only a hint, and the disk may be full
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, owner.encode(), 0)
        yield
    finally:
        if not is_directory:
            with contextlib.suppress(OSError):
                path.unlink()
        os.close(descriptor)


def lock_owner(path: Path) -> str | None:
    """Return the text of the owner of a lock file, None if no process holds the lock."""
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, 200, 0).decode(errors="replace")
    except OSError:  # not supported by the file system
        return None
    finally:
        os.close(descriptor)
    return None


def create_locked(path: Path) -> BinaryIO:
    """Create a file and lock it until it is closed, so that `remove_abandoned` keeps it. Raises `OSError`.

    It must not exist, so a link that someone planted is not followed. Where there are no locks it is only created.
    """
    while True:
        file = path.open("xb")
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        if is_same_file(path, file.fileno()):
            return file
        file.close()  # `remove_abandoned` came between creating and locking it


def remove_abandoned(path: Path) -> None:
    """Remove a file that `create_locked` made unless a process holds its lock. Keeps it where there are no locks."""
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (ImportError, OSError):
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:  # locked by its owner, or removed by another process
        return
    finally:
        os.close(descriptor)


@contextmanager
def temporary_directory(parent: Path, prefix: str) -> Iterator[Path]:
    """Create a directory in another one, and remove it at the end.

    A process that was killed leaves its directory; the next call with the same parent and prefix removes it. Those of
    running processes are locked. Where there are no locks, abandoned ones stay.

    Args:
        parent: An existing directory.
        prefix: The beginning of the name.

    Yields:
        The directory.

    Raises:
        OSError: It cannot be created.
    """
    for name in os.listdir(parent):
        if name.startswith(prefix):
            with _locked_directory(parent / name, wait=False) as is_abandoned:
                if is_abandoned:
                    shutil.rmtree(parent / name, ignore_errors=True)
    while True:
        path = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        with _locked_directory(path, wait=True):
            if not path.exists():  # another process removed it before it was locked
                continue
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)
        return


@contextmanager
def _locked_directory(path: Path, *, wait: bool) -> Iterator[bool]:
    """Lock a directory, and yield True. Yield False for a link, if others hold it, and where there are no locks."""
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (ImportError, OSError):
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            is_locked = True
        except OSError:  # locked by its owner, or not supported by the file system
            is_locked = False
        yield is_locked and is_same_file(path, descriptor)
    finally:
        os.close(descriptor)


def is_same_file(path: Path, descriptor: int) -> bool:
    """Return whether a path still names the file that was opened by it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _open(path: Path, *, is_directory: bool) -> int:
    flags = os.O_RDONLY if is_directory else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        raise FastDPSError(
            f"{path} cannot be locked: {error.strerror or error}. Make its directory writable, or choose another one."
        ) from error
