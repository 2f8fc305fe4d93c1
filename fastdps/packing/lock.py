"""The lock that keeps two runs from packing the same shards into one directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastdps.errors import FastDPSError
from fastdps.packing.options import Share
from fastdps.runtime.files import write_errors
from fastdps.runtime.locks import locked
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

    def conflict(who: str) -> Callable[[str], FastDPSError]:
        return lambda _: FastDPSError(f"{who} is packing into {out}. Wait until it ends, or choose another --out.")

    with locked(out, conflict("another run"), shared=share is not None):
        if share:
            with locked(out / _LOCK.format(share.suffix), conflict(f"another run of part {share}")):
                yield
        else:
            for left in out.glob(_LOCK.format("-*-of-*")):  # left by parts that were killed
                left.unlink()
            yield
