"""Shards of a store, brought to this machine ahead of their reader, in a directory of bounded size.

    store --pieces--> CACHE/SET/shard-000012.tar.partial --sha256 is the manifest's--> CACHE/SET/shard-000012.tar, .idx

All processes of a machine share the directory, whatever they read and whichever job they belong to; SET is named by
what is in it. Whoever uses a shard holds a shared lock of the system on its tar, whoever brings one an exclusive lock
on the unfinished file, so that each is brought once, and what is not locked is in nobody's way: it stays as long as
there is room, and goes when there is none, what was used last at last. Locks end with their process, even a killed one.

Each process may hold its share of the size, and makes room by removing only what nobody holds. So there is always
room for what it holds next, and none waits for another.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastdps.errors import ConfigError, FastDPSError, ShardError
from fastdps.runtime.files import PARTIAL, fsync_file, user_cache, write_errors, write_text
from fastdps.shards.format import Manifest, Shard, index_of
from fastdps.shards.storage import Store

#: Shards that a process brings at a time: one stream of an object storage gives some 100 MB/s. See docs/scaling.md for
#: what more would give.
STREAMS = 8
#: How often a shard is brought that turns out not to be what the manifest says.
ATTEMPTS = 3
POLL_S = 0.05
#: For how long room is waited for that other jobs hold.
ROOM_TIMEOUT_S = 300.0
#: The share of the free space that the directory takes by default.
DEFAULT_SHARE = 0.5

_LOCK = "lock"


@dataclass(frozen=True)
class Cache:
    """Where shards are staged, and the bytes that they may take there, those of all processes together."""

    directory: Path
    bytes: int


def default_directory() -> Path:
    """`$FASTDPS_CACHE`, or `shards` in the user's cache of fastdps."""
    return Path(os.environ.get("FASTDPS_CACHE") or user_cache() / "shards")


def make_cache(directory: Path | None = None, size: int | None = None) -> Cache:
    """A cache; without a size, half of what is free on its disk or taken by it already.

    Raises `ConfigError` where the system has no locks, and `FastDPSError` where the directory cannot be made.
    """
    try:
        import fcntl  # noqa: F401
    except ImportError:
        raise ConfigError(
            "shards are staged on Linux and macOS only. Copy the set here, and name its directory."
        ) from None
    directory = directory or default_directory()
    with write_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    if size is None:
        taken = sum(file.bytes for file in _files(directory))
        size = int((shutil.disk_usage(directory).free + taken) * DEFAULT_SHARE)
    return Cache(directory, size)


