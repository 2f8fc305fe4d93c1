"""The shard cache with damaged shards, failing servers, killed processes and too little room."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from fastdps.errors import ShardError
from fastdps.loading.loader import open_shards
from fastdps.loading.options import LoadOptions
from fastdps.shards import cache as staging
from fastdps.shards import cache_files, storage
from fastdps.shards.cache import Cache, StagedSet
from fastdps.shards.format import read_manifest
from fastdps.shards.storage import open_store
from helpers.cached_sets import assert_same, batches, bytes_of, files_in, two_shards
from helpers.servers import Faults, failing_proxy


def test_a_shard_that_stays_bad_is_named(raw, tmp_path):
    directory, url = raw
    tar = directory / "shard-000003.tar"
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    loader = open_shards(url, batch_size=4, seed=None, options=LoadOptions(cache=Cache(tmp_path / "cache", 1 << 30)))
    with pytest.raises(ShardError, match=rf"{url}/shard-000003\.tar does not have the checksum.*Upload it again"):
        batches(loader)
    assert "shard-000003.tar" not in files_in(tmp_path / "cache")
    assert not any(name.endswith(".partial") for name in files_in(tmp_path / "cache"))


def test_a_shard_that_is_not_there_is_named(raw, tmp_path):
    directory, url = raw
    (directory / "shard-000002.tar").unlink()
    loader = open_shards(url, batch_size=4, options=LoadOptions(cache=Cache(tmp_path / "cache", 1 << 30)))
    with pytest.raises(ShardError, match=rf"{url}/shard-000002\.tar does not exist"):
        batches(loader)


def test_a_damaged_file_of_the_cache_is_downloaded_again(raw, tmp_path):
    _, url = raw
    loader = open_shards(url, batch_size=4, options=LoadOptions(cache=Cache(tmp_path / "cache", 1 << 30)))
    before = batches(loader)
    tars = sorted((tmp_path / "cache").rglob("*.tar"))
    os.truncate(tars[0], 100)
    tars[1].with_suffix(".idx").unlink()
    assert_same(batches(loader), before)


def flip_tar(tar):
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)


def cut_index(tar):
    index = tar.with_suffix(".idx")
    index.write_text(index.read_text()[:-9])


def index_of_another(tar):
    tar.with_suffix(".idx").write_text(tar.with_name("shard-000000.tar").with_suffix(".idx").read_text())


@pytest.mark.parametrize("damage", [flip_tar, cut_index, index_of_another])
def test_a_damaged_cache_is_found_by_the_next_job(raw, tmp_path, monkeypatch, caplog, damage):
    """Files of the right size with other bytes; the process that downloaded them trusts them."""
    directory, url = raw
    cache = Cache(tmp_path / "cache", 1 << 30)
    options = LoadOptions(cache=cache)
    expected = batches(open_shards(directory, batch_size=4))
    assert_same(batches(open_shards(url, batch_size=4, options=options)), expected)
    tar = next(cache.directory.rglob("shard-000002.tar"))
    sound = tar.read_bytes()
    damage(tar)
    monkeypatch.setattr(staging, "_verified", set())  # as in a new process
    assert_same(batches(open_shards(url, batch_size=4, options=options)), expected)
    assert tar.read_bytes() == sound
    assert tar.with_suffix(".idx").read_bytes() == (directory / "shard-000002.idx").read_bytes()
    assert "shard-000002.tar is damaged in the cache; downloading it again" in caplog.text
    assert len(caplog.records) == 1


def test_a_cached_shard_is_verified_once_in_a_process(raw, tmp_path, monkeypatch):
    _, url = raw
    options = LoadOptions(cache=Cache(tmp_path / "cache", 1 << 30))
    read = []
    digest = staging.hashlib.file_digest
    monkeypatch.setattr(staging.hashlib, "file_digest", lambda file, name: (read.append(1), digest(file, name))[1])
    loader = open_shards(url, batch_size=4, options=options)
    batches(loader)
    assert len(read) == 0  # they were verified as they came
    monkeypatch.setattr(staging, "_verified", set())
    for epoch in range(3):
        batches(loader, epoch)
    assert len(read) == len(loader.manifest.shards)


def test_an_epoch_that_is_left_leaves_nothing_behind(raw, tmp_path):
    directory, url = raw
    loader = open_shards(
        url,
        batch_size=1,
        options=LoadOptions(cache=Cache(tmp_path / "cache", two_shards(directory)), loader="portable"),
    )
    epoch = loader.epoch(0)
    next(epoch)
    epoch.close()
    left = [t.name for t in threading.enumerate() if t.name.startswith("fastdps-")]
    assert left == []
    for tar in cache_files.list_tars(tmp_path / "cache"):
        assert tar.evict()
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
        away = open_shards(
            url, batch_size=5, options=LoadOptions(cache=Cache(tmp_path / "cache", two_shards(directory)))
        )
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
def test_a_killed_process_leaves_no_locks(raw, tmp_path, when):
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
                assert not next(cache_files.list_tars(cache)).evict()
            process.send_signal(signal.SIGKILL)
        manifest = read_manifest(url)
        size = max(bytes_of(directory)) + (manifest.shards[0].bytes if when == "while it holds" else 0)
        staged = StagedSet(open_store(url), manifest, Cache(cache, size), processes=1)
        for shard in (manifest.shards[0], manifest.shards[2], manifest.shards[0]):
            os.close(staged.fetch(shard, threading.Event()))
    assert not list(cache.rglob("*.partial"))


def test_waiting_for_room_of_other_jobs_times_out(raw, tmp_path, monkeypatch):
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
