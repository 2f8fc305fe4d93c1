"""Write one shard: fragments in; a tar, its index and its checksum out. An unfinished shard leaves no files."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from fastdps.packing.fragment import TAR_END, Fragment, Member
from fastdps.runtime.files import PARTIAL, fsync_file, write_errors
from fastdps.shards.format import Shard
from fastdps.shards.index import index_text


@dataclass(frozen=True)
class Draft:
    """A complete shard in temporary files.

    Attributes:
        shard: The entry for the manifest.
        tar: The temporary file of the tar.
        index: The temporary file of the index.
    """

    shard: Shard
    tar: Path
    index: Path

    def discard(self) -> None:
        """Remove the files if they exist."""
        self.tar.unlink(missing_ok=True)
        self.index.unlink(missing_ok=True)


class ShardWriter:
    """Writes a shard to temporary files with unique names, so that two processes may write the same shard.

    A context manager, which removes the files on exit unless `finish` was called.

    Args:
        directory: The directory of the files.
        name: The file name of the finished tar.

    Raises:
        FastDPSError: The disk is full, or a file cannot be written for another reason.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._path = directory / name
        ending = f".{secrets.token_hex(4)}{PARTIAL}"
        self._tar = directory / (name + ending)
        self._index = directory / (Path(name).stem + ".idx" + ending)
        self._lines: list[str] = []
        self._digest = hashlib.sha256()
        self._size = 0
        self._is_finished = False
        with write_errors(self._path):
            self._file: BinaryIO = self._tar.open("xb")

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # a full disk was already reported by the write
            self._file.close()
        if not self._is_finished:
            self._tar.unlink(missing_ok=True)
            self._index.unlink(missing_ok=True)

    def add(self, fragment: Fragment) -> None:
        """Append a fragment."""
        self._lines += [_index_line(members, self._size) for members in fragment.samples]
        self._write(fragment.data)

    def finish(self) -> Draft | None:
        """Complete the tar, write its index, and flush both to disk. Return None, without files, if no sample came."""
        if not self._lines:
            return None
        self._write(TAR_END)
        self._write(bytes(-self._size % tarfile.RECORDSIZE))
        with write_errors(self._path):
            fsync_file(self._file)
            self._file.close()
            with self._index.open("xb") as index:
                index.write(index_text(self._lines).encode())
                fsync_file(index)
        self._is_finished = True
        return Draft(
            Shard(self._path.name, len(self._lines), self._size, self._digest.hexdigest()), self._tar, self._index
        )

    def _write(self, data: bytes | bytearray) -> None:
        with write_errors(self._path):
            self._file.write(data)
        self._digest.update(data)
        self._size += len(data)


def _index_line(members: Sequence[Member], base: int) -> str:
    return " ".join(f"{m.extension} {base + m.offset} {m.size} {m.name}" for m in members)
