"""The place of a set that is being packed: a directory or object storage, behind one interface."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fastdps.errors import ShardError
from fastdps.packing.writer import Draft
from fastdps.runtime.files import PARTIAL, fsync_directory, fsync_file, write_bytes, write_errors
from fastdps.shards.format import Shard
from fastdps.shards.index import index_of
from fastdps.shards.storage import Location, Store


class Target(ABC):
    """The place of one set. It can be pickled; as a string it is the path or URL that users know.

    All methods raise `FastDPSError`, which names the file and the remedy, when the operation fails.

    Attributes:
        location: The directory or URL.
    """

    location: Location

    @abstractmethod
    def display_name(self, name: str) -> str:
        """Return the path or URL of a file, for messages."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Return the sizes in bytes of all complete files by name; empty if there are none."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if it is missing."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, or None if it is missing."""

    @abstractmethod
    def holds(self, shard: Shard) -> bool:
        """Return whether the files of a finished shard are as it says, as far as that is known without a download."""

    @abstractmethod
    def local(self, name: str, size: int) -> AbstractContextManager[Path]:
        """Return a context manager that yields the path of a file of `size` bytes on this machine."""

    @abstractmethod
    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file atomically."""

    def write(self, name: str, text: str) -> None:
        """Write a small text file atomically."""
        self.write_bytes(name, text.encode())

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

    @abstractmethod
    def unfinished(self) -> list[str]:
        """Return the names of unfinished files: of running writers, and left by interrupted ones."""

    @abstractmethod
    def scratch(self, temporary: Path) -> Path:
        """Return the directory in which a shard is written before `deliver`: the target itself, or `temporary`."""

    @abstractmethod
    def deliver(self, draft: Draft) -> None:
        """Put the files of a shard in place. The index comes first, so that an existing tar means a complete shard."""

    @abstractmethod
    def clear(self) -> None:
        """Remove the directory itself if it is empty."""


@dataclass(frozen=True)
class Directory(Target):
    """A directory, local or shared with other machines."""

    location: Path

    def __str__(self) -> str:
        return str(self.location)

    def display_name(self, name: str) -> str:
        """See `Target`."""
        return str(self.location / name)

    def sizes(self) -> dict[str, int]:
        """See `Target`."""
        try:
            with os.scandir(self.location) as entries:
                return {e.name: e.stat().st_size for e in entries if e.is_file() and not e.name.endswith(PARTIAL)}
        except FileNotFoundError:
            return {}

    def size(self, name: str) -> int | None:
        """See `Target`."""
        try:
            return (self.location / name).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes | None:
        """See `Target`."""
        try:
            return (self.location / name).read_bytes()
        except FileNotFoundError:
            return None

    def holds(self, shard: Shard) -> bool:
        """Compare the checksum of the tar, and the index with the tar."""
        try:
            with (self.location / shard.name).open("rb") as tar:
                if hashlib.file_digest(tar, "sha256").hexdigest() != shard.sha256:
                    return False
                index = index_of(tar.fileno(), self.location / shard.name)
                return (self.location / shard.index_name).read_text() == index
        except (OSError, ValueError, ShardError):
            return False

    def local(self, name: str, size: int) -> AbstractContextManager[Path]:
        """See `Target`."""
        del size
        return nullcontext(self.location / name)

    def write_bytes(self, name: str, content: bytes) -> None:
        """See `Target`."""
        with write_errors(self.location):
            self.location.mkdir(parents=True, exist_ok=True)
        write_bytes(self.location / name, content)

    def append(self, name: str, line: str) -> None:
        """Append a line to a file and flush it to disk."""
        path = self.location / name
        with write_errors(path), path.open("ab") as file:
            file.write(line.encode())
            fsync_file(file)

    def remove(self, name: str) -> None:
        """See `Target`."""
        (self.location / name).unlink(missing_ok=True)

    def unfinished(self) -> list[str]:
        """See `Target`."""
        return [path.name for path in self.location.glob(f"*{PARTIAL}")]

    def scratch(self, temporary: Path) -> Path:
        """Return the directory itself, so that `deliver` only renames files."""
        del temporary
        with write_errors(self.location):
            self.location.mkdir(
                parents=True, exist_ok=True
            )  # a network file system may not show it on another machine yet
        return self.location

    def deliver(self, draft: Draft) -> None:
        """See `Target`."""
        with write_errors(self.location / draft.shard.name):
            draft.index.replace(self.location / draft.shard.index_name)
            draft.tar.replace(self.location / draft.shard.name)
            fsync_directory(self.location)

    def clear(self) -> None:
        """See `Target`."""
        if self.location.is_dir() and not os.listdir(self.location):
            self.location.rmdir()


@dataclass(frozen=True)
class Remote(Target):
    """A place in object storage: files appear complete, and cannot be appended to."""

    location: Store

    def __str__(self) -> str:
        return str(self.location)

    def display_name(self, name: str) -> str:
        """See `Target`."""
        return str(self.location / name)

    def sizes(self) -> dict[str, int]:
        """See `Target`."""
        return self.location.files()

    def size(self, name: str) -> int | None:
        """See `Target`."""
        return self.location.size(name)

    def read(self, name: str) -> bytes | None:
        """See `Target`."""
        return self.location.read(name) if self.location.exists(name) else None

    def holds(self, shard: Shard) -> bool:
        """Compare the size of the tar, and that there is an index."""
        return self.size(shard.name) == shard.bytes and self.size(shard.index_name) is not None

    @contextmanager
    def local(self, name: str, size: int) -> Iterator[Path]:
        """Yield the path of a temporary copy."""
        with TemporaryDirectory(prefix="fastdps-") as directory:
            path = Path(directory) / name
            with write_errors(path), path.open("wb") as file:
                for piece in self.location.pieces(name, size):
                    file.write(piece)
            yield path

    def write_bytes(self, name: str, content: bytes) -> None:
        """See `Target`."""
        self.location.write(name, content)

    def remove(self, name: str) -> None:
        """See `Target`."""
        self.location.remove(name)

    def unfinished(self) -> list[str]:
        """Return an empty list: an interrupted upload leaves no file."""
        return []

    def scratch(self, temporary: Path) -> Path:
        """See `Target`."""
        return temporary

    def deliver(self, draft: Draft) -> None:
        """Upload the files and remove the local copies."""
        self.location.put(draft.shard.index_name, draft.index)
        self.location.put(draft.shard.name, draft.tar)
        draft.discard()

    def clear(self) -> None:
        """Do nothing: object storage has no empty directories."""


def target_at(location: Location) -> Target:
    """Return the target for a directory or URL."""
    return Remote(location) if isinstance(location, Store) else Directory(location)
