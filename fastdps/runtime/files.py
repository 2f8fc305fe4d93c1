"""Files that have their name only once they are complete and on disk, and errors of writing as users see them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fastdps.errors import FastDPSError

#: What the name of an unfinished file ends with.
PARTIAL = ".partial"


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """A context in which an `OSError` becomes a `FastDPSError` that names the file and what to do."""
    try:
        yield
    except OSError as error:
        raise FastDPSError(
            f"{path} cannot be written: {error.strerror or error}. Make room, or mend what is wrong, and run the same "
            "command again: what is finished is kept."
        ) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that has its name only once it is complete and on disk, and is gone if it does not get there.

    Raises `FastDPSError`.
    """
    temporary = path.with_name(path.name + PARTIAL)
    with write_errors(path):
        try:
            with temporary.open("wb") as file:
                yield file
                fsync_file(file)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        fsync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, see `atomic_write`."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole, see `atomic_write`."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def fsync_file(file: BinaryIO) -> None:
    """Bring what was written to disk."""
    file.flush()
    os.fsync(file.fileno())


def fsync_directory(directory: Path) -> None:
    """Bring the names in a directory to disk, where the system can."""
    with contextlib.suppress(OSError):  # Windows opens no directories, some network file systems sync none
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def user_cache() -> Path:
    """Where the user keeps what fastdps can get again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastdps"
