"""Shards of a remote store, prefetched into a local cache directory of bounded size.

    store --pieces--> CACHE/SET/shard-000012.tar.partial --sha256 verified--> CACHE/SET/shard-000012.tar, .idx

All processes of a machine share the directory, also those of other jobs and other sets; SET is derived from the set's
content. Readers hold a shared flock on the tar, the downloader an exclusive flock on the partial file, so each shard is
downloaded once. Unlocked shards stay until room is needed, then the least recently used go first. Locks end with their
process, even a killed one. Each process verifies the checksum and the index of a cached shard before its first use, and
downloads damaged ones again.

Each process may hold its share of the cache size and evicts only unlocked files. So there is always room for the next
shard, and no process waits for another one of its job.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fastdps.errors import ConfigError, FastDPSError, ShardError
from fastdps.runtime.files import fsync_file, user_cache, write_errors, write_text
from fastdps.shards.cache_files import cache_lock, list_tars, open_partial, open_shared, partial_path
from fastdps.shards.format import Manifest, Shard
from fastdps.shards.index import index_of
from fastdps.shards.storage import Store

#: Concurrent downloads of a process: one stream of an object store gives some 100 MB/s. docs/scaling.md says what more
#: streams would give.
STREAMS = 8
#: Downloads of a shard whose checksum does not match before it is an error.
ATTEMPTS = 3
POLL_S = 0.05
#: How long to wait for room that other jobs hold.
ROOM_TIMEOUT_S = 300.0
#: Share of the free disk space that the cache takes by default.
DEFAULT_SHARE = 0.5

_log = logging.getLogger(__name__)
#: The stamps of the cached shards that this process has downloaded or verified.
_verified: set[tuple[str, int, int, int]] = set()


@dataclass(frozen=True)
class Cache:
    """A cache of shards.

    Attributes:
        directory: Where the shards are stored.
        bytes: The size limit, for all processes together.
    """

    directory: Path
    bytes: int


def default_directory() -> Path:
    """Return `$FASTDPS_CACHE`, or `shards` in the user's cache of fastdps."""
    return Path(os.environ.get("FASTDPS_CACHE") or user_cache() / "shards")


def make_cache(directory: Path | None = None, size: int | None = None) -> Cache:
    """Create the cache directory if it does not exist.

    Args:
        directory: Where shards are stored; None for `default_directory()`.
        size: The limit in bytes; None for half of the disk space that is free or already taken by the cache.

    Raises:
        ConfigError: The system has no file locks (Windows).
        FastDPSError: The directory cannot be created.

    Example:
        >>> make_cache(Path("/scratch/shards"), 50 * 10**9)  # doctest: +SKIP
        Cache(directory=PosixPath('/scratch/shards'), bytes=50000000000)
    """
    try:
        import fcntl  # noqa: F401
    except ImportError:
        raise ConfigError(
            "shards are cached on Linux and macOS only. Copy the set to this machine and name its directory."
        ) from None
    directory = directory or default_directory()
    with write_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    if size is None:
        taken = sum(tar.bytes for tar in list_tars(directory))
        size = int((shutil.disk_usage(directory).free + taken) * DEFAULT_SHARE)
    return Cache(directory, size)


class StagedSet:
    """A remote shard set, read by this process through the cache.

    Args:
        store: Where the set is.
        manifest: Its manifest.
        cache: Where its shards are staged.
        processes: Processes on this machine that share the cache.

    Attributes:
        directory: Where the shards are while this process holds them.
        quota: Bytes of shards that this process may hold at a time.
    """

    def __init__(self, store: Store, manifest: Manifest, cache: Cache, *, processes: int) -> None:
        self.store, self._cache = store, cache
        self.directory = cache.directory / manifest.content_sha256()[:16]
        self.quota = cache.bytes // processes
        with write_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)

    def prefetch(self, visits: Iterable[tuple[Shard, int]]) -> Prefetch:
        """Start to fetch shards in the order of the visits, each a shard and the number of its samples to be read."""
        prefetch = Prefetch(self)
        prefetch.extend(visits)
        return prefetch

    def fetch(self, shard: Shard, is_cancelled: threading.Event) -> int:
        """Download a shard unless the cache has it, and lock it.

        Returns:
            A descriptor that holds the lock until it is closed.

        Raises:
            ShardError: The shard cannot be downloaded, or its checksum keeps differing from the manifest's.
            FastDPSError: Other jobs hold all the room of the cache.
            CancelledError: `is_cancelled` was set.
        """
        tar = self.directory / shard.name
        while not is_cancelled.is_set():
            if (held := open_shared(tar, shard.bytes)) is not None:
                try:
                    if self._is_sound(tar, held, shard):
                        return held
                except BaseException:
                    os.close(held)
                    raise
                _log.warning("%s is damaged in the cache; downloading it again", tar)
                for path in (tar, tar.with_name(shard.index_name)):
                    path.unlink(missing_ok=True)
                os.close(held)
            with open_partial(tar) as descriptor:
                if descriptor is not None:
                    self._make_room(tar, descriptor, shard, is_cancelled)
                    self._download(tar, descriptor, shard, is_cancelled)
                    continue
            _pause(is_cancelled)  # another process is downloading it
        raise CancelledError

    def _is_sound(self, tar: Path, descriptor: int, shard: Shard) -> bool:
        """Return whether a cached shard has its checksum, and its index fits. Files are read once in a process."""
        if (stamp := _stamp(tar, descriptor)) in _verified:
            return True
        with open(descriptor, "rb", closefd=False) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                return False
        expected = index_of(descriptor, self.store / shard.name).encode()
        try:
            if tar.with_name(shard.index_name).read_bytes() != expected:
                return False
        except OSError:
            return False
        _verified.add(stamp)
        return True

    def _download(self, tar: Path, descriptor: int, shard: Shard, is_cancelled: threading.Event) -> None:
        """Download a shard into its partial file, write its index, and rename it."""
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
                    f"{self.store / shard.name} does not have the checksum of the manifest, in {ATTEMPTS} attempts. "
                    "Upload it again, or pack the set again."
                )
            with write_errors(tar):
                fsync_file(file)
            write_text(tar.with_name(shard.index_name), index_of(descriptor, self.store / shard.name))
        # Under the lock, so that `_make_room` of another process sees the file under exactly one name.
        with cache_lock(self._cache.directory), write_errors(tar):
            partial_path(tar).rename(tar)
            _verified.add(_stamp(tar, descriptor))

    def _make_room(self, tar: Path, descriptor: int, shard: Shard, is_cancelled: threading.Event) -> None:
        """Reserve the bytes of a shard for its partial file; evict the least recently used shards for it."""
        end = time.monotonic() + ROOM_TIMEOUT_S
        while True:
            with cache_lock(self._cache.directory), write_errors(tar):
                others = (other for other in list_tars(self._cache.directory) if other.path != partial_path(tar))
                oldest_first = sorted(others, key=lambda other: other.used_ns)
                excess = sum(other.bytes for other in oldest_first) + shard.bytes - self._cache.bytes
                for other in oldest_first:
                    if excess > 0 and other.evict():
                        excess -= other.bytes
                if excess <= 0:
                    os.ftruncate(descriptor, shard.bytes)  # other processes count these bytes from now on
                    return
            if time.monotonic() > end:
                raise FastDPSError(
                    f"{self._cache.directory} has no room for {shard.name}: other jobs have held its "
                    f"{self._cache.bytes:,} bytes for {ROOM_TIMEOUT_S:.0f} s. Give each job its own --cache-dir, "
                    "or increase --cache-size for all of them."
                )
            _pause(is_cancelled)


