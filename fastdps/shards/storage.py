"""Shard sets in object storage and on web servers, by URL. The only module that imports fsspec.

A location is a local path or a `Store`, which is a directory by URL; `/` descends in either. fsspec implements the
protocols. The allowed ones are listed, so that no file name runs a command or opens anything unexpected.

Requests are retried with exponential backoff on transient errors: refused or dropped connections, timeouts, server
errors. Large files are read in pieces, so that a dropped connection loses only one piece.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import re
import stat
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from fastdps.errors import ConfigError, FastDPSError, ShardError, did_you_mean
from fastdps.shards.credentials import has_credentials, hide_in, without_credentials
from fastdps.shards.web import TooLargeError, is_on_web, read_web

T = TypeVar("T")

#: The supported URL schemes, and the package that fsspec needs for each.
SCHEMES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp", "memory": "fsspec"}
#: Read-only schemes.
_READ_ONLY = {"http", "https"}

#: Bytes per request: what is lost when a connection drops.
PIECE_BYTES = 8 << 20
#: Attempts of a request before it fails. With the pauses between them this takes about half a minute.
ATTEMPTS = 9
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
#: Failures are logged as warnings from this attempt on.
_WARN_FROM = 4
#: The limit of manifests, indexes and records of packing: a manifest of 1.6 million shards. Larger ones are not read.
MAX_SMALL_BYTES = 256 << 20
#: Seconds without data after which a connection counts as dropped.
SILENCE_S = 20.0

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(:.*)", re.DOTALL)
_REFUSED = (PermissionError, NotImplementedError, IsADirectoryError, NotADirectoryError)
#: Names of errors that only other credentials can fix. Their classes are in packages that may not be installed.
_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "DefaultCredentialsError"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """A directory of a remote file system. `store / "name"` is a file or directory in it.

    Methods that fail raise `ShardError`, or `FastDPSError` if they write, with the URL and what to do.

    `str` and `repr` give the URL without credentials. Only the requests use `url`.

    Attributes:
        url: The URL of the directory, with credentials if it was given with them.
    """

    url: str = field(repr=False)

    def __truediv__(self, name: str) -> Store:
        if not self._is_web:
            return Store(f"{self.url.rstrip('/')}/{name}")
        path, question, query = self.url.partition("?")  # a token in the query is sent with each request
        return Store(f"{path.rstrip('/')}/{quote(name)}{question}{query}")

    def __str__(self) -> str:
        return without_credentials(self.url)

    def __repr__(self) -> str:
        return f"Store({str(self)!r})"

    @property
    def name(self) -> str:
        """The last component of the URL."""
        last = urlsplit(self.url).path.rstrip("/").rpartition("/")[2] or urlsplit(self.url).netloc
        return unquote(last) if self._is_web else last

    def read(self, name: str) -> bytes:
        """Return the content of a small file, of at most `MAX_SMALL_BYTES`."""
        file_system, path = self._at(name)

        def get() -> bytes:
            if self._is_web:
                return _run(file_system, read_web, path, None, MAX_SMALL_BYTES)
            if (size := int(file_system.info(path)["size"])) > MAX_SMALL_BYTES:
                raise TooLargeError(f"has {size:,} bytes, more than the {MAX_SMALL_BYTES:,} that were expected")
            found: bytes = file_system.cat_file(path)
            return found

        return self._asked(name, "read", get)

    def exists(self, name: str) -> bool:
        """Return whether a small file exists."""
        file_system, path = self._at(name)

        def look_up() -> bool:  # fsspec's `exists`, and on web servers its `info`, report any failure as absence
            if self._is_web:
                return _run(file_system, is_on_web, path)
            try:
                return bool(file_system.info(path)["type"] == "file")
            except FileNotFoundError:
                return False

        return self._asked(name, "looked up", look_up)

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if it does not exist. Not for web servers: they may not tell."""
        file_system, path = self._at(name)

        def look_up() -> int | None:
            try:
                return int(file_system.info(path)["size"])
            except FileNotFoundError:
                return None

        return self._asked(name, "looked up", look_up)

    def pieces(self, name: str, size: int) -> Iterator[bytes]:
        """Yield the content of a large file of `size` bytes in pieces, or in one piece from a server without ranges."""
        file_system, path = self._at(name)
        at = 0
        while at < size:
            stop = min(at + PIECE_BYTES, size)

            def get(start: int = at, stop: int = stop) -> bytes:
                if self._is_web:
                    found = _run(file_system, read_web, path, (start, stop), size)
                else:
                    found = file_system.cat_file(path, start=start, end=stop)
                if len(found) == size:  # the server ignored the range
                    return found[start:]
                if len(found) != stop - start:
                    raise OSError(f"received {len(found)} of {stop - start} bytes at byte {start}")
                return found

            piece = self._asked(name, "read", get)
            at += len(piece)
            yield piece

    def files(self) -> dict[str, int]:
        """Return the names and sizes in bytes of the files directly in the directory; empty if it does not exist."""
        return {Path(entry["name"]).name: entry["size"] for entry in self._entries() if entry["type"] == "file"}

    def directories(self) -> list[Store]:
        """Return the subdirectories, sorted by name."""
        return [self / name for name in sorted(Path(e["name"]).name for e in self._entries() if e["type"] != "file")]

    def write(self, name: str, data: bytes) -> None:
        """Write a small file atomically."""
        file_system, path = self._at(name)
        self._asked(name, "written", lambda: file_system.pipe_file(path, data))

    def put(self, name: str, file: Path) -> None:
        """Upload a file."""
        file_system, path = self._at(name)
        self._asked(name, "written", lambda: file_system.put_file(str(file), path))

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        file_system, path = self._at(name)

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                file_system.rm_file(path)

        self._asked(name, "removed", remove)

    def refuse_to_write(self) -> None:
        """Raise `ConfigError` if the store is read-only."""
        if self._is_web:
            raise ConfigError(f"{self} is on a web server, which is read-only. Name a bucket or a directory.")

    @property
    def is_listed(self) -> bool:
        """True if the store lists its files; web servers do not."""
        return not self._is_web

    @property
    def _is_web(self) -> bool:
        return urlsplit(self.url).scheme in _READ_ONLY

    def _entries(self) -> list[dict[str, Any]]:
        if self._is_web:
            raise ShardError(f"{self} is on a web server, which does not list files. Name the set's own directory.")
        file_system, path = _opened(self.url)

        def entries() -> list[dict[str, Any]]:
            try:
                listed: list[dict[str, Any]] = file_system.ls(path, detail=True)
            except FileNotFoundError:
                return []
            return [entry for entry in listed if entry["name"].strip("/") != path.strip("/")]

        return self._asked("", "listed", entries)

    def _at(self, name: str) -> tuple[Any, str]:
        """Return the file system, and the path of a file in it."""
        return _opened((self / name).url)

    def _asked(self, name: str, done: str, call: Callable[[], T]) -> T:
        """Return the result of a request, retried on transient errors. `done` is the past participle for messages."""
        what = str(self / name if name else self)
        kind = FastDPSError if done in ("written", "removed") else ShardError
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except FileNotFoundError:
                raise kind(f"{what} does not exist. Check the URL, and that the set is complete.") from None
            except TooLargeError as error:
                raise kind(f"{what} {error}. Check the URL, and upload the file again.") from None
            except _REFUSED as error:
                reason, cause = self._without_credentials(error)
                raise kind(f"{what} cannot be {done}: {reason}. Check the URL and the access rights.") from cause
            except Exception as error:  # of packages that may not be installed, so their classes cannot be named
                reason, cause = self._without_credentials(error)
                if type(error).__name__ in _CREDENTIALS:
                    raise kind(
                        f"{what} cannot be {done}: {reason}. Set credentials as for the storage's own tools, "
                        "e.g. AWS_PROFILE or AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS."
                    ) from cause
                if attempt == ATTEMPTS:
                    raise kind(
                        f"{what} cannot be {done}, tried {ATTEMPTS} times: {reason}. Check the network and the "
                        "server, and run the same command again: finished work is kept."
                    ) from cause
                log = _log.warning if attempt >= _WARN_FROM else _log.info
                log("%s could not be %s (%s); retrying", what, done, reason)
                pause = min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S)
                time.sleep(pause * random.uniform(0.5, 1))  # jitter, so that processes do not retry at the same time
        raise AssertionError("not reached")

    def _without_credentials(self, error: BaseException) -> tuple[str, BaseException | None]:
        """Return the text of a library's error, and the error itself unless tracebacks of it could show credentials."""
        text = hide_in(str(error), self.url).strip().rstrip(".") or type(error).__name__
        return text, None if has_credentials(self.url) else error


