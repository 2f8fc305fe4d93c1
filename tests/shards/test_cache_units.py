"""Prefetching and eviction by themselves, with stores and files that the test makes."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdps.errors import FastDPSError, ShardError
from fastdps.shards import cache as module
from fastdps.shards.cache import ATTEMPTS, Cache, Prefetch, StagedSet, default_directory, make_cache
from fastdps.shards.cache_files import list_tars, open_shared, partial_path
from fastdps.shards.format import Manifest, Shard, read_manifest
from helpers.shard_sets import raw_samples, write_set


class Staged:
    """A staged set whose shards are files in memory; it records which are held."""

    def __init__(self, quota: int) -> None:
        self.quota, self.fetched, self.held = quota, [], {}
        self.lock = threading.Lock()

    def fetch(self, shard: Shard, is_cancelled: threading.Event) -> int:
        descriptor = os.memfd_create(shard.name)
        with self.lock:
            self.fetched.append(shard.name)
            self.held[shard.name] = descriptor, os.fstat(descriptor).st_ino  # numbers of descriptors are used again
        return descriptor

    def is_held(self, name: str) -> bool:
        if name not in self.held:
            return False
        descriptor, inode = self.held[name]
        try:
            return os.fstat(descriptor).st_ino == inode
        except OSError:
            return False


def shard(number: int, samples: int, size: int) -> Shard:
    return Shard(f"shard-{number:06d}.tar", samples, size, "0" * 64)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    visits=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=12),
    spare=st.integers(0, 6),
    step=st.integers(1, 5),
    cut=st.integers(0, 12),
)
def test_visits_come_in_order_within_the_quota(sizes, visits, spare, step, cut):
    """In any division into calls of `extend`, and released in any number of samples at a time."""
    shards = [shard(number, 9, size) for number, size in enumerate(sizes)]
    wanted = [(shards[number % len(shards)], samples) for number, samples in visits]
    staged = Staged(max(sizes) + spare)
    prefetch = Prefetch(staged)
    prefetch.extend(wanted[:cut])
    prefetch.extend(wanted[cut:])
    unreleased = 0
    try:
        for one, samples in wanted:
            prefetch.wait()
            assert staged.is_held(one.name)
            held = {name for name in staged.fetched if staged.is_held(name)}
            assert sum(s.bytes for s in shards if s.name in held) <= staged.quota
            unreleased += samples
            while unreleased >= step:
                prefetch.release(step)
                unreleased -= step
            prefetch.release(unreleased)
            unreleased = 0
        assert not any(staged.is_held(one.name) for one in shards)
    finally:
        prefetch.close()
    assert len(staged.fetched) <= len(wanted)


def test_following_visits_of_a_shard_hold_it_once():
    staged = Staged(quota=3)
    one = shard(0, 9, 3)
    prefetch = Prefetch(staged)
    prefetch.extend([(one, 2), (one, 3), (one, 4)])
    for _ in range(3):
        prefetch.wait()
    for samples, is_held in ((1, True), (1, True), (3, True), (3, True), (1, False)):
        prefetch.release(samples)
        assert staged.is_held(one.name) is is_held
    assert staged.fetched == [one.name]
    prefetch.release(5)  # more than was read is not an error
    prefetch.close()


def test_cancelling_ends_those_who_wait_and_closing_unlocks_all():
    staged = Staged(quota=2)
    shards = [shard(number, 1, 1) for number in range(4)]
    prefetch = Prefetch(staged)
    prefetch.extend([(one, 1) for one in shards])
    prefetch.wait()
    prefetch.wait()
    ended = []

    def wait() -> None:
        with pytest.raises(CancelledError):
            prefetch.wait()
        ended.append(True)

    waiting = threading.Thread(target=wait)
    waiting.start()
    prefetch.cancel()
    waiting.join(timeout=10)
    assert ended == [True]
    prefetch.extend([])
    assert set(staged.fetched) == {one.name for one in shards[:2]}
    prefetch.close()
    assert not any(map(staged.is_held, staged.fetched))


class LocalStore:
    """A store that gives the files of a directory, and other bytes for a number of times."""

    def __init__(self, directory: Path, bad: int = 0) -> None:
        self.directory, self.bad, self.reads = directory, bad, 0

    def __truediv__(self, name: str) -> Path:
        return self.directory / name

    def pieces(self, name: str, size: int):
        self.reads += 1
        data = (self.directory / name).read_bytes()
        assert len(data) == size
        if self.reads <= self.bad:
            data = bytes(len(data))
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]


@pytest.fixture
def source(tmp_path) -> Path:
    return write_set(tmp_path / "source", raw_samples(12), [3, 3, 3, 3])


def staged_set(source: Path, cache: Cache, *, bad: int = 0, processes: int = 1) -> tuple[StagedSet, Manifest]:
    manifest = read_manifest(source)
    return StagedSet(LocalStore(source, bad), manifest, cache, processes=processes), manifest


@pytest.mark.parametrize("bad", range(ATTEMPTS + 1))
def test_a_wrong_checksum_is_downloaded_again_some_times(tmp_path, source, bad):
    staged, manifest = staged_set(source, Cache(tmp_path / "cache", 1 << 20), bad=bad)
    first = manifest.shards[0]
    if bad == ATTEMPTS:
        with pytest.raises(ShardError, match=rf"{first.name} does not have the checksum .* in {ATTEMPTS} attempts"):
            staged.fetch(first, threading.Event())
        assert list(staged.directory.iterdir()) == []
    else:
        os.close(staged.fetch(first, threading.Event()))
        assert hashlib.sha256((staged.directory / first.name).read_bytes()).hexdigest() == first.sha256
        assert (staged.directory / first.index_name).read_text() == (source / first.index_name).read_text()
        assert sorted(path.name for path in staged.directory.iterdir()) == [first.index_name, first.name]
    assert staged.store.reads == min(bad + 1, ATTEMPTS)


def test_the_oldest_shards_make_room_and_no_more_than_needed(tmp_path, source):
    size = read_manifest(source).shards[0].bytes
    cache = Cache(tmp_path / "cache", 3 * size)
    staged, manifest = staged_set(source, cache)
    first, second, third, fourth = manifest.shards
    for one in (second, first, third):
        os.close(staged.fetch(one, threading.Event()))
        time.sleep(0.01)
    os.close(open_shared(staged.directory / second.name, size))  # used again
    os.close(staged.fetch(fourth, threading.Event()))
    assert {tar.path.name for tar in list_tars(cache.directory)} == {second.name, third.name, fourth.name}
    assert not (staged.directory / first.index_name).exists()
    held = [staged.fetch(one, threading.Event()) for one in (second, third, fourth)]
    module_limit = module.ROOM_TIMEOUT_S
    try:
        module.ROOM_TIMEOUT_S = 0.0
        with pytest.raises(FastDPSError, match=f"has no room for {first.name}: other jobs have held its {3 * size:,}"):
            staged.fetch(first, threading.Event())
    finally:
        module.ROOM_TIMEOUT_S = module_limit
        for descriptor in held:
            os.close(descriptor)
    assert not partial_path(staged.directory / first.name).exists()


def test_a_fetch_that_was_cancelled_downloads_nothing(tmp_path, source):
    staged, manifest = staged_set(source, Cache(tmp_path / "cache", 1 << 20))
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(CancelledError):
        staged.fetch(manifest.shards[0], cancelled)
    assert staged.store.reads == 0


def test_processes_share_the_size_of_a_cache(tmp_path, source):
    cache = Cache(tmp_path / "cache", 100)
    staged, manifest = staged_set(source, cache, processes=3)
    assert staged.quota == 33
    assert staged.directory == cache.directory / manifest.content_sha256()[:16]


def test_the_default_size_is_half_of_what_is_free_or_cached(tmp_path, source, monkeypatch):
    monkeypatch.setenv("FASTDPS_CACHE", str(tmp_path / "given"))
    assert default_directory() == tmp_path / "given"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, 10**6))
    assert make_cache() == Cache(tmp_path / "given", 500_000)
    (tmp_path / "given" / "a").mkdir()
    (tmp_path / "given" / "a" / "shard-000000.tar").write_bytes(bytes(1000))
    (tmp_path / "given" / "a" / "shard-000001.tar.partial").write_bytes(bytes(100))
    (tmp_path / "given" / "a" / "shard-000000.idx").write_bytes(bytes(10))
    assert make_cache().bytes == 500_550
    assert make_cache(tmp_path / "other" / "deep", 7) == Cache(tmp_path / "other" / "deep", 7)
    assert (tmp_path / "other" / "deep").is_dir()
    monkeypatch.delenv("FASTDPS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert default_directory() == tmp_path / "user" / "fastdps" / "shards"
