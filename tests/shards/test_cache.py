"""The shard cache: the same batches as from disk, within its size, each shard downloaded once."""

import itertools
import os
import threading
import time

import pytest
import torch

from fastdps.errors import ConfigError
from fastdps.loading.loader import open_shards
from fastdps.loading.options import LoadOptions
from fastdps.shards import cache_files
from fastdps.shards.cache import Cache, StagedSet
from fastdps.shards.format import read_manifest
from fastdps.shards.index import index_of
from fastdps.shards.storage import open_store
from helpers.cached_sets import SIZES, assert_same, batches, bytes_of, files_in, two_shards, write_kind
from helpers.servers import Faults, failing_proxy
from helpers.shard_sets import open_set


@pytest.mark.parametrize("kind", ["raw", "jpeg", "triplets"])
def test_an_index_made_from_its_tar_equals_packing(tmp_path, kind):
    directory = write_kind(tmp_path, kind)
    for tar in directory.glob("*.tar"):
        with tar.open("rb") as file:
            assert index_of(file.fileno(), tar) == tar.with_suffix(".idx").read_text()


@pytest.mark.parametrize("room", ["two shards", "all"])
@pytest.mark.parametrize(
    ("kind", "reader"), [("raw", "portable"), ("raw", "dali"), ("jpeg", "dali"), ("triplets", "portable")]
)
def test_batches_equal_the_batches_of_a_local_set(web, tmp_path, kind, reader, room):
    if reader == "dali":
        pytest.importorskip("nvidia.dali")
    directory = write_kind(web[0] / "set", kind)
    cache = Cache(tmp_path / "cache", two_shards(directory) if room == "two shards" else 1 << 30)
    for batch_size in (1, 4, 10):
        options = {"batch_size": batch_size, "loader": reader, "num_threads": 2}
        here = open_set(directory, **options)
        away = open_set(f"{web[1]}/set", **options, cache=cache)
        for epoch in range(3):
            assert_same(batches(away, epoch, then=epoch + 1), batches(here, epoch))
        assert_same(batches(away, 3, start_step=3, then=4), batches(here, 3, start_step=3))
        assert_same(batches(away, 1), batches(here, 1))
        left = [range(5, 20), range(22, 24), range(40, 70)]
        assert_same(batches(away, 3, left=left, then=4), batches(here, 3, left=left))
        assert_same(batches(away, 4), batches(here, 4))


