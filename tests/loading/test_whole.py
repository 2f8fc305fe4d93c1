"""Raw images copied from shards in memory, and what is reused across batches and epochs."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch

from fastdps.errors import SampleError, ShardError
from fastdps.loading import index_cache, members, portable, segments, whole
from fastdps.loading.background import BackgroundMap
from fastdps.loading.index_cache import IndexCache
from fastdps.loading.loader import open_shards
from fastdps.loading.options import LoadOptions
from fastdps.loading.segments import ShardSlice
from fastdps.loading.whole import MAX_SHARD_BYTES, Buffers, WholeShard, WholeShards
from fastdps.shards.format import read_manifest
from helpers.packed import noise, read_set
from helpers.shard_sets import raw_samples, write_set

SIZES = (40, 60)


@pytest.fixture
def raw_set(tmp_path):
    return write_set(tmp_path / "raw", raw_samples(100), SIZES)


def opened(directory, number=0):
    manifest = read_manifest(directory)
    return IndexCache(directory, manifest).open(manifest.shards[number])


@pytest.fixture(params=["whole", "one by one", "without preadv"])
def gather(request, monkeypatch):
    """A function that reads members by row, in each of the ways."""
    if request.param == "without preadv":
        monkeypatch.setattr(members, "_read_at", members._seek_and_read)

    def gathered(index, rows, component=0) -> np.ndarray:
        rows = np.array(rows, dtype=np.int64)
        out = np.empty((len(rows), int(index.sizes[0, component])), np.uint8)
        if request.param == "whole":
            WholeShard(index, Buffers(MAX_SHARD_BYTES, most=1)).gather(rows, component, out)
        else:
            with index.tar.open("rb", buffering=0) as tar:
                members.read_members(tar, index, rows, component, out)
        return out

    return gathered


@pytest.mark.parametrize("chunk", [1, 200, 1 << 18])
def test_rows_equal_a_tar_reader(raw_set, gather, monkeypatch, chunk):
    monkeypatch.setattr(whole, "CHUNK_BYTES", chunk)
    there, index = read_set(raw_set), opened(raw_set, 1)
    rows = [59, 0, 7, 7, 30]
    assert [row.tobytes() for row in gather(index, rows)] == [there[int(index.ids[row])]["bin"] for row in rows]


def test_all_components_of_a_sample_are_found(tmp_path, gather):
    pixels = noise(10, 6, 4, 3)
    samples = [
        {"p0.bin": p.tobytes(), "p1.bin": p[::-1].tobytes(), "same.f32": np.float32(i).tobytes()}
        for i, p in enumerate(pixels)
    ]
    index = opened(write_set(tmp_path / "set", samples, [10], kind="pairs"))
    assert gather(index, [3, 9], 1).tobytes() == pixels[[3, 9], ::-1].tobytes()
    assert gather(index, [3, 9], 2).view("<f4").ravel().tolist() == [3, 9]


@pytest.mark.parametrize("field", ["name", "size"])
def test_a_header_of_another_member_is_named(raw_set, gather, field):
    index = opened(raw_set)
    data = bytearray(index.tar.read_bytes())
    start = int(index.offsets[5, 0]) - 512 + {"name": 0, "size": 124}[field]
    data[start : start + 11] = b"00000000001"
    index.tar.write_bytes(data)
    with pytest.raises(SampleError, match=r"sample 5 \(000000005\.bin in .*\) has no matching tar header"):
        gather(index, [4, 5, 6])
    gather(index, [4, 6])


def test_a_tar_that_was_cut_is_an_error(raw_set, gather):
    index = opened(raw_set)
    os.truncate(index.tar, int(index.offsets[30, 0]) + 10)
    with pytest.raises(
        (SampleError, ShardError), match=r"shard-000000\.tar.* (truncated to|ends after) .*fastdps check"
    ):
        gather(index, [4, 30])


def test_only_small_regular_shards_are_read_completely(raw_set, tmp_path, monkeypatch):
    index = opened(raw_set)
    rows = np.arange(40)
    assert whole.is_read_whole(ShardSlice(index, rows))
    assert whole.is_read_whole(ShardSlice(index, rows[:20]))
    assert not whole.is_read_whole(ShardSlice(index, rows[:19]))
    irregular = write_set(tmp_path / "set", [{"png": bytes(100 + 600 * i)} for i in range(3)], [3], encoding="png")
    assert not whole.is_read_whole(ShardSlice(opened(irregular), np.arange(3)))
    monkeypatch.setattr(whole, "MAX_SHARD_BYTES", index.end - 1)
    assert not whole.is_read_whole(ShardSlice(index, rows))


@pytest.mark.parametrize("most_bytes", [0, MAX_SHARD_BYTES])
def test_a_shard_that_is_cut_while_it_is_read(tmp_path, monkeypatch, most_bytes):
    monkeypatch.setattr(whole, "MAX_SHARD_BYTES", most_bytes)
    directory = write_set(tmp_path / "set", raw_samples(600), [150] * 4)
    batches = open_shards(directory, batch_size=4, options=LoadOptions(loader="portable")).epoch(0)
    next(batches)
    for tar in directory.glob("*.tar"):
        os.truncate(tar, tar.stat().st_size // 2)
    with pytest.raises((SampleError, ShardError), match=r"\.tar.* (truncated to|ends after) .*fastdps check"):
        list(batches)


def test_a_shard_is_read_while_batches_are_made_of_the_one_before_and_then_dropped(tmp_path, monkeypatch):
    read = []
    original = WholeShard._read
    monkeypatch.setattr(WholeShard, "_read", lambda self: read.append(self._index.tar.name) or original(self))
    directory = write_set(tmp_path / "set", raw_samples(200), [40] * 5)
    batches = open_shards(
        directory, batch_size=20, seed=None, options=LoadOptions(loader="portable", num_threads=1)
    ).epoch(0)
    monkeypatch.setattr(portable, "PREFETCH_BATCHES", 0)
    seen = [(int(batch.ids[0]) // 40, len(read)) for batch in batches]
    assert all(shard + 1 <= so_far <= shard + 2 for shard, so_far in seen)
    assert read == [f"shard-{number:06d}.tar" for number in range(5)]


def test_the_first_shard_of_a_segment_is_read_ahead_too(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 80)
    monkeypatch.setattr(BackgroundMap, "is_ready", property(lambda self: not self._next.exception()))  # waits for it
    was_begun: dict[str, bool] = {}
    original = WholeShards.of

    def of(self, parts):
        found = original(self, parts)
        for _, shard in found:
            was_begun.setdefault(shard._index.tar.name, shard.is_started)
        return found

    monkeypatch.setattr(WholeShards, "of", of)
    directory = write_set(tmp_path / "set", raw_samples(200), [40] * 5)
    batches = open_shards(directory, batch_size=20, seed=None, options=LoadOptions(loader="portable")).epoch(0)
    assert [i for batch in batches for i in batch.ids.tolist()] == list(range(200))
    assert list(was_begun.values()) == [False, True, True, True, True]


# --- indexes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def parsed(monkeypatch):
    """The names of the shards whose indexes are parsed, in order."""
    names = []
    original = index_cache.open_index
    monkeypatch.setattr(index_cache, "open_index", lambda *args: names.append(args[2].name) or original(*args))
    return names


@pytest.mark.parametrize("loader", ["dali", "portable"])
def test_the_next_epoch_does_not_parse_the_indexes_again(raw_set, loader, parsed):
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    shards = open_shards(raw_set, batch_size=8, options=LoadOptions(loader=loader))
    epochs = [sorted(i for batch in shards.epoch(epoch) for i in batch.ids.tolist()) for epoch in range(3)]
    assert epochs == [list(range(100))] * 3
    assert len(parsed) == 2


def test_the_number_of_cached_indexes_is_bounded(raw_set, parsed, monkeypatch):
    monkeypatch.setattr(index_cache, "KEPT_SAMPLES", 99)
    manifest = read_manifest(raw_set)
    cache = IndexCache(raw_set, manifest)
    for number in (0, 0, 1, 1, 0):
        assert cache.open(manifest.shards[number]).tar.name == manifest.shards[number].name
    assert parsed == [manifest.shards[number].name for number in (0, 1, 0)]


@pytest.mark.parametrize("suffix", [".tar", ".idx"])
def test_a_file_that_changes_between_epochs_is_checked_again(raw_set, suffix):
    shards = open_shards(raw_set, batch_size=8, options=LoadOptions(loader="portable"))
    list(shards.epoch(0))
    path = raw_set / f"shard-000001{suffix}"
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(ShardError, match=r"shard-000001.*fastdps check"):
        list(shards.epoch(1))


# --- memory of batches ------------------------------------------------------------------------------------------


def test_memory_is_not_used_again_while_somebody_holds_it():
    buffers = Buffers(8, most=2)
    held = []
    for value in range(5):
        tensor = torch.from_numpy(buffers.array(8))
        tensor.fill_(value)
        held.append(tensor.view(torch.float32)[1:].view(torch.uint8).numpy())  # a view of a view
        del tensor
    assert [array.tolist() for array in held] == [[value] * 4 for value in range(5)]


def test_unreferenced_memory_is_reused():
    buffers = Buffers(8, most=2)
    addresses = {torch.from_numpy(buffers.array(size)).data_ptr() for size in (8, 3, 8, 5)}
    assert len(addresses) == 1


def test_only_so_much_memory_is_kept():
    buffers = Buffers(8, most=2)
    held = [buffers.array(8) for _ in range(5)]
    assert len({array.ctypes.data for array in held}) == 5
    held.clear()
    assert len(buffers._free) == 2


# --- prefetching ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 5])  # copied, and resized one by one
def test_the_portable_loader_makes_the_next_batches_meanwhile_and_no_more(tmp_path, monkeypatch, size):
    made, lock, grown = [], threading.Lock(), threading.Condition()
    name = "_copy" if size is None else "_decode"
    original = getattr(portable, name)

    def counted(arrays, start, samples, spec):
        original(arrays, start, samples, spec)
        with lock, grown:
            made.append(threading.current_thread())
            grown.notify()

    monkeypatch.setattr(portable, name, counted)
    monkeypatch.setattr(portable, "_CHUNKS_PER_THREAD", 1)
    directory = write_set(tmp_path / "set", raw_samples(100), [50, 50])
    shards = open_shards(directory, batch_size=5, size=size, options=LoadOptions(loader="portable", num_threads=1))
    batches = shards.epoch(0)
    for taken in range(1, 5):
        next(batches)
        ahead = taken + portable.PREFETCH_BATCHES
        with grown:  # while the caller does nothing
            assert grown.wait_for(lambda ahead=ahead: len(made) >= ahead, timeout=60)
    batches.close()
    assert len(made) == ahead  # of 20
    assert threading.current_thread() not in made


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_dali_is_given_the_next_batches_meanwhile_and_no_more(tmp_path, monkeypatch, encoding):
    pytest.importorskip("nvidia.dali")
    from nvidia.dali.pipeline import Pipeline

    from fastdps.loading import dali
    from helpers.packed import encoded

    counts = {"schedule_run": 0, "share_outputs": 0}

    def count(name):
        original = getattr(Pipeline, name)

        def counted(self, *args, **kwargs):
            if name == "schedule_run":  # the first call starts as many as the prefetch depth
                first = not getattr(self, "was_run", False)
                counts[name] += self.prefetch_queue_depth if first and isinstance(self.prefetch_queue_depth, int) else 1
                self.was_run = True
            else:
                counts[name] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Pipeline, name, counted)

    count("schedule_run")
    count("share_outputs")
    pixels = noise(60, 6, 4, 3)
    samples = [{"bin": p.tobytes()} if encoding == "raw" else {"png": encoded(p, "PNG")} for p in pixels]
    directory = write_set(tmp_path / "set", samples, [60], encoding=encoding)
    batches = open_shards(directory, batch_size=5, options=LoadOptions(loader="dali")).epoch(0)
    for _ in range(4):
        next(batches)
        ahead = counts["schedule_run"] - counts["share_outputs"]
        assert 1 <= ahead <= dali.READ_AHEAD_BATCHES + 1  # the one more is being decoded
    batches.close()