#: A local path or a remote store.
Location = Path | Store
#: A location as users name it: a path, a URL, or a store.
LocationLike = str | PathLike[str] | Store


def locate(text: LocationLike) -> Location:
    """Return the location of a path or of a URL with one of `SCHEMES`.

    Raises:
        ConfigError: The URL has another scheme.

    Example:
        >>> locate("s3://bucket/set").name
        'set'
    """
    if not isinstance(text, str):
        return text if isinstance(text, Store) else Path(text)
    found = _SCHEME.fullmatch(text)
    if found is None or (len(found[1]) == 1 and "//" not in text) or Path(text).exists():  # C:\... is a path
        return Path(text)
    scheme, rest = found[1].lower(), found[2]
    if scheme == "file" and rest.startswith(":///"):
        return Path(unquote(rest[3:]))
    if not rest.startswith("://") and scheme not in (*SCHEMES, "pipe"):
        return Path(text)  # a name with a colon
    if scheme not in SCHEMES or not rest.startswith("://") or "::" in rest:
        known = ", ".join(f"{name}://" for name in SCHEMES if name != "memory")
        raise ConfigError(
            f"{without_credentials(text)} is not a supported shard location.{did_you_mean(scheme, SCHEMES)} Supported "
            f"are directories, and URLs with {known}; commands are never run."
        )
    return Store(f"{scheme}{rest if '?' in rest else rest.rstrip('/')}")  # a token may end with a slash


