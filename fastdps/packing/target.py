"""Where a set is packed to: the few things that packing does with files there."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fastdps.packing.writer import Draft
from fastdps.runtime.files import PARTIAL, fsync_directory, fsync_file, write_errors, write_text
from fastdps.shards.storage import Location, Store


class Target(ABC):
    """The place of one set. It can be sent to another process, and as a text it is the path that users know.

    All that fails raises `FastDPSError` with the file and what to do.
    """

    location: Location

    @abstractmethod
    def named(self, name: str) -> str:
        """A file of it as users know it."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """The names of all complete files and their sizes in bytes; empty if there is nothing yet."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """The size of a file in bytes, None if it is not there."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The content of a small file, None if it is not there."""

    @abstractmethod
    def local(self, name: str, size: int) -> AbstractContextManager[Path]:
        """A context that gives a file of `size` bytes on this machine, for as long as it lasts."""

    @abstractmethod
    def write(self, name: str, text: str) -> None:
        """Write a small file, whole or not at all."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it is there."""

    @abstractmethod
    def unfinished(self) -> list[str]:
        """The names of files that are being written, or were when a run ended."""

    @abstractmethod
    def scratch(self, temporary: Path) -> Path:
        """The directory where a shard is written before it is delivered: its own, or `temporary`."""

    @abstractmethod
    def deliver(self, draft: Draft) -> None:
        """Give the files of a shard their place and name; the index first, so that a tar that is there is complete."""

    @abstractmethod
    def clear(self) -> None:
        """Remove what is left of the place itself once its files are removed; what holds other files stays."""


@dataclass(frozen=True)
class Directory(Target):
    """A directory that this machine writes to, of its own or shared with others."""

    location: Path

    def __str__(self) -> str:
        return str(self.location)

    def named(self, name: str) -> str:
        """As in `Target`."""
        return str(self.location / name)

    def sizes(self) -> dict[str, int]:
        """As in `Target`."""
        try:
            with os.scandir(self.location) as entries:
                return {e.name: e.stat().st_size for e in entries if e.is_file() and not e.name.endswith(PARTIAL)}
        except FileNotFoundError:
            return {}

    def size(self, name: str) -> int | None:
        """As in `Target`."""
        try:
            return (self.location / name).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes | None:
        """As in `Target`."""
        try:
            return (self.location / name).read_bytes()
        except FileNotFoundError:
            return None

    def local(self, name: str, size: int) -> AbstractContextManager[Path]:
        """As in `Target`."""
        del size
        return nullcontext(self.location / name)

    def write(self, name: str, text: str) -> None:
        """As in `Target`."""
        with write_errors(self.location):
            self.location.mkdir(parents=True, exist_ok=True)
        write_text(self.location / name, text)

    def append(self, name: str, line: str) -> None:
        """Add a line to a file, and bring it to disk."""
        path = self.location / name
        with write_errors(path), path.open("ab") as file:
            file.write(line.encode())
            fsync_file(file)

    def remove(self, name: str) -> None:
        """As in `Target`."""
        (self.location / name).unlink(missing_ok=True)

    def unfinished(self) -> list[str]:
        """As in `Target`."""
        return [path.name for path in self.location.glob(f"*{PARTIAL}")]

    def scratch(self, temporary: Path) -> Path:
        """Its own, so that a shard is put in place by a change of names."""
        del temporary
        with write_errors(self.location):
            self.location.mkdir(parents=True, exist_ok=True)  # on another machine it may not be there
        return self.location

    def deliver(self, draft: Draft) -> None:
        """As in `Target`."""
        with write_errors(self.location / draft.shard.name):
            draft.index.replace(self.location / draft.shard.index_name)
            draft.tar.replace(self.location / draft.shard.name)
            fsync_directory(self.location)

    def clear(self) -> None:
        """As in `Target`."""
        if self.location.is_dir() and not os.listdir(self.location):
            self.location.rmdir()


@dataclass(frozen=True)
class Remote(Target):
    """A place in object storage: files appear there whole, and are not appended to."""

    location: Store

    def __str__(self) -> str:
        return self.location.url

    def named(self, name: str) -> str:
        """As in `Target`."""
        return (self.location / name).url

    def sizes(self) -> dict[str, int]:
        """As in `Target`."""
        return self.location.files()

    def size(self, name: str) -> int | None:
        """As in `Target`."""
        return self.location.size(name)

    def read(self, name: str) -> bytes | None:
        """As in `Target`."""
        return self.location.read(name) if self.location.exists(name) else None

    @contextmanager
    def local(self, name: str, size: int) -> Iterator[Path]:
        """As in `Target`: a copy, which is removed after it."""
        with TemporaryDirectory(prefix="fastdps-") as directory:
            path = Path(directory) / name
            with write_errors(path), path.open("wb") as file:
                for piece in self.location.pieces(name, size):
                    file.write(piece)
            yield path

    def write(self, name: str, text: str) -> None:
        """As in `Target`."""
        self.location.write(name, text.encode())

    def remove(self, name: str) -> None:
        """As in `Target`."""
        self.location.remove(name)

    def unfinished(self) -> list[str]:
        """None: an upload that is cut off leaves no file."""
        return []

    def scratch(self, temporary: Path) -> Path:
        """As in `Target`."""
        return temporary

    def deliver(self, draft: Draft) -> None:
        """As in `Target`: uploads them, and removes them here."""
        self.location.put(draft.shard.index_name, draft.index)
        self.location.put(draft.shard.name, draft.tar)
        draft.discard()

    def clear(self) -> None:
        """Nothing: there are no directories without files in object storage."""


def target_at(location: Location) -> Target:
    """The target at a location."""
    return Remote(location) if isinstance(location, Store) else Directory(location)
