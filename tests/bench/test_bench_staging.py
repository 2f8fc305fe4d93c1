"""The simulation of staging: its window versus that of fastdps, known times, and shuffle quality."""

from __future__ import annotations

import os
import types

import numpy as np
import pytest

import bench.__main__ as command
from bench.analyse.simulate_staging import (
    PER_NODE,
    SimulatedProcess,
    StoreModel,
    begun_after,
    divide_shards,
    made_up,
    mix,
    simulate,
)
from fastdps.loading.order import EpochOrder, part_of
from fastdps.shards.cache import Prefetch

EVEN = StoreModel(latency_s=0.05, latency_sigma=0, stream_bytes_per_s=100e6, stream_sigma=0, failing=0)


def visits_of(manifest, rank, processes):
    order = EpochOrder([shard.samples for shard in manifest.shards], seed=3, epoch=1, shuffle=True)
    return list(order.visits(part_of(manifest.samples, rank, processes)))


@pytest.mark.parametrize("held", [2, 3, 7])
@pytest.mark.parametrize("twice", [False, True])
def test_what_may_come_is_what_the_product_begins(held, twice):
    """Compare with `Prefetch`, given shards that arrive at once, after every delivered sample."""
    manifest = made_up(100, 12)
    visits = [(manifest.shards[v.shard], v.stop - v.start) for v in visits_of(manifest, 1, 2)]
    if twice:  # as where a segment ends within a shard
        visits = [(shard, part) for shard, n in visits for part in (n // 2, n - n // 2) if part]
    quota = held * manifest.shards[0].bytes
    expected = begun_after(*map(list, zip(*visits, strict=True)), quota)
    staged = types.SimpleNamespace(quota=quota, fetch=lambda *_: os.open(os.devnull, os.O_RDONLY))
    prefetch = Prefetch(staged)
    prefetch.extend(visits)
    begun = [len(visits) - len(prefetch._pending)]
    for _ in range(sum(n for _, n in visits)):
        prefetch.release(1)
        begun.append(len(visits) - len(prefetch._pending))
    prefetch.close()
    assert [sum(after <= samples for after in expected) for samples in range(len(begun))] == begun


def test_a_process_visits_what_its_part_has():
    manifest = made_up(1000, 40)
    visits = visits_of(manifest, 1, 3)
    size = manifest.shards[0].bytes
    own = SimulatedProcess(manifest, visits, quota=4 * size, batch_size=16, most_bytes=2 * size)
    assert sum(own.samples) == len(part_of(1000, 1, 3))
    found = {}
    for shard, samples in zip(own.shards, own.samples, strict=True):
        found[shard.name] = found.get(shard.name, 0) + samples
    assert found == {manifest.shards[v.shard].name: v.stop - v.start for v in visits}


@pytest.mark.parametrize("processes", [1, 8])
def test_times_that_are_known(processes):
    """Slow devices never wait, fast ones are limited by their streams, and the first batch waits for its segment."""
    manifest = made_up(400_000, 1000)
    size = manifest.shards[0].bytes
    shard_s = EVEN.shard_s(size, np.random.default_rng(0))
    assert shard_s == pytest.approx(2 * 0.05 + size / 100e6)
    options = {"quota": 8 * size, "streams": 2, "batch_size": 100}
    slow = simulate(manifest, processes, EVEN, device_images_per_s=0.5 * 2000 / shard_s, **options)
    assert slow.images_per_s == pytest.approx(processes * 0.5 * 2000 / shard_s)
    assert shard_s <= slow.first_batch_s <= 3 * shard_s
    fast = simulate(manifest, processes, EVEN, device_images_per_s=100 * 2000 / shard_s, **options)
    assert fast.images_per_s == pytest.approx(processes * 2000 / shard_s, rel=0.1)


def test_failures_and_jitter_cost_what_they_should():
    draw = np.random.default_rng(0)
    size, failing = 80 << 20, StoreModel(latency_sigma=0, stream_sigma=0, failing=0.1)
    even_s = EVEN.shard_s(size, draw)
    # A ninth of a request fails on the way for each that does not, half done, and a pause of 0.075 s or more follows.
    least_s = even_s * (1 + 0.5 / 9) + 10 / 9 * 0.075
    mean_s = np.mean([failing.shard_s(size, draw) for _ in range(3000)])
    assert least_s < mean_s < least_s * 1.05


def test_shards_are_downloaded_twice_where_parts_meet():
    manifest = made_up(200_000, 100)
    for nodes in (1, 8):
        division = divide_shards(manifest, nodes)
        processes = nodes * PER_NODE
        assert division.shards == 2000
        assert 1 <= division.amplification <= 1 + (processes - 1) / 2000
        assert division.shards_per_process * processes == pytest.approx(2000 * division.amplification)
    assert divide_shards(made_up(64_000, 1000), 1).amplification == 1  # parts of eight shards each


def test_batches_of_a_shuffled_set_are_like_those_of_a_full_shuffle():
    labels = np.random.default_rng(0).standard_normal(100_000)
    found = mix(1000, labels, epochs=5)
    assert found.variance_ratio == pytest.approx(1, abs=0.1)
    assert 1 < found.shards < 1.5
    assert mix(1000, np.sort(labels), epochs=5).variance_ratio > 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--failing", "1"], "--failing in [0, 1)"),
        (["--rate", "0"], "above 0"),
        (["--images", "1000"], "one step of all processes of 512 nodes"),
    ],
)
def test_numbers_that_cannot_be(options, message, capsys):
    assert command.main(["staging", *options]) == 1
    assert message in capsys.readouterr().err
