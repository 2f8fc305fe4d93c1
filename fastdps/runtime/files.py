"""Atomic writes (temporary file, fsync, rename), and write errors as users see them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fastdps.errors import ConfigError, FastDPSError
from fastdps.runtime.locks import create_locked, remove_abandoned

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

    The temporary file has a random name and must not exist, so a link that someone planted is never written through. A
    process that was killed leaves its temporary file; the next write of the same file removes it.

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
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    with write_errors(path):
        remove_partial(path)
        try:
            with create_locked(temporary) as file:
                yield file
                fsync_file(file)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        fsync_directory(path.parent)


def remove_partial(path: Path) -> None:
    """Remove the temporary files of a file that killed processes left; those of running processes are locked."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(path.parent):
            if name.startswith(path.name + ".") and name.endswith(PARTIAL):
                remove_abandoned(path.with_name(name))


def printable(text: str) -> str:
    r"""Return a text with file names in valid Unicode. Undecodable bytes become escapes such as `\xff`."""
    try:
        content = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, from a JSON file
        content = text.encode("utf-8", "backslashreplace")
    return content.decode("utf-8", "backslashreplace")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; see `atomic_write`."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; see `atomic_write`."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; see `atomic_write`."""
    write_text(path, json_text(content))


def json_text(content: Mapping[str, Any]) -> str:
    """Return the text of a JSON file."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


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