class StagedSet:
    """A shard set of a store as this process reads it; `directory` is where its shards are while they are held.

    `quota` is the bytes of shards that this process may hold at a time, of `processes` on this machine.
    """

    def __init__(self, store: Store, manifest: Manifest, cache: Cache, *, processes: int) -> None:
        self.store, self._cache = store, cache
        self.directory = cache.directory / manifest.content_sha256()[:16]
        self.quota = cache.bytes // processes
        with write_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)

    def prefetch(self, visits: Iterable[tuple[Shard, int]]) -> Prefetch:
        """Begin to bring shards in the order of the visits, each a shard and the number of its samples to be read."""
        prefetch = Prefetch(self)
        prefetch.extend(visits)
        return prefetch

    def fetch(self, shard: Shard, is_cancelled: threading.Event) -> int:
        """Have a shard here, and hold it: returns a descriptor that holds it until it is closed.

        Raises `ShardError` when it cannot be had or stays other than the manifest says, `FastDPSError` without room,
        and `CancelledError`.
        """
        tar = self.directory / shard.name
        while not is_cancelled.is_set():
            if (held := _hold(tar, shard.bytes)) is not None:
                return held
            with _unfinished(tar) as descriptor:
                if descriptor is not None:
                    self._make_room(tar, descriptor, shard, is_cancelled)
                    self._download(tar, descriptor, shard, is_cancelled)
                    continue
            _pause(is_cancelled)  # another process brings it
        raise CancelledError

    def _download(self, tar: Path, descriptor: int, shard: Shard, is_cancelled: threading.Event) -> None:
        """Bring a shard, make its index, and give them their names."""
        with open(descriptor, "r+b", closefd=False) as file:
            for _ in range(ATTEMPTS):
                digest = hashlib.sha256()
                file.seek(0)
                for piece in self.store.pieces(shard.name, shard.bytes):
                    if is_cancelled.is_set():
                        raise CancelledError
                    with write_errors(tar):
                        file.write(piece)
                    digest.update(piece)
                if digest.hexdigest() == shard.sha256:
                    break
            else:
                raise ShardError(
                    f"{self.store / shard.name} does not have the checksum that the manifest says, and had not in "
                    f"{ATTEMPTS} attempts. Upload it again, or pack the set again."
                )
            with write_errors(tar):
                fsync_file(file)
            write_text(tar.with_name(shard.index_name), index_of(descriptor))
        with _locked(self._cache.directory / _LOCK), write_errors(tar):  # which sees it under one of its names
            _partial(tar).rename(tar)

    def _make_room(self, tar: Path, descriptor: int, shard: Shard, is_cancelled: threading.Event) -> None:
        """Reserve the bytes of a shard for its unfinished file, and remove what was used longest ago to that end."""
        end = time.monotonic() + ROOM_TIMEOUT_S
        while True:
            with _locked(self._cache.directory / _LOCK), write_errors(tar):
                others = (file for file in _files(self._cache.directory) if file.path != _partial(tar))
                files = sorted(others, key=lambda file: file.used)
                too_much = sum(file.bytes for file in files) + shard.bytes - self._cache.bytes
                for file in files:
                    if too_much > 0 and file.remove():
                        too_much -= file.bytes
                if too_much <= 0:
                    os.ftruncate(descriptor, shard.bytes)  # counts from now on
                    return
            if time.monotonic() > end:
                raise FastDPSError(
                    f"{self._cache.directory} has no room for {shard.name}: other jobs have held its "
                    f"{self._cache.bytes:,} bytes for {ROOM_TIMEOUT_S:.0f} s. Give each job a --cache-dir of its own, "
                    "or all a larger --cache-size."
                )
            _pause(is_cancelled)