class Prefetch:
    """The next shards to be read, in order: fetched or being fetched, within the quota.

    `extend`, `wait` and `release` may be called from different threads.
    """

    def __init__(self, staged: StagedSet) -> None:
        self._staged = staged
        self._samples: deque[int] = deque()  # not yet read, by visit
        self._pending: deque[Shard] = deque()  # visits whose fetch has not started
        self._started: deque[Shard] = deque()  # visits whose fetch has started and that are not released
        self._to_wait_for: deque[Future[int]] = deque()
        self._held: dict[str, Future[int]] = {}  # by shard, which may have several visits
        self._visits: Counter[str] = Counter()  # started visits of each held shard
        self._bytes = 0
        self._lock = threading.Lock()
        self._is_cancelled = threading.Event()
        self._pool = ThreadPoolExecutor(STREAMS, thread_name_prefix="fastdps-stage")
        self._has_started = threading.Condition(self._lock)

    def extend(self, visits: Iterable[tuple[Shard, int]]) -> None:
        """Append visits, each a shard and the number of its samples to be read."""
        with self._lock:
            for shard, samples in visits:
                self._pending.append(shard)
                self._samples.append(samples)
        self._fill()

    def wait(self) -> None:
        """Wait for the shard of the next visit. It stays locked until its samples are released.

        Raises what `StagedSet.fetch` raises.
        """
        with self._has_started:
            while not self._to_wait_for:
                if self._is_cancelled.is_set():
                    raise CancelledError
                self._has_started.wait()
            fetched = self._to_wait_for.popleft()
        fetched.result()

    def release(self, samples: int) -> None:
        """Count further samples as read, and unlock the shards of which all samples have been read."""
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
        """Stop fetching; `wait` raises `CancelledError` from now on."""
        self._is_cancelled.set()
        with self._has_started:
            self._pending.clear()
            self._has_started.notify_all()

    def close(self) -> None:
        """Cancel, wait for the downloads to stop and unlock all shards."""
        self.cancel()
        self._pool.shutdown(cancel_futures=True)
        with self._lock:
            while self._started:
                self._release_oldest()

    def _fill(self) -> None:
        """Start to fetch the next shards as far as the quota allows."""
        with self._has_started:
            while self._pending and self._bytes + self._added_bytes(self._pending[0]) <= self._staged.quota:
                shard = self._pending.popleft()
                self._bytes += self._added_bytes(shard)
                self._visits[shard.name] += 1
                if shard.name not in self._held:
                    self._held[shard.name] = self._pool.submit(self._staged.fetch, shard, self._is_cancelled)
                self._started.append(shard)
                self._to_wait_for.append(self._held[shard.name])
            self._has_started.notify_all()

    def _added_bytes(self, shard: Shard) -> int:
        """Return the bytes that one more visit of a shard adds: none if an earlier visit holds the shard."""
        return 0 if self._visits[shard.name] else shard.bytes

    def _release_oldest(self) -> None:
        shard = self._started.popleft()
        self._visits[shard.name] -= 1
        self._bytes -= self._added_bytes(shard)
        if not self._visits[shard.name]:
            with contextlib.suppress(Exception):  # the fetch failed, and `wait` has raised its error
                os.close(self._held.pop(shard.name).result())


def _stamp(tar: Path, descriptor: int) -> tuple[str, int, int, int]:
    """Return a value that changes when a shard is replaced or written to."""
    state = os.fstat(descriptor)
    return str(tar), state.st_ino, state.st_size, state.st_mtime_ns


def _pause(is_cancelled: threading.Event) -> None:
    if is_cancelled.wait(POLL_S):
        raise CancelledError
