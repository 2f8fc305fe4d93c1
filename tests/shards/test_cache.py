import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from fastdps.errors import ConfigError, ShardError
from fastdps.loading.loader import open_shards
from fastdps.shards import cache as staging
from fastdps.shards import storage
from fastdps.shards.cache import Cache, StagedSet
from fastdps.shards.format import index_of, read_manifest
from fastdps.shards.storage import open_store
from helpers.packed import encoded, photo
from helpers.servers import Faults, failing_proxy
from helpers.shard_sets import raw_samples, write_set

SIZES = (12, 9, 15, 12, 12, 1, 12)


def write_kind(directory: Path, kind: str) -> Path:
    n = sum(SIZES)
    if kind == "raw":
        return write_set(directory, raw_samples(n), SIZES)
    if kind == "jpeg":
        samples = [{"jpg": encoded(photo(8, 8, seed), "JPEG")} for seed in range(n)]
        return write_set(directory, samples, SIZES, encoding="jpeg", image_size=(8, 8))
    images = iter(raw_samples(3 * n))
    samples = [
        {**{f"{name}.bin": next(images)["bin"] for name in ("ref", "p0", "p1")}, "judge.f32": b"\0\0\0\x3f"}
        for _ in range(n)
    ]
    return write_set(directory, samples, SIZES, kind="triplets")


def bytes_of(directory: Path) -> list[int]:
    return [shard.bytes for shard in read_manifest(directory).shards]


def two_shards(directory: Path) -> int:
    """The least a cache needs: the two largest shards, and the one of a single sample that may lie between."""
    sizes = sorted(bytes_of(directory))
    return sizes[-1] + sizes[-2] + sizes[0]


def batches(loader, epoch=0, **options):
    return [(batch.ids, batch.components) for batch in loader.epoch(epoch, **options)]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for (ids, components), (expected_ids, expected_components) in zip(found, expected, strict=True):
        assert torch.equal(ids, expected_ids)
        assert components.keys() == expected_components.keys()
        for name, value in components.items():
            assert torch.equal(value, expected_components[name])


def files_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("shard-*"))


@pytest.fixture
def raw(web):
    """A raw set on a web server: its directory and its URL."""
    return write_kind(web[0] / "set", "raw"), f"{web[1]}/set"


@pytest.mark.parametrize("kind", ["raw", "jpeg", "triplets"])
def test_an_index_is_made_from_its_tar_as_packing_writes_it(tmp_path, kind):
    directory = write_kind(tmp_path, kind)
    for tar in directory.glob("*.tar"):
        with tar.open("rb") as file:
            assert index_of(file.fileno()) == tar.with_suffix(".idx").read_text()


@pytest.mark.parametrize("room", ["two shards", "all"])
@pytest.mark.parametrize(
    ("kind", "reader"), [("raw", "portable"), ("raw", "dali"), ("jpeg", "dali"), ("triplets", "portable")]
)
def test_batches_are_those_of_the_same_set_here(web, tmp_path, kind, reader, room):
    if reader == "dali":
        pytest.importorskip("nvidia.dali")
    directory = write_kind(web[0] / "set", kind)
    cache = Cache(tmp_path / "cache", two_shards(directory) if room == "two shards" else 1 << 30)
    for batch_size in (1, 4, 10):
        options = {"batch_size": batch_size, "loader": reader, "num_threads": 2}
        here = open_shards(directory, **options)
        away = open_shards(f"{web[1]}/set", cache=cache, **options)
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
    loader = open_shards(url, batch_size=2, cache=cache, loader=reader, num_threads=1)
    most, ended = 0, threading.Event()

    def watch():
        nonlocal most
        while not ended.wait(0.001):
            with staging._locked(cache.directory / "lock"):
                most = max(most, sum(file.bytes for file in staging._files(cache.directory)))

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


def test_a_small_cache_is_refused_with_what_is_needed(raw, tmp_path):
    directory, url = raw
    least = two_shards(directory)
    with pytest.raises(ConfigError, match=rf"needs at least {least:,}.*--cache-size"):
        open_shards(url, batch_size=4, cache=Cache(tmp_path / "cache", least - 1))