def open_store(url: str) -> Store:
    """Return the store of a URL. Raises `ConfigError` if it is not a URL, or its package is not installed."""
    store = locate(url)
    if not isinstance(store, Store):
        raise ConfigError(f"{without_credentials(url)} is not a URL.")
    _file_system(urlsplit(store.url).scheme)
    return store


def read_text(location: Location, name: str) -> str:
    """Return the text of a small file. Raises `OSError` or `UnicodeDecodeError`, and for a store `ShardError`."""
    if isinstance(location, Store):
        return location.read(name).decode("utf-8")
    state = (location / name).stat()
    if not stat.S_ISREG(state.st_mode) or state.st_size > MAX_SMALL_BYTES:
        raise OSError(f"it is not a file of at most {MAX_SMALL_BYTES:,} bytes")
    return (location / name).read_text(encoding="utf-8")


def has_file(location: Location, name: str) -> bool:
    """Return whether a location has a file of this name."""
    return location.exists(name) if isinstance(location, Store) else (location / name).is_file()


def _run(file_system: Any, request: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
    """Return the result of an asynchronous request, run in fsspec's thread."""
    from fsspec.asyn import sync

    result: T = sync(file_system.loop, request, file_system, *arguments)
    return result


def _opened(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it."""
    file_system = _file_system(urlsplit(url).scheme)
    return file_system, file_system._strip_protocol(url)


@functools.cache
def _file_system(scheme: str) -> Any:
    """Return the file system of a scheme; all threads share it."""
    try:
        import fsspec

        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **_options(scheme))
    except ImportError as error:
        raise ConfigError(
            f"{scheme}:// needs {SCHEMES[scheme]}, which cannot be imported: {error}. "
            "Install it with `pip install 'fastdps[remote]'`."
        ) from error


def _options(scheme: str) -> dict[str, Any]:
    """Return options of the file system in addition to the user's environment: timeouts of silent connections."""
    if scheme == "s3":  # retries are made here
        limits = {"connect_timeout": SILENCE_S, "read_timeout": SILENCE_S, "retries": {"total_max_attempts": 1}}
        return {"config_kwargs": limits}
    if scheme in _READ_ONLY:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
        return {"client_kwargs": {"timeout": timeout}}
    return {}
