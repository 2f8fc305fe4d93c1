"""The index of a shard: the positions of its members, in the format v1.2 of NVIDIA DALI."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from fastdps.errors import ShardError
from fastdps.shards.tar_headers import BLOCK, parse_size

INDEX_HEADER = "v1.2"
_MEMBER = re.compile(rb"(\d{9,18})\.((?:[a-z0-9]+\.)?[a-z0-9]+)")  # key and extension of a member


def _read_at(tar: int, at: int) -> bytes:
    """Return the block at an offset of an open file."""
    if hasattr(os, "pread"):
        return os.pread(tar, BLOCK, at)
    os.lseek(tar, at, os.SEEK_SET)  # Windows
    return os.read(tar, BLOCK)


def index_of(tar: int, source: object) -> str:
    """Return the text of the index of a shard, made from the headers of its tar.

    Args:
        tar: The descriptor of the open tar.
        source: The path or URL of the shard, for messages.

    Raises:
        ShardError: The tar is not a shard: a header has an invalid size or name, the samples do not ascend, or the
            tar ends within a member.
    """
    samples: dict[bytes, list[str]] = {}
    at, end, last = 0, os.fstat(tar).st_size, -1
    while name := (header := _read_at(tar, at))[:100].rstrip(b"\0"):
        try:
            key, extension, size = _member_of(name, header, end - at)
        except ValueError as error:
            raise ShardError(f"{source} is not a shard: at byte {at}, {error}. Pack the set again.") from error
        if key not in samples:
            if int(key) <= last:
                raise ShardError(
                    f"{source} is not a shard: at byte {at}, sample {int(key)} does not come after sample {last}. "
                    "Pack the set again."
                )
            last = int(key)
        samples.setdefault(key, []).append(f"{extension} {at + BLOCK} {size} {name.decode()}")
        at += BLOCK + -(-size // BLOCK) * BLOCK
    return index_text([" ".join(members) for members in samples.values()])


def _member_of(name: bytes, header: bytes, left: int) -> tuple[bytes, str, int]:
    """Return the key, extension and size of a member, `left` bytes before the end. Raises `ValueError` if invalid."""
    found = _MEMBER.fullmatch(name)
    if found is None or header[156:157] not in (b"0", b"\0"):
        raise ValueError(f"{name!r} is not the file of a sample")
    size = parse_size(header[124:136])
    if BLOCK + size > left:
        raise ValueError(f"{name.decode()} has {size} bytes, and the tar ends before")
    return found[1], found[2].decode(), size


def index_text(lines: Sequence[str]) -> str:
    """Return the text of an index with one line per sample."""
    return f"{INDEX_HEADER} {len(lines)}\n" + "".join(line + "\n" for line in lines)