@pytest.mark.parametrize("reader", ["portable", "dali"])
def test_the_cache_is_never_larger_than_its_size(raw, tmp_path, reader):
    directory, url = raw
    size = two_shards(directory)
    cache = Cache(tmp_path / "cache", size)
    loader = open_shards(url, batch_size=2, options=LoadOptions(cache=cache, loader=reader, num_threads=1))
    most, ended = 0, threading.Event()

    def watch():
        nonlocal most
        while not ended.wait(0.001):
            with cache_files.cache_lock(cache.directory):
                most = max(most, sum(tar.bytes for tar in cache_files.list_tars(cache.directory)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        epochs = [batches(loader, epoch, then=epoch + 1) for epoch in range(3)]
        loader.close()
    finally:
        ended.set()
        thread.join()
    assert sum(len(ids) for epoch in epochs for ids, _ in epoch) == 3 * sum(SIZES)
    assert max(bytes_of(directory)) < most <= size


def test_a_small_cache_is_rejected_with_the_needed_size(raw, tmp_path):
    directory, url = raw
    least = two_shards(directory)
    with pytest.raises(ConfigError, match=rf"needs at least {least:,}.*--cache-size"):
        open_shards(url, batch_size=4, options=LoadOptions(cache=Cache(tmp_path / "cache", least - 1)))


def test_processes_of_a_machine_share_its_size(raw, tmp_path, monkeypatch):
    directory, url = raw
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=f"needs at least {2 * two_shards(directory):,}"):
        open_shards(
            url, batch_size=4, options=LoadOptions(cache=Cache(tmp_path / "cache", 2 * two_shards(directory) - 1))
        )


def test_each_process_downloads_only_the_shards_it_reads_and_only_once(raw, tmp_path):
    directory, _ = raw
    faults = Faults(0)
    with failing_proxy(int(raw[1].split(":")[2].split("/")[0]), faults) as port:
        url = f"http://127.0.0.1:{port}/set"
        cache = Cache(tmp_path / "cache", 1 << 30)
        loader = open_shards(url, batch_size=3, rank=1, world_size=4, options=LoadOptions(cache=cache))
        for epoch in (0, 0):
            ids = torch.cat([ids for ids, _ in batches(loader, epoch)]).tolist()
    ends = list(itertools.accumulate(SIZES))
    wanted = {next(number for number, end in enumerate(ends) if sample < end) for sample in ids}
    asked = {path: count for path, count in faults.paths.items() if "shard" in path}
    assert asked == {f"/set/shard-{number:06d}.tar": 1 for number in wanted}
    assert len(wanted) < len(SIZES)
    assert directory.exists()


def test_shards_of_the_next_epoch_come_after_the_last_batch(raw, tmp_path):
    directory, _ = raw
    faults = Faults(1.0, slow_s=0.2, kinds=("slow",))
    with failing_proxy(int(raw[1].split(":")[2].split("/")[0]), faults) as port:
        cache = Cache(tmp_path / "cache", two_shards(directory))
        loader = open_shards(f"http://127.0.0.1:{port}/set", batch_size=4, options=LoadOptions(cache=cache))
        batches(loader, 0, then=1)
        first = next(loader._order(1).visits(range(1))).shard
        tar = loader._spec.directory / loader.manifest.shards[first].name
        end = time.monotonic() + 20
        while not tar.exists() and time.monotonic() < end:
            time.sleep(0.01)
        held = next(other for other in cache_files.list_tars(cache.directory) if other.path == tar)
        assert not held.evict()
        asked = faults.paths.copy()
        next(epoch := loader.epoch(1))
        assert faults.paths[f"/set/{tar.name}"] == asked[f"/set/{tar.name}"]
        epoch.close()
        batches(loader, 0, then=1)
        loader.close()
    assert all(tar.evict() for tar in cache_files.list_tars(cache.directory))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("fastdps-")]


def test_two_concurrent_sets_download_a_shard_once(raw, tmp_path):
    faults = Faults(1.0, slow_s=0.2, kinds=("slow",))
    with failing_proxy(int(raw[1].split(":")[2].split("/")[0]), faults) as port:
        url = f"http://127.0.0.1:{port}/set"
        manifest = read_manifest(url)
        cache = Cache(tmp_path / "cache", 1 << 30)
        sets = [StagedSet(open_store(url), manifest, cache, processes=2) for _ in range(2)]
        visits = [(shard, shard.samples) for shard in manifest.shards]
        both = [one.prefetch(visits) for one in sets]
        for _ in visits:
            for prefetch in both:
                prefetch.wait()
        for prefetch in both:
            prefetch.close()
    assert {path: n for path, n in faults.paths.items() if path.endswith(".tar")} == {
        f"/set/{shard.name}": 1 for shard in manifest.shards
    }


def test_locked_shards_stay_and_the_least_recently_used_is_evicted(raw, tmp_path):
    directory, url = raw
    manifest = read_manifest(directory)
    large = [shard for shard in manifest.shards if shard.samples == 12]
    cache = Cache(tmp_path / "cache", 3 * large[0].bytes)
    staged = StagedSet(open_store(url), manifest, cache, processes=1)
    never = threading.Event()
    held = [staged.fetch(shard, never) for shard in large[:3]]
    os.close(held[1])
    time.sleep(0.01)
    os.close(staged.fetch(large[1], never))  # used again
    os.close(held[0])
    os.close(staged.fetch(large[3], never))
    assert files_in(cache.directory) == sorted(
        f"{shard.name[:-4]}.{end}" for shard in (large[1], large[2], large[3]) for end in ("tar", "idx")
    )
    os.close(held[2])
