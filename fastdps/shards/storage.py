"""Where shard sets may lie beside this machine: object storage and web servers, by URL. The only file with fsspec.

A location is a local path or a `Store`, a directory by URL; `/` descends in either. fsspec knows the protocols; which
of them are let in is a list, so that no name of a file runs a command or opens something unforeseen.

Everything that is asked of a store is asked again, ever later, while it fails for a reason that may pass: connections
that are refused or cut, time limits, errors of the server. Large files come in pieces, so that what a cut connection
has brought is not fetched again.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from fastdps.errors import ConfigError, FastDPSError, ShardError, did_you_mean

T = TypeVar("T")

#: What fsspec is asked for by each scheme, and the package that it needs for it.
SCHEMES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp", "memory": "fsspec"}
#: Those that can only be read.
_READ_ONLY = {"http", "https"}

#: Bytes that are asked for at a time: what is lost when a connection is cut.
PIECE_BYTES = 8 << 20
#: How often a request is made before it has failed; with the pauses between them that takes some half minute.
ATTEMPTS = 9
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
#: From this attempt on the user is told.
_TOLD_FROM = 4
#: Seconds without a byte after which a connection counts as cut.
SILENCE_S = 20.0

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(:.*)", re.DOTALL)
_REFUSED = (PermissionError, NotImplementedError, IsADirectoryError, NotADirectoryError)
#: Errors that only other credentials can mend, by name: their classes belong to packages that may not be there.
_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "DefaultCredentialsError"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """A directory of a remote file system. `store / "name"` is what lies in it, which may be a directory again.

    All that fails raises `ShardError`, or `FastDPSError` for what cannot be written, with the URL and what to do.
    """

    url: str

    def __truediv__(self, name: str) -> Store:
        return Store(f"{self.url.rstrip('/')}/{quote(name) if self._is_web else name}")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the URL."""
        last = urlsplit(self.url).path.rstrip("/").rpartition("/")[2] or urlsplit(self.url).netloc
        return unquote(last) if self._is_web else last

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        file_system, path = self._at(name)
        return self._asked(name, "read", lambda: file_system.cat_file(path))

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name, and not a large one."""
        file_system, path = self._at(name)

        def look_up() -> bool:  # fsspec's own `exists`, and on web servers its `info`, take any failure for an absence
            try:
                if self._is_web:
                    file_system.cat_file(path, start=0, end=1)
                    return True
                return bool(file_system.info(path)["type"] == "file")
            except FileNotFoundError:
                return False

        return self._asked(name, "looked up", look_up)

    def size(self, name: str) -> int | None:
        """The size of a file in bytes, None if there is none; not of a web server's, which may not say."""
        file_system, path = self._at(name)

        def look_up() -> int | None:
            try:
                return int(file_system.info(path)["size"])
            except FileNotFoundError:
                return None

        return self._asked(name, "looked up", look_up)

    def pieces(self, name: str, size: int) -> Iterator[bytes]:
        """The content of a large file of `size` bytes, in order and piece by piece.

        From a server that cannot give parts of a file it comes in one piece.
        """
        file_system, path = self._at(name)
        at = 0
        while at < size:
            stop = min(at + PIECE_BYTES, size)

            def get(start: int = at, stop: int = stop) -> bytes:
                found: bytes = file_system.cat_file(path, start=start, end=stop)
                if len(found) == size:  # all of it, whatever was asked for
                    return found[start:]
                if len(found) != stop - start:
                    raise OSError(f"{len(found)} bytes came of {stop - start} from byte {start} on")
                return found

            piece = self._asked(name, "read", get)
            at += len(piece)
            yield piece

    def files(self) -> dict[str, int]:
        """The names of the files that lie directly in it, and their sizes in bytes; empty if there is no such place."""
        return {Path(entry["name"]).name: entry["size"] for entry in self._entries() if entry["type"] == "file"}

    def directories(self) -> list[Store]:
        """The directories that lie directly in it, by name."""
        return [self / name for name in sorted(Path(e["name"]).name for e in self._entries() if e["type"] != "file")]

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all."""
        file_system, path = self._at(name)
        self._asked(name, "written", lambda: file_system.pipe_file(path, data))

    def put(self, name: str, file: Path) -> None:
        """Upload a file."""
        file_system, path = self._at(name)
        self._asked(name, "written", lambda: file_system.put_file(str(file), path))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        file_system, path = self._at(name)

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                file_system.rm_file(path)

        self._asked(name, "removed", remove)

    def refuse_to_write(self) -> None:
        """Raise `ConfigError` where nothing can be written."""
        if self._is_web:
            raise ConfigError(f"{self.url} is on a web server, which takes no files. Name a bucket or a directory.")

    @property
    def is_listed(self) -> bool:
        """Whether it can say which files it has; web servers do not."""
        return not self._is_web

    @property
    def _is_web(self) -> bool:
        return urlsplit(self.url).scheme in _READ_ONLY

    def _entries(self) -> list[dict[str, Any]]:
        if self._is_web:
            raise ShardError(f"{self.url} is on a web server, which does not list what it has.")
        file_system, path = _opened(self.url)

        def entries() -> list[dict[str, Any]]:
            try:
                listed: list[dict[str, Any]] = file_system.ls(path, detail=True)
            except FileNotFoundError:
                return []
            return [entry for entry in listed if entry["name"].strip("/") != path.strip("/")]

        return self._asked("", "listed", entries)

    def _at(self, name: str) -> tuple[Any, str]:
        """The file system, and the path in it of a file."""
        return _opened((self / name).url)

    def _asked(self, name: str, done: str, call: Callable[[], T]) -> T:
        """The answer to a request, made again while it fails for a reason that may pass."""
        what = (self / name).url if name else self.url
        kind = FastDPSError if done in ("written", "removed") else ShardError
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except FileNotFoundError:
                raise kind(f"there is no {what}. Check the URL, and whether the set is there in full.") from None
            except _REFUSED as error:
                raise kind(f"{what} cannot be {done}: {_said(error)}. Check the URL and the access rights.") from error
            except Exception as error:  # of packages that may not be there, so that their classes cannot be named
                if type(error).__name__ in _CREDENTIALS:
                    raise kind(
                        f"{what} cannot be {done}: {_said(error)}. Give credentials as the storage's own tools take "
                        "them, e.g. AWS_PROFILE or AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS."
                    ) from error
                if attempt == ATTEMPTS:
                    raise kind(
                        f"{what} cannot be {done}, tried {ATTEMPTS} times: {_said(error)}. Check the network and the "
                        "server, and run the same command again: what is finished is kept."
                    ) from error
                tell = _log.warning if attempt >= _TOLD_FROM else _log.info
                tell("%s could not be %s (%s); trying again", what, done, _said(error))
                pause = min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S)
                time.sleep(pause * random.uniform(0.5, 1))  # so that not all ask again at once
        raise AssertionError("not reached")


#: Where something lies: on this machine, or in a store.
Location = Path | Store
#: A location as users name it.
LocationLike = str | PathLike[str] | Store


def locate(text: LocationLike) -> Location:
    """The location that a user names: a path, or a URL of `SCHEMES`. Raises `ConfigError` for any other URL."""
    if not isinstance(text, str):
        return text if isinstance(text, Store) else Path(text)
    found = _SCHEME.fullmatch(text)
    if found is None or (len(found[1]) == 1 and "//" not in text) or Path(text).exists():  # C:\... is a path, too
        return Path(text)
    scheme, rest = found[1].lower(), found[2]
    if scheme == "file" and rest.startswith(":///"):
        return Path(unquote(rest[3:]))
    if not rest.startswith("://") and scheme not in (*SCHEMES, "pipe"):
        return Path(text)  # a name with a colon
    if scheme not in SCHEMES or not rest.startswith("://") or "::" in rest:
        known = ", ".join(f"{name}://" for name in SCHEMES if name != "memory")
        raise ConfigError(
            f"{text} is no place that shards may lie in.{did_you_mean(scheme, SCHEMES)} Known are directories, and "
            f"URLs with {known}; commands are never run."
        )
    return Store(f"{scheme}{rest}".rstrip("/"))


def open_store(url: str) -> Store:
    """The store by its URL. Raises `ConfigError` for what is none, or where the package for it is not installed."""
    store = locate(url)
    if not isinstance(store, Store):
        raise ConfigError(f"{url} is not a URL.")
    _file_system(urlsplit(store.url).scheme)
    return store


def read_text(location: Location, name: str) -> str:
    """The text of a small file. Raises `OSError` or `UnicodeDecodeError`, and for a store `ShardError`."""
    if isinstance(location, Store):
        return location.read(name).decode("utf-8")
    return (location / name).read_text(encoding="utf-8")


def has_file(location: Location, name: str) -> bool:
    """Whether a location has a file of this name."""
    return location.exists(name) if isinstance(location, Store) else (location / name).is_file()


def _opened(url: str) -> tuple[Any, str]:
    """The file system for a URL, and the path that it goes by there."""
    file_system = _file_system(urlsplit(url).scheme)
    return file_system, file_system._strip_protocol(url)


@functools.cache
def _file_system(scheme: str) -> Any:
    """One file system for each scheme; it serves all threads."""
    try:
        import fsspec

        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **_options(scheme))
    except ImportError as error:
        raise ConfigError(
            f"{scheme}:// needs {SCHEMES[scheme]}, which cannot be imported: {error}. "
            "Install it with `pip install 'fastdps[remote]'`."
        ) from error


def _options(scheme: str) -> dict[str, Any]:
    """What the file system is made with beside what the user's environment says: time limits for silence."""
    if scheme == "s3":  # the pauses between attempts are ours
        limits = {"connect_timeout": SILENCE_S, "read_timeout": SILENCE_S, "retries": {"total_max_attempts": 1}}
        return {"config_kwargs": limits}
    if scheme in _READ_ONLY:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
        return {"client_kwargs": {"timeout": timeout}}
    return {}


def _said(error: BaseException) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__