def test_processes_of_a_machine_share_its_size(raw, tmp_path, monkeypatch):
    directory, url = raw
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=f"needs at least {2 * two_shards(directory):,}"):
        open_shards(url, batch_size=4, cache=Cache(tmp_path / "cache", 2 * two_shards(directory) - 1))


def test_each_process_brings_only_what_it_reads_and_only_once(raw, tmp_path):
    directory, _ = raw
    faults = Faults(0)
    with failing_proxy(int(raw[1].split(":")[2].split("/")[0]), faults) as port:
        url = f"http://127.0.0.1:{port}/set"
        cache = Cache(tmp_path / "cache", 1 << 30)
        loader = open_shards(url, batch_size=3, cache=cache, rank=1, world_size=4)
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
        loader = open_shards(f"http://127.0.0.1:{port}/set", batch_size=4, cache=cache)
        batches(loader, 0, then=1)
        first = next(loader._order(1).visits(range(1))).shard
        tar = loader._spec.directory / loader.manifest.shards[first].name
        end = time.monotonic() + 20
        while not tar.exists() and time.monotonic() < end:
            time.sleep(0.01)
        held = next(file for file in staging._files(cache.directory) if file.path == tar)
        assert not held.remove()
        asked = faults.paths.copy()
        next(epoch := loader.epoch(1))
        assert faults.paths[f"/set/{tar.name}"] == asked[f"/set/{tar.name}"]
        epoch.close()
        batches(loader, 0, then=1)
        loader.close()
    assert all(file.remove() for file in staging._files(cache.directory))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("fastdps-")]


def test_two_at_a_time_bring_a_shard_once(raw, tmp_path):
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


def test_what_is_held_stays_and_the_longest_unused_goes_first(raw, tmp_path):
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


def test_a_shard_that_stays_bad_is_named(raw, tmp_path):
    directory, url = raw
    tar = directory / "shard-000003.tar"
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    loader = open_shards(url, batch_size=4, cache=Cache(tmp_path / "cache", 1 << 30), shuffle=False)
    with pytest.raises(ShardError, match=rf"{url}/shard-000003\.tar does not have the checksum.*Upload it again"):
        batches(loader)
    assert "shard-000003.tar" not in files_in(tmp_path / "cache")
    assert not any(name.endswith(".partial") for name in files_in(tmp_path / "cache"))


def test_a_shard_that_is_not_there_is_named(raw, tmp_path):
    directory, url = raw
    (directory / "shard-000002.tar").unlink()
    loader = open_shards(url, batch_size=4, cache=Cache(tmp_path / "cache", 1 << 30))
    with pytest.raises(ShardError, match=rf"there is no {url}/shard-000002\.tar"):
        batches(loader)


def test_a_damaged_file_of_the_cache_is_brought_again(raw, tmp_path):
    _, url = raw
    loader = open_shards(url, batch_size=4, cache=Cache(tmp_path / "cache", 1 << 30))
    before = batches(loader)
    tars = sorted((tmp_path / "cache").rglob("*.tar"))
    os.truncate(tars[0], 100)
    tars[1].with_suffix(".idx").unlink()
    assert_same(batches(loader), before)


def test_an_epoch_that_is_left_leaves_nothing_behind(raw, tmp_path):
    directory, url = raw
    loader = open_shards(url, batch_size=1, cache=Cache(tmp_path / "cache", two_shards(directory)), loader="portable")
    epoch = loader.epoch(0)
    next(epoch)
    epoch.close()
    left = [t.name for t in threading.enumerate() if t.name.startswith("fastdps-")]
    assert left == []
    for file in staging._files(tmp_path / "cache"):
        assert file.remove()
    assert files_in(tmp_path / "cache") == []


