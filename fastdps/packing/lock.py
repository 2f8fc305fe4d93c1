"""The lock that keeps two runs from packing the same shards into one directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fastdps.errors import FastDPSError
from fastdps.packing.options import Share
from fastdps.runtime.files import write_errors
from fastdps.shards.storage import Location, Store

#: The lock file in `out` of one part, which excludes a second run of the same part.
_LOCK = "part{}.lock"


@contextmanager
def only_run(out: Location, share: Share | None = None) -> Iterator[None]:
    """Hold the lock of a directory: exclusively, or together with runs of other shares.

    Object storage and Windows have no such locks; nothing is locked there.

    Raises:
        FastDPSError: Another run holds the lock.
    """
    if isinstance(out, Store):
        yield
        return
    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return

    def lock(path: Path, flags: int, operation: int, who: str) -> int:
        descriptor = os.open(path, flags, 0o666)
        stack.callback(os.close, descriptor)
        with contextlib.suppress(OSError):  # some network file systems cannot lock directories
            try:
                fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FastDPSError(
                    f"{who} is packing into {out}. Wait until it ends, or choose another --out."
                ) from None
        return descriptor

    with ExitStack() as stack:
        lock(out, os.O_RDONLY, fcntl.LOCK_SH if share else fcntl.LOCK_EX, "another run")
        if share:
            own = out / _LOCK.format(share.suffix)
            lock(own, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX, f"another run of part {share}")
            stack.callback(own.unlink, missing_ok=True)
        else:
            for left in out.glob(_LOCK.format("-*-of-*")):  # left by parts that were killed
                left.unlink()
        yield
