"""Images in a tar file, and in tar files within it, read by offset. Nothing is unpacked; names are never used as paths.

The headers are read once. Then each image takes one seek and one read, in any order and from any process. `list_files`
and `read_file_at` do both for other sources of tars.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fastdps.errors import FastDPSError
from fastdps.packing.sources.folder import EXTENSIONS, is_image_name
from fastdps.packing.sources.source import Sample, Source, check_file_size
from fastdps.runtime.files import printable
from fastdps.shards.images import UnreadableItemError
from fastdps.shards.tar_headers import read_members


class TarMember(NamedTuple):
    """One file in a tar, by its position in the outer file.

    Attributes:
        name: The name; in an inner tar, the names of tar and member joined by "/".
        offset: The offset of the content in the outer file, in bytes.
        size: The size of the content in bytes.
        fault: The reason why it cannot be read: the member, or the inner tar of that name, is truncated or not a
            regular file. None for a readable file.
    """

    name: str
    offset: int = 0
    size: int = 0
    fault: str | None = None


@dataclass(frozen=True)
class TarImages(Source):
    """All images in a tar and in the tars among its members, in the order of the tar.

    Attributes:
        path: The tar file.
        dataset_name: The name of the data set in the manifest.
    """

    path: Path
    dataset_name: str

    def items(self) -> Sequence[TarMember]:
        """Return all images, unreadable ones too. Raises `FastDPSError` if the outer tar is compressed or truncated."""
        with _open_tar(self.path) as window:
            found = list(_images(window, "", nested=True))
        if not found:
            raise FastDPSError(f"the source {self.path} contains no images ({', '.join(sorted(EXTENSIONS))}).")
        return found

    def read(self, item: TarMember) -> Sample:
        """Return the content of the member."""
        return {"image": read_file_at(self.path, item, self.name(item))}

    def name(self, item: TarMember) -> str:
        """Return the name of the member."""
        return printable(item.name)

    def describe(self) -> dict[str, Any]:
        """Return the name of the data set only: the location of the file is not a property of the set."""
        return {"name": self.dataset_name}


def list_files(path: Path) -> Iterator[TarMember]:
    """Yield the files of a tar, of any type, in its order.

    Args:
        path: The tar.

    Yields:
        The files, without directories. Those that cannot be read have a fault.

    Raises:
        FastDPSError: The tar cannot be read, is compressed or truncated.
    """
    with _open_tar(path) as window:
        for info in _members(window):
            if not info.isdir():
                yield _member(window, info, info.name)


def read_file_at(path: Path, member: TarMember, name: str) -> bytes:
    """Return the content of one file of a tar.

    Args:
        path: The tar.
        member: The file.
        name: Its name in errors.

    Raises:
        UnreadableItemError: The file has a fault, or is too large for an image.
        FastDPSError: The tar is no longer there, or has become shorter.
    """
    if member.fault:
        raise UnreadableItemError(member.fault)
    check_file_size(member.size)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(member.offset)
            data = file.read(member.size)
    except OSError as error:
        raise FastDPSError(f"the source {path} can no longer be read: {error.strerror or error}.") from error
    if len(data) < member.size:
        raise FastDPSError(f"the source {path} has become shorter: it no longer contains {name}.")
    return data


class _TruncatedError(Exception):
    """A tar is truncated."""


class _Window:
    """The bytes of a file from `start` to `end`, as a readable file."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file, self.start, self.end = file, start, end
        self._at = 0

    def part(self, start: int, end: int) -> _Window:
        """Return the bytes of the file from `start` to `end`, within this window."""
        return _Window(self._file, start, min(end, self.end))

    def seek(self, offset: int) -> int:
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        size = max(0, min(size, self.end - self.start - self._at))
        self._file.seek(self.start + self._at)
        data = self._file.read(size)
        self._at += len(data)
        return data


@contextmanager
def _open_tar(path: Path) -> Iterator[_Window]:
    """Yield the bytes of a tar. Raises `FastDPSError` if it cannot be read, or proves truncated."""
    try:
        with path.open("rb") as file:
            yield _Window(file, 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise FastDPSError(f"the source {path} cannot be read: {error.strerror or error}.") from error
    except _TruncatedError as error:
        raise FastDPSError(
            f"the source {path} is not an uncompressed tar file, or is truncated: {error}. "
            "Decompress it, or download it again."
        ) from error


def _images(window: _Window, prefix: str, *, nested: bool) -> Iterator[TarMember]:
    """Yield the images in a tar and, if `nested`, in its tars. Raises `_TruncatedError` at an unexpected end."""
    for info in _members(window):
        name = prefix + info.name
        start = window.start + info.offset_data
        if nested and info.isreg() and info.name.lower().endswith(".tar"):
            try:
                # Limited to the outer tar, so that a truncation is reported for the right tar.
                yield from _images(window.part(start, start + info.size), name + "/", nested=False)
            except _TruncatedError as error:
                yield TarMember(name, fault=str(error))
        elif is_image_name(info.name) and not info.isdir():
            yield _member(window, info, name)


def _member(window: _Window, info: tarfile.TarInfo, name: str) -> TarMember:
    """Return the position of a file, with its fault."""
    start = window.start + info.offset_data
    fault = None
    if not info.isreg() or info.issparse():
        fault = "is a link or another member without plain content"
    elif start + info.size > window.end:
        fault = "is truncated: its archive ends before it does"
    return TarMember(name, start, info.size, fault)


def _members(window: _Window) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a tar up to its end mark. Raises `_TruncatedError` when there is no end mark."""
    count = 0
    try:
        for info in read_members(window):  # type: ignore[arg-type]  # it reads and seeks
            yield info
            count += 1
    except tarfile.TarError as error:
        raise _TruncatedError(f"it ends after {count} members ({error})") from error
    if window.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise _TruncatedError(f"it ends after {count} members without an end mark")
