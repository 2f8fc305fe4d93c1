from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastdps.loading.order import (
    EpochOrder,
    cut,
    global_batch_size,
    left_after,
    part_of,
    permutation,
    steps_per_epoch,
)

shard_sizes = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) > 0)
small = st.integers(1, 7)
seeds = st.integers(0, 2**64 - 1)


def samples_of(order: EpochOrder, positions: range) -> list[tuple[int, int]]:
    return [(run.shard, int(row)) for run in order.row_runs(positions) for row in run.rows]


@given(sizes=shard_sizes, seed=seeds, epoch=seeds, world_size=small, batch_size=small, shuffle=st.booleans())
def test_each_sample_comes_once_over_all_processes(sizes, seed, epoch, world_size, batch_size, shuffle):
    total = sum(sizes)
    order = EpochOrder(sizes, seed=seed, epoch=epoch, shuffle=shuffle)
    steps = steps_per_epoch(total, batch_size, world_size)
    seen = []
    per_step = np.zeros(steps, dtype=int)
    for rank in range(world_size):
        part = part_of(total, rank, world_size)
        for step in range(steps):
            batch = samples_of(order, part[step * batch_size : (step + 1) * batch_size])
            per_step[step] += len(batch)
            seen += batch
    assert sorted(seen) == [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    assert per_step.tolist() == [global_batch_size(total, s, batch_size, world_size) for s in range(steps)]
    assert per_step[-1] > 0  # no superfluous step


@given(total=st.integers(1, 10_000), world_size=st.integers(1, 64))
def test_parts_are_balanced_and_contiguous(total, world_size):
    parts = [part_of(total, rank, world_size) for rank in range(world_size)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [position for part in parts for position in part] == list(range(total))


@given(
    total=st.integers(1, 200),
    runs=st.lists(st.tuples(small, small, st.integers(0, 9)), max_size=4),
    world_size=small,
    batch_size=small,
)
def test_a_number_of_processes_that_changes_within_an_epoch_reads_each_sample_once(total, runs, world_size, batch_size):
    left = [range(total)]
    read: list[int] = []
    for world, batch, steps in [*runs, (world_size, batch_size, total)]:  # the last one reaches the end
        count = sum(map(len, left))
        for rank in range(world):
            own = cut(left, part_of(count, rank, world))
            read += [position for numbers in cut(own, range(steps * batch)) for position in numbers]
        left = left_after(left, steps, batch, world)
    assert left == []
    assert sorted(read) == list(range(total))


@given(sizes=shard_sizes, seed=seeds, start=st.integers(0, 80))
def test_a_later_start_gives_the_rest_of_the_same_order(sizes, seed, start):
    order = EpochOrder(sizes, seed=seed, epoch=3, shuffle=True)
    everything = range(sum(sizes))
    assert samples_of(order, everything[start:]) == samples_of(order, everything)[start:]


@given(sizes=shard_sizes)
def test_without_shuffling_the_order_is_the_packed_one(sizes):
    packed = [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    assert samples_of(EpochOrder(sizes, seed=1, epoch=2, shuffle=False), range(sum(sizes))) == packed


@given(sizes=shard_sizes, seed=seeds)
def test_a_shard_is_read_in_one_go(sizes, seed):
    order = samples_of(EpochOrder(sizes, seed=seed, epoch=0, shuffle=True), range(sum(sizes)))
    changes = sum(a[0] != b[0] for a, b in pairwise(order))
    assert changes == sum(size > 0 for size in sizes) - 1


def test_shards_and_samples_within_them_are_both_shuffled():
    order = samples_of(EpochOrder([50] * 20, seed=0, epoch=0, shuffle=True), range(1000))
    shards = [shard for shard, _ in order[::50]]
    assert shards != sorted(shards)
    within = [[row for _, row in order[start : start + 50]] for start in range(0, 1000, 50)]
    assert len({tuple(rows) for rows in within}) == 20  # each shard has a different order


@given(sizes=shard_sizes, seed=seeds, epoch=seeds)
def test_the_order_is_that_of_the_documented_counters(sizes, seed, epoch):
    """Shards have the counter 0, the samples of shard k the counter k + 1: other ones change the order of all seeds."""

    def order_of(n: int, stream: int) -> list[int]:
        philox = np.random.Philox(
            key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, 0, stream], np.uint64)
        )
        words = [int(word) for word in philox.random_raw(n)]
        return sorted(range(n), key=words.__getitem__)

    expected = [(shard, row) for shard in order_of(len(sizes), 0) for row in order_of(sizes[shard], shard + 1)]
    assert samples_of(EpochOrder(sizes, seed=seed, epoch=epoch, shuffle=True), range(sum(sizes))) == expected


@given(sizes=shard_sizes, seed=seeds, start=st.integers(0, 80), stop=st.integers(0, 80))
def test_visits_are_the_runs_without_their_rows_and_none_is_empty(sizes, seed, start, stop):
    order = EpochOrder(sizes, seed=seed, epoch=1, shuffle=True)
    positions = range(sum(sizes))[start:stop]
    visits, runs = list(order.visits(positions)), list(order.row_runs(positions))
    assert [(visit.shard, visit.stop - visit.start) for visit in visits] == [(run.shard, len(run.rows)) for run in runs]
    assert all(0 <= visit.start < visit.stop <= visit.size == sizes[visit.shard] for visit in visits)


@given(total=st.integers(1, 200), world_size=small, batch_size=small, further=st.integers(0, 9))
def test_after_the_last_step_there_are_no_samples(total, world_size, batch_size, further):
    end = steps_per_epoch(total, batch_size, world_size)
    assert global_batch_size(total, end + further, batch_size, world_size) == 0


def test_seeds_epochs_and_streams_give_different_orders():
    orders = [
        tuple(permutation(100, seed, epoch, stream)) for seed in range(5) for epoch in range(5) for stream in range(5)
    ]
    assert len(set(orders)) == 125


def test_the_order_is_the_same_on_every_machine_and_version():
    # Reference values: a change would change the order of existing seeds.
    assert permutation(8, seed=7, epoch=2, stream=3).tolist() == [3, 0, 5, 1, 2, 4, 7, 6]


def test_permutations_are_uniform():
    draws = np.array([permutation(4, seed, 0, 0) for seed in range(6000)])
    counts = np.unique(draws, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    chi_squared = ((counts - 250) ** 2 / 250).sum()
    assert chi_squared < 49.7  # the 99.9 % quantile for 23 degrees of freedom
