"""Read tar headers of untrusted files in bounded time and memory.

`tarfile` accepts negative sizes (CVE-2025-8194 in CPython: it then reads the same headers for ever), allocates what a
header asks for before it reads, and lets errors of other types through. Here each member starts after the one before
it, and all faults are `tarfile.TarError`.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import IO, Self

BLOCK = tarfile.BLOCKSIZE  # bytes: the size of a tar header, and what members are padded to
#: Limit of a header that holds a long name or attributes, in bytes. A path has at most 4,096.
MAX_EXTENDED_BYTES = 1 << 14
_EXTENDED = frozenset({tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X"})
_SIZE = re.compile(rb" *([0-7]{1,12})[ \0]*")


def parse_size(field: bytes) -> int:
    r"""Return the size in bytes that the size field of a ustar header states.

    Raises:
        ValueError: It is not an octal number, as a negative one.

    Example:
        >>> parse_size(b"00000030000\0")
        12288
    """
    found = _SIZE.fullmatch(field)
    if found is None:
        raise ValueError(f"the size {field!r} is not an octal number")
    return int(found[1], 8)


def read_members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an uncompressed tar, and leave the file at the header after the last one.

    Args:
        file: The tar, which needs only `read`, `seek` and `tell`.

    Raises:
        tarfile.TarError: A header is invalid, or the file ends within a member.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_CheckedInfo) as tar:
            while (info := tar.next()) is not None:
                yield info
                tar.members.clear()  # type: ignore[attr-defined]  # otherwise the tar keeps all headers in memory
            file.seek(tar.offset)
    except (ValueError, IndexError, OverflowError, RecursionError) as error:  # tarfile's own parsing of bad headers
        raise tarfile.ReadError(f"a header is invalid ({error})") from error


class _CheckedInfo(tarfile.TarInfo):
    """A tar header whose size was checked before anything is read or skipped by it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse a header. Raises `tarfile.ReadError` for a size out of range."""
        info = super().frombuf(buf, encoding, errors)
        _check(info)
        if info.type in _EXTENDED and info.size > MAX_EXTENDED_BYTES:
            raise tarfile.ReadError(f"an extended header has {info.size} bytes, more than {MAX_EXTENDED_BYTES}")
        return info

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        """Read the next header, which an extended header before it may change: check its size again."""
        info = super().fromtarfile(tarfile)
        _check(info)
        return info


def _check(info: tarfile.TarInfo) -> None:
    if info.size < 0:
        raise tarfile.ReadError(f"member {info.name!r} has a size of {info.size} bytes")
