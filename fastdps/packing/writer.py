"""One shard on its way to disk: fragments in, a tar, its index and its checksum out, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from fastdps.files import PARTIAL, flush, sync_directory, write_whole, writing
from fastdps.packing.fragment import TAR_END, Fragment, Member
from fastdps.shards import INDEX_HEADER, Shard


class ShardWriter:
    """Writes a shard under a temporary name; `finish` puts it in place. A context that closes the file.

    What is unfinished keeps its temporary name, for `Ledger` to remove.

    Raises `FastDPSError` when the disk is full, or does not take the file for another reason.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._path = directory / name
        self._temporary = directory / (name + PARTIAL)
        self._lines: list[str] = []
        self._digest = hashlib.sha256()
        self._size = 0
        with writing(self._path):
            self._file: BinaryIO = self._temporary.open("wb")

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # a full disk is told of where it was met
            self._file.close()

    def add(self, fragment: Fragment) -> None:
        """Append a fragment."""
        self._lines += [_index_line(members, self._size) for members in fragment.samples]
        self._write(fragment.data)

    def finish(self) -> Shard | None:
        """End the tar and put it and its index in place; None, and no file, if no sample was added."""
        if not self._lines:
            return None
        self._write(TAR_END)
        self._write(bytes(-self._size % tarfile.RECORDSIZE))
        shard = Shard(self._path.name, len(self._lines), self._size, self._digest.hexdigest())
        with writing(self._path):
            flush(self._file)
            # The index goes first: a tar that has its final name is complete.
            write_whole(self._path.with_name(shard.index_name), _index_text(self._lines))
            self._temporary.replace(self._path)
            sync_directory(self._path.parent)
        return shard

    def _write(self, data: bytes | bytearray) -> None:
        with writing(self._path):
            self._file.write(data)
        self._digest.update(data)
        self._size += len(data)


def _index_line(members: Sequence[Member], base: int) -> str:
    return " ".join(f"{m.extension} {base + m.offset} {m.size} {m.name}" for m in members)


def _index_text(lines: Sequence[str]) -> str:
    return f"{INDEX_HEADER} {len(lines)}\n" + "".join(line + "\n" for line in lines)
