"""Images in a tar file, or in tar files within it, read by offset: nothing is unpacked, and no name is ever a path.

The headers are read once; after that an image is one seek and one read, in any order, by any process.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fastdps.errors import FastDPSError
from fastdps.packing.sources.folder import EXTENSIONS, is_image_name
from fastdps.packing.sources.source import Sample, Source, printable, refuse_large
from fastdps.shards.images import UnreadableItemError


class TarMember(NamedTuple):
    """One image: the names that lead to it, joined by "/", and its bytes in the outer file.

    `fault` says why there is no image: the member, or the inner tar of that name, is cut off or no file.
    """

    name: str
    offset: int = 0
    size: int = 0
    fault: str | None = None


@dataclass(frozen=True)
class TarImages(Source):
    """All images in the tar `path` and in the tars that are its members, ordered as they lie in it.

    `called` is the name of the data set in the manifest.
    """

    path: Path
    called: str

    def items(self) -> Sequence[TarMember]:
        """All images, and what should be one. Raises `FastDPSError` when the outer tar is compressed or cut off."""
        try:
            with self.path.open("rb") as file:
                found = list(_images(file, _Window(file, 0, os.fstat(file.fileno()).st_size), "", nested=True))
        except OSError as error:
            raise FastDPSError(f"the source {self.path} cannot be read: {error.strerror or error}.") from error
        except _CutOffError as error:
            raise FastDPSError(
                f"the source {self.path} is no plain tar file, or cut off: {error}. Decompress it, or fetch it again."
            ) from error
        if not found:
            raise FastDPSError(f"the source {self.path} holds no images ({', '.join(sorted(EXTENSIONS))}).")
        return found

    def read(self, item: TarMember) -> Sample:
        """The bytes of the member."""
        if item.fault:
            raise UnreadableItemError(item.fault)
        refuse_large(item.size)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(item.offset)
                data = file.read(item.size)
        except OSError as error:
            raise FastDPSError(f"the source {self.path} cannot be read any more: {error.strerror or error}.") from error
        if len(data) < item.size:
            raise FastDPSError(f"the source {self.path} has become shorter: {self.name(item)} is not in it any more.")
        return {"image": data}

    def name(self, item: TarMember) -> str:
        """The names that lead to the member."""
        return printable(item.name)

    def describe(self) -> dict[str, Any]:
        """The data set alone: where the file happened to be is no property of the set."""
        return {"name": self.called}


class _CutOffError(Exception):
    """A tar does not end as it should."""


class _Window:
    """The part of a file from `start` to `end`, as a file to read from."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file, self.start, self.end = file, start, end
        self._at = 0

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


def _images(file: BinaryIO, window: _Window, prefix: str, *, nested: bool) -> Iterator[TarMember]:
    """The images in a tar, and where `nested` those in its tars; raises `_CutOffError` at a tar's unexpected end."""
    for info in _members(window):
        name = prefix + info.name
        start = window.start + info.offset_data
        if nested and info.isreg() and info.name.lower().endswith(".tar"):
            try:
                # No further than the outer tar goes, so that a cut is found in the right one.
                yield from _images(
                    file, _Window(file, start, min(start + info.size, window.end)), name + "/", nested=False
                )
            except _CutOffError as error:
                yield TarMember(name, fault=str(error))
        elif is_image_name(info.name) and not info.isdir():
            fault = None
            if not info.isreg() or info.issparse():
                fault = "is a link or another member without plain content"
            elif start + info.size > window.end:
                fault = "is cut off: its archive ends before it does"
            yield TarMember(name, start, info.size, fault)


def _members(window: _Window) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar up to its end mark. Raises `_CutOffError` when there is none."""
    count = 0
    try:
        with tarfile.open(fileobj=window, mode="r:") as tar:  # type: ignore[call-overload]  # reads and seeks
            while (info := tar.next()) is not None:
                yield info
                count += 1
                tar.members.clear()  # else it keeps all of them
            window.seek(tar.offset)
    except tarfile.TarError as error:
        raise _CutOffError(f"it ends after {count} members ({error})") from error
    if window.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise _CutOffError(f"it ends after {count} members without an end mark")
