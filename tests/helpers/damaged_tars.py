"""Damage to tar headers, and a limit of time for what reads them."""

from __future__ import annotations

import signal
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager

SIZE, CHECKSUM = slice(124, 136), slice(148, 156)
NEGATIVE = b"\xff" * 10 + b"\xfe\x00"  # -512 in base 256, which `tarfile` reads


class TimeLimitExceeded(BaseException):
    """Code ran too long. Not an `Exception`, nor the `OSError` that `TimeoutError` is: the code must not handle it."""


def with_field(tar: bytes, at: int, field: slice, value: bytes) -> bytes:
    """Return a tar with another value in a field of the header at byte `at`, and a valid checksum."""
    header = bytearray(tar[at : at + tarfile.BLOCKSIZE])
    header[field] = value.ljust(field.stop - field.start, b"\0")
    header[CHECKSUM] = b" " * 8
    header[CHECKSUM] = b"%06o\0 " % sum(header)
    return tar[:at] + bytes(header) + tar[at + tarfile.BLOCKSIZE :]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeLimitExceeded` in the main thread after some seconds."""

    def stop(*_):
        raise TimeLimitExceeded(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
