"""Atomic writes (temporary file, fsync, rename), and write errors as users see them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fastdps.errors import ConfigError, FastDPSError

#: Suffix of the name of an incomplete file.
PARTIAL = ".partial"


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` in the context into a `FastDPSError` that names the file and what to do."""
    try:
        yield
    except OSError as error:
        raise FastDPSError(
            f"{path} cannot be written: {error.strerror or error}. Free disk space or fix the cause, and run the same "
            "command again: finished work is kept."
        ) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file for an atomic write: temporary file, fsync, rename. If the context raises, the file is removed.

    Args:
        path: The final name.

    Yields:
        The temporary file, opened in binary mode.

    Raises:
        FastDPSError: The file cannot be written.

    Example:
        >>> with atomic_write(Path("scores.json")) as file:  # doctest: +SKIP
        ...     file.write(b"{}")
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
    """Write a text file atomically; see `atomic_write`."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; see `atomic_write`."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def fsync_file(file: BinaryIO) -> None:
    """Flush a file to disk."""
    file.flush()
    os.fsync(file.fileno())


def fsync_directory(directory: Path) -> None:
    """Flush the entries of a directory to disk, if the system supports it."""
    with contextlib.suppress(OSError):  # Windows cannot open directories, some network file systems cannot sync them
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def user_cache() -> Path:
    """Return the user's cache directory of fastdps, for files that can be downloaded or computed again.

    Ask for it only where it is needed: containers that run as any user id have no home directory.

    Raises:
        ConfigError: $XDG_CACHE_HOME is not set, and the user has no home directory.
    """
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "fastdps"
    home = Path(os.path.expanduser("~"))  # Path.home() raises RuntimeError
    if not home.is_absolute():
        raise ConfigError(
            "There is no place for cached files: HOME is not set, and this user has no entry in the system's list of "
            "users. Set XDG_CACHE_HOME to a directory; for shards of a URL, FASTDPS_CACHE or --cache-dir is enough."
        )
    return home / ".cache" / "fastdps"
