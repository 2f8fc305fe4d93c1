"""Batches of both loaders: the samples, their order and their division, against `tarfile`, webdataset and DALI."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import webdataset

from fastdps.errors import ConfigError
from fastdps.loading import index_cache, segments
from fastdps.loading.loader import open_shards
from fastdps.loading.options import LoadOptions
from fastdps.loading.spec import Batch
from helpers.loaded import SIZES, gather
from helpers.packed import encoded, noise, read_set
from helpers.shard_sets import raw_samples, write_set


def test_batches_equal_a_tar_reader(raw_set, loader):
    opened = open_shards(raw_set, batch_size=4, options=LoadOptions(loader=loader))
    there = read_set(raw_set)
    assert (opened.samples, opened.steps) == (23, 6)
    batches = list(opened.epoch(0))
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 3]
    for batch in batches:
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (len(batch), 6, 4, 3)
        assert batch.ids.dtype == torch.int64
        assert batch.global_size == len(batch)
        for sample_id, image in zip(batch.ids.tolist(), batch.images, strict=True):
            assert image.numpy().tobytes() == there[sample_id]["bin"]
    assert sorted(gather(batches)[0]) == sorted(there)


def test_batches_equal_webdataset(raw_set):
    ids, components = gather(
        open_shards(raw_set, batch_size=9, seed=None, options=LoadOptions(loader="portable")).epoch(0)
    )
    read = []
    for path in sorted(raw_set.glob("*.tar")):
        with path.open("rb") as stream:
            members = webdataset.tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
            samples = webdataset.tariterators.group_by_keys(members)
            read += [(int(sample["__key__"]), sample["bin"]) for sample in samples]
    assert [(i, image.numpy().tobytes()) for i, image in zip(ids, components["image"], strict=True)] == read


def test_ids_equal_dalis_source_info(raw_set):
    fn = pytest.importorskip("nvidia.dali.fn")
    from nvidia.dali.pipeline import Pipeline

    tars = [str(path) for path in sorted(raw_set.glob("*.tar"))]
    with Pipeline(batch_size=23, num_threads=1, device_id=None) as pipeline:
        data = fn.readers.webdataset(paths=tars, index_paths=[tar.replace(".tar", ".idx") for tar in tars], ext=["bin"])
        pipeline.set_outputs(data)
    (output,) = pipeline.run()
    by_source = {
        int(output[i].source_info().rsplit(":", 1)[1].split(".")[0]): np.asarray(output[i]).tobytes() for i in range(23)
    }
    ids, components = gather(open_shards(raw_set, batch_size=5, seed=3, options=LoadOptions(loader="dali")).epoch(1))
    assert {i: image.numpy().tobytes() for i, image in zip(ids, components["image"], strict=True)} == by_source


def test_both_loaders_give_the_same_batches(tmp_path):
    pytest.importorskip("nvidia.dali")
    pixels = noise(23, 6, 4, 3)
    sets = [
        write_set(tmp_path / "raw", [{"bin": p.tobytes()} for p in pixels], SIZES),
        write_set(tmp_path / "png", [{"png": encoded(p, "PNG")} for p in pixels], SIZES, encoding="png"),
    ]
    for directory in sets:
        opened = [
            open_shards(directory, batch_size=4, seed=5, options=LoadOptions(loader=name))
            for name in ("dali", "portable")
        ]
        for ours, theirs in zip(opened[0].epoch(2), opened[1].epoch(2), strict=True):
            assert ours.ids.tolist() == theirs.ids.tolist()
            assert torch.equal(ours.images, theirs.images)
            for sample_id, image in zip(ours.ids.tolist(), ours.images, strict=True):
                np.testing.assert_array_equal(image.numpy(), pixels[sample_id])


@pytest.mark.parametrize("world_size", [1, 2, 5, 30])
def test_all_processes_together_read_each_sample_once(raw_set, loader, world_size):
    opened = [
        open_shards(raw_set, batch_size=2, rank=rank, world_size=world_size, options=LoadOptions(loader=loader))
        for rank in range(world_size)
    ]
    assert len({one.steps for one in opened}) == 1
    by_rank = [list(one.epoch(1)) for one in opened]
    seen = [i for batches in by_rank for i in gather(batches)[0]]
    assert sorted(seen) == sorted(read_set(raw_set))
    for of_step in zip(*by_rank, strict=True):
        assert {batch.global_size for batch in of_step} == {sum(map(len, of_step))}
        for batch in of_step:
            assert batch.images.shape == (len(batch), 6, 4, 3)
            assert batch.images.dtype == torch.uint8
            assert batch.ids.dtype == torch.int64


def test_epochs_and_seeds_differ_and_repeat(raw_set, loader):
    def order(seed: int, epoch: int) -> list[int]:
        return gather(open_shards(raw_set, batch_size=8, seed=seed, options=LoadOptions(loader=loader)).epoch(epoch))[0]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(one) for one in orders}) == 4
    assert order(1, 1) == orders[3]
    packed = gather(open_shards(raw_set, batch_size=8, seed=None, options=LoadOptions(loader=loader)).epoch(7))[0]
    assert packed == sorted(packed)


def test_another_number_of_processes_resumes_within_an_epoch(raw_set, loader):
    def of(rank, world_size):
        return open_shards(raw_set, batch_size=2, rank=rank, world_size=world_size, options=LoadOptions(loader=loader))

    first = [batch for rank in range(3) for batch in list(of(rank, 3).epoch(1))[:2]]
    left = of(0, 3).left_after(2)
    second = [batch for rank in range(2) for batch in list(of(rank, 2).epoch(1, left=left))[:1]]
    left = of(0, 2).left_after(1, left)
    alone = of(0, 1)
    third = list(alone.epoch(1, left=left))
    assert len(third) == alone.steps_for(left) == 4
    assert [batch.global_size for batch in third] == [2, 2, 2, 1]
    assert [batch.global_size for batch in second] == [4, 4]
    ids, _ = gather(first + second + third)
    assert sorted(ids) == sorted(gather(alone.epoch(1))[0])
    with pytest.raises(ConfigError, match="positions below 23"):
        alone.epoch(0, left=[range(24)])


@pytest.mark.parametrize("start_step", [0, 1, 3, 5, 6])
def test_a_start_in_the_middle_gives_the_rest_of_the_epoch(raw_set, loader, start_step):
    opened = open_shards(raw_set, batch_size=2, rank=1, world_size=2, options=LoadOptions(loader=loader))
    whole, rest = list(opened.epoch(4)), list(opened.epoch(4, start_step))
    assert len(rest) == opened.steps - start_step
    for expected, batch in zip(whole[start_step:], rest, strict=True):
        assert torch.equal(batch.ids, expected.ids)
        assert torch.equal(batch.images, expected.images)
        assert batch.global_size == expected.global_size


def test_segments_do_not_change_the_batches(raw_set, loader, monkeypatch):
    opened = open_shards(raw_set, batch_size=2, options=LoadOptions(loader=loader))
    whole = gather(opened.epoch(0))
    for samples, shards in ((4, 64), (1, 64), (65536, 1)):
        monkeypatch.setattr(segments, "SEGMENT_SAMPLES", samples)
        monkeypatch.setattr(segments, "SEGMENT_SHARDS", shards)
        cut = gather(opened.epoch(0))
        assert cut[0] == whole[0]
        assert torch.equal(cut[1]["image"], whole[1]["image"])


def test_an_epoch_reads_only_the_indexes_it_comes_to(raw_set, loader, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 2)
    opened = []
    original = index_cache.open_index
    monkeypatch.setattr(index_cache, "open_index", lambda *args: opened.append(args[2].name) or original(*args))
    batches = open_shards(raw_set, batch_size=2, options=LoadOptions(loader=loader)).epoch(0)
    next(batches)
    batches.close()
    assert 1 <= len(set(opened)) <= 3  # of 5: the current segment's and the next one's


def test_batches_are_not_overwritten_by_later_ones(tmp_path, loader):
    directory = write_set(tmp_path / "set", raw_samples(200), [200])
    there = read_set(directory)
    kept = [
        batch
        for epoch in range(3)
        for batch in open_shards(directory, batch_size=8, options=LoadOptions(loader=loader)).epoch(epoch)
    ]
    for batch in kept:
        for sample_id, image in zip(batch.ids.tolist(), batch.images, strict=True):
            assert image.numpy().tobytes() == there[sample_id]["bin"]
    kept[0].images.fill_(0)  # writing to a batch changes neither the others nor the set
    assert {i: s["bin"] for i, s in read_set(directory).items()} == {i: s["bin"] for i, s in there.items()}
    assert kept[1].images.any()


def test_epochs_can_be_read_side_by_side(raw_set, loader):
    opened = open_shards(raw_set, batch_size=4, options=LoadOptions(loader=loader))
    alone = [gather(opened.epoch(epoch))[0] for epoch in (0, 1)]
    together = list(zip(opened.epoch(0), opened.epoch(1), strict=True))
    for which in (0, 1):
        assert gather(pair[which] for pair in together)[0] == alone[which]


def test_length_of_a_batch():
    batch = Batch({}, torch.arange(3), 5)
    assert len(batch) == 3