@pytest.mark.parametrize("place", ["web", "bucket"])
def test_failing_slow_and_cut_requests_change_nothing(place, raw, tmp_path, request, monkeypatch, s3_at, s3_port):
    monkeypatch.setattr(storage, "PIECE_BYTES", 3_000)
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.001)
    directory, url = raw
    faults = Faults(0.2, slow_s=0.02)
    port = int(url.split(":")[2].split("/")[0])
    if place == "bucket":
        url, port = f"{request.getfixturevalue('bucket')}/set", s3_port
        for path in directory.iterdir():
            open_store(url).put(path.name, path)
    with failing_proxy(port, faults) as failing:
        if place == "bucket":
            s3_at(failing)
        else:
            url = f"http://127.0.0.1:{failing}/set"
        away = open_shards(url, batch_size=5, cache=Cache(tmp_path / "cache", two_shards(directory)))
        here = open_shards(directory, batch_size=5)
        for epoch in range(4 if place == "web" else 1):
            assert_same(batches(away, epoch), batches(here, epoch))
    assert all(faults.done[kind] for kind in Faults.KINDS), faults.done


BRING = """
import sys, threading
from pathlib import Path
from fastdps.shards.format import read_manifest
from fastdps.shards.cache import Cache, StagedSet
from fastdps.shards.storage import open_store
url, cache = sys.argv[1:]
manifest = read_manifest(url)
staged = StagedSet(open_store(url), manifest, Cache(Path(cache), 1 << 30), processes=1)
staged.fetch(manifest.shards[0], threading.Event())
print("held", flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("when", ["while it brings", "while it holds"])
def test_a_killed_process_is_in_nobodys_way(raw, tmp_path, when):
    directory, url = raw
    port = int(url.split(":")[2].split("/")[0])
    faults = Faults(0, slow_s=60)
    faults.next = lambda path: (faults.paths.update([path]), "slow" if path.endswith(".tar") else "")[1]
    cache = tmp_path / "cache"
    with failing_proxy(port, faults) as slow:
        source = f"http://127.0.0.1:{slow}/set" if when == "while it brings" else url
        process = subprocess.Popen([sys.executable, "-c", BRING, source, str(cache)], stdout=subprocess.PIPE)
        with process:
            if when == "while it brings":
                while not (faults.paths["/set/shard-000000.tar"] and list(cache.rglob("*.partial"))):
                    assert process.poll() is None
                    time.sleep(0.01)
            else:
                assert process.stdout.readline() == b"held\n"
                assert not next(staging._files(cache)).remove()
            process.send_signal(signal.SIGKILL)
        manifest = read_manifest(url)
        size = max(bytes_of(directory)) + (manifest.shards[0].bytes if when == "while it holds" else 0)
        staged = StagedSet(open_store(url), manifest, Cache(cache, size), processes=1)
        for shard in (manifest.shards[0], manifest.shards[2], manifest.shards[0]):
            os.close(staged.fetch(shard, threading.Event()))
    assert not list(cache.rglob("*.partial"))


def test_room_that_others_hold_is_waited_for_and_then_an_error(raw, tmp_path, monkeypatch):
    directory, url = raw
    manifest = read_manifest(directory)
    cache = Cache(tmp_path / "cache", manifest.shards[2].bytes)
    staged = StagedSet(open_store(url), manifest, cache, processes=1)
    held = staged.fetch(manifest.shards[0], threading.Event())
    monkeypatch.setattr(staging, "ROOM_TIMEOUT_S", 0.2)
    with pytest.raises(Exception, match="other jobs have held"):
        staged.fetch(manifest.shards[2], threading.Event())
    monkeypatch.setattr(staging, "ROOM_TIMEOUT_S", 20)
    threading.Timer(0.2, os.close, [held]).start()
    os.close(staged.fetch(manifest.shards[2], threading.Event()))


def test_the_default_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert staging.make_cache().directory == tmp_path / "user" / "fastdps" / "shards"
    monkeypatch.setenv("FASTDPS_CACHE", str(tmp_path / "mine"))
    cache = staging.make_cache()
    assert cache.directory == tmp_path / "mine"
    assert cache.bytes == pytest.approx(shutil.disk_usage(tmp_path).free / 2, rel=0.05)