class Prefetch:
    """The shards that are read next, in order: some of them here, some on the way, within the quota.

    `extend`, `wait` and `release` may be called from different threads.
    """

    def __init__(self, staged: StagedSet) -> None:
        self._staged = staged
        self._samples: deque[int] = deque()  # still to be delivered, by visit
        self._coming: deque[Shard] = deque()  # not begun
        self._begun: deque[Shard] = deque()  # and not released, by visit
        self._to_wait_for: deque[Future[int]] = deque()
        self._held: dict[str, Future[int]] = {}  # by shard, which may have several visits
        self._visits: Counter[str] = Counter()  # of those that are held
        self._bytes = 0
        self._lock = threading.Lock()
        self._is_cancelled = threading.Event()
        self._pool = ThreadPoolExecutor(STREAMS, thread_name_prefix="fastdps-stage")
        self._arrived = threading.Condition(self._lock)

    def extend(self, visits: Iterable[tuple[Shard, int]]) -> None:
        """Read so much more after what there is."""
        with self._lock:
            for shard, samples in visits:
                self._coming.append(shard)
                self._samples.append(samples)
        self._fill()

    def wait(self) -> None:
        """Wait for the shard of the next visit. It stays until its samples are delivered. Raises as `fetch`."""
        with self._arrived:
            while not self._to_wait_for:
                if self._is_cancelled.is_set():
                    raise CancelledError
                self._arrived.wait()
            coming = self._to_wait_for.popleft()
        coming.result()

    def release(self, samples: int) -> None:
        """Let go of the shards of which everything has been read, now that so many more samples have been."""
        with self._lock:
            while samples and self._samples:
                part = min(samples, self._samples[0])
                samples -= part
                self._samples[0] -= part
                if self._samples[0] == 0:
                    self._samples.popleft()
                    self._release_oldest()
        self._fill()

    def cancel(self) -> None:
        """Bring nothing more; whoever waits gets a `CancelledError`."""
        self._is_cancelled.set()
        with self._arrived:
            self._coming.clear()
            self._arrived.notify_all()

    def close(self) -> None:
        """Let go of everything."""
        self.cancel()
        self._pool.shutdown(cancel_futures=True)
        with self._lock:
            while self._begun:
                self._release_oldest()

    def _fill(self) -> None:
        """Begin to bring what comes next, as long as the quota holds it."""
        with self._arrived:
            while self._coming and self._bytes + self._new_bytes(self._coming[0]) <= self._staged.quota:
                shard = self._coming.popleft()
                self._bytes += self._new_bytes(shard)
                self._visits[shard.name] += 1
                if shard.name not in self._held:
                    self._held[shard.name] = self._pool.submit(self._staged.fetch, shard, self._is_cancelled)
                self._begun.append(shard)
                self._to_wait_for.append(self._held[shard.name])
            self._arrived.notify_all()

    def _new_bytes(self, shard: Shard) -> int:
        """What it adds to hold a shard, which may be held for an earlier visit."""
        return 0 if self._visits[shard.name] else shard.bytes

    def _release_oldest(self) -> None:
        shard = self._begun.popleft()
        self._visits[shard.name] -= 1
        self._bytes -= self._new_bytes(shard)
        if not self._visits[shard.name]:
            with contextlib.suppress(Exception):  # it never came, and who waited for it has been told
                os.close(self._held.pop(shard.name).result())


@dataclass(frozen=True)
class _File:
    """A tar of the cache, finished or not; `used` is when it last was, in ns."""

    path: Path
    bytes: int
    used: int

    def remove(self) -> bool:
        """Remove it and its index unless somebody holds it, and say whether that was done."""
        import fcntl

        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            self.path.with_suffix(".idx").unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            return True
        finally:
            os.close(descriptor)


def _files(directory: Path) -> Iterator[_File]:
    """All tars of all sets of a cache."""
    for path in (*directory.glob("*/*.tar"), *directory.glob(f"*/*.tar{PARTIAL}")):
        with contextlib.suppress(FileNotFoundError):
            state = path.stat()
            yield _File(path, state.st_size, state.st_atime_ns)


def _hold(tar: Path, size: int) -> int | None:
    """A descriptor that holds a finished shard, None if it is not there. One of another size is removed."""
    import fcntl

    try:
        descriptor = os.open(tar, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        state = os.fstat(descriptor)
        if _is_at(tar, descriptor):
            if state.st_size == size and tar.with_suffix(".idx").exists():
                os.utime(descriptor, ns=(time.time_ns(), state.st_mtime_ns))  # when it was used, for `_make_room`
                return descriptor
            tar.unlink()  # somebody has been at it
    except BlockingIOError:  # it is being removed, or is just about to be held by who brought it
        pass
    os.close(descriptor)
    return None


@contextmanager
def _unfinished(tar: Path) -> Iterator[int | None]:
    """A context with the descriptor of the unfinished file of a shard, None if another process brings the shard."""
    import fcntl

    path = _partial(tar)
    with write_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        if not _is_at(path, descriptor):  # finished, or removed, since it was opened
            yield None
            return
        if tar.exists():  # finished before it was opened, and locked by who finished it when `_hold` looked
            path.unlink()
            yield None
            return
        try:
            yield descriptor
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A context that one thread of all processes at a time is in: what is in a cache does not change meanwhile."""
    import fcntl

    with write_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _partial(tar: Path) -> Path:
    return tar.with_name(tar.name + PARTIAL)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether a path still names the file that was opened by it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _pause(is_cancelled: threading.Event) -> None:
    if is_cancelled.wait(POLL_S):
        raise CancelledError
