"""The loader as a product of its own: iteration with a state, elastic order, mixtures, and wrappers of torch."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fastdps.errors import ConfigError
from fastdps.loading.loader import open_shards
from fastdps.loading.mixed import SET_STRIDE, MixedLoader, apportion, interleave, set_numbers
from fastdps.loading.options import LoadOptions
from fastdps.loading.order import step_parts
from fastdps.shards.cache import make_cache
from helpers.loaded import SIZES, gather
from helpers.packed import read_set
from helpers.shard_sets import raw_samples, write_set

BY_STEP = LoadOptions(divide="step", loader="portable")


@pytest.fixture
def sets(tmp_path):
    """Two sets: 23 samples in five shards and 9 in two."""
    return [
        write_set(tmp_path / "a", raw_samples(23), SIZES),
        write_set(tmp_path / "b", raw_samples(9, seed=1), (4, 5)),
    ]


def ids_of(loader) -> list[list[int]]:
    return [batch.ids.tolist() for batch in loader]


def global_steps(make, world_size: int, epochs: int = 1) -> list[list[int]]:
    """The sample ids of each step of all processes together, in the order of the ranks."""
    ranks = [ids for rank in range(world_size) for ids in [[*map(ids_of, [make(rank)] * epochs)]]]
    return [
        [i for rank in ranks for i in rank[epoch][step]] for epoch in range(epochs) for step in range(len(ranks[0][0]))
    ]


def test_iterating_yields_epoch_after_epoch(raw_set):
    loader = open_shards(raw_set, batch_size=4)
    assert len(loader) == loader.steps == 6
    assert ids_of(loader) == ids_of(loader.epoch(0))
    assert loader.next_epoch == 1
    next(iter(loader))  # epoch 1, left early
    assert ids_of(loader) == ids_of(loader.epoch(2))
    loader.set_epoch(1)
    assert ids_of(loader) == ids_of(loader.epoch(1))


def test_setting_the_epoch_before_each_loop_keeps_what_was_loaded(raw_set):
    loader, other = open_shards(raw_set, batch_size=4), open_shards(raw_set, batch_size=4)
    loader.set_epoch(3)
    batches = iter(loader)
    next(batches)
    other.load_state_dict(loader.state_dict())
    other.sampler.set_epoch(3)  # as Lightning does
    assert ids_of(other) == [batch.ids.tolist() for batch in batches]
    loader.set_epoch(3)
    next(iter(loader))
    loader.set_epoch(3)  # again from its start
    assert ids_of(loader) == ids_of(loader.epoch(3))


@pytest.mark.parametrize("divide", ["epoch", "step"])
@pytest.mark.parametrize("steps", [0, 1, 4, 6, 8])
def test_a_state_continues_with_the_same_batches(raw_set, divide, steps):
    def loader():
        return open_shards(raw_set, batch_size=2, rank=1, world_size=2, options=LoadOptions(divide=divide))

    whole, interrupted, resumed = loader(), loader(), loader()
    expected = ids_of(whole) + ids_of(whole)
    seen = [batch.ids.tolist() for batch in itertools.islice(itertools.chain(interrupted, interrupted), steps)]
    resumed.load_state_dict(json.loads(json.dumps(interrupted.state_dict())))
    while len(seen) < len(expected):
        seen += ids_of(resumed)
    assert seen == expected


@pytest.mark.parametrize("mixed", [False, True])
def test_the_steps_are_the_same_for_any_number_of_processes(sets, mixed):
    location = {str(sets[0]): 0.6, str(sets[1]): 0.4} if mixed else sets[0]
    steps = []
    for world_size in (1, 2, 4):
        made = [
            open_shards(location, batch_size=8 // world_size, rank=rank, world_size=world_size, options=BY_STEP)
            for rank in range(world_size)
        ]
        steps.append(global_steps(made.__getitem__, world_size, epochs=2))
    assert steps[0] == steps[1] == steps[2]
    assert len(steps[0]) == 2 * -(-made[0].samples // 8)


def test_a_change_of_processes_in_mid_epoch_continues_the_same_steps(sets):
    location = {str(sets[0]): 1, str(sets[1]): 1}

    def ranks(world_size):
        sizes = {"batch_size": 8 // world_size, "world_size": world_size, "options": BY_STEP}
        return [open_shards(location, rank=rank, **sizes) for rank in range(world_size)]

    expected = ids_of(ranks(1)[0])
    state, seen = None, []
    for world_size, steps in ((4, 1), (2, 2), (1, 1)):
        loaders = ranks(world_size)
        for loader in loaders:
            if state:
                loader.load_state_dict(state)
        batches = [itertools.islice(loader, steps) for loader in loaders]
        seen += [[i for batch in step for i in batch.ids.tolist()] for step in zip(*batches, strict=True)]
        states = [loader.state_dict()["rest"] for loader in loaders]
        assert all(rest == states[0] for rest in states)
        state = loaders[0].state_dict()
    assert seen == expected


def test_a_state_of_other_data_is_an_error(sets):
    one, other = (open_shards(directory, batch_size=4) for directory in sets)
    with pytest.raises(ConfigError, match="the state has sha256"):
        other.load_state_dict(one.state_dict())
    with pytest.raises(ConfigError, match="the state has seed 0, and this loader has 1"):
        open_shards(sets[0], batch_size=4, seed=1).load_state_dict(one.state_dict())
    with pytest.raises(ConfigError, match="not a state of a loader"):
        one.load_state_dict({"version": 1})


def test_a_mixture_has_the_samples_of_its_sets_by_weight(sets):
    loader = open_shards([(str(sets[0]), 3), (str(sets[1]), 1)], batch_size=8, options=LoadOptions(loader="portable"))
    assert isinstance(loader, MixedLoader)
    assert loader.counts == (24, 8)
    there = [read_set(directory) for directory in sets]
    batches = [*loader, *loader, *loader]
    for batch in batches:
        numbers = set_numbers(batch.ids)
        assert numbers.tolist().count(1) == 2
        assert batch.global_size == 8
        for number, sample, image in zip(numbers.tolist(), batch.ids.tolist(), batch.images, strict=True):
            assert image.numpy().tobytes() == there[number][sample % SET_STRIDE]["bin"]
    ids, _ = gather(batches)
    for number, samples in enumerate((23, 9)):
        counts = np.bincount([i % SET_STRIDE for i in ids if i // SET_STRIDE == number], minlength=samples)
        assert counts.max() - counts.min() <= 1  # whatever its weight, each sample of a set comes equally often
    orders = [[i % SET_STRIDE for i in ids if i // SET_STRIDE == 1][:9], gather(loader.loaders[1].epoch(0))[0]]
    assert orders[0] == orders[1]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(200, 3000))
def test_weights_are_kept_everywhere(weights, samples):
    counts = apportion(weights, samples)
    assert sum(counts) == samples
    exact = np.array(weights) / sum(weights) * samples
    assert np.abs(np.array(counts) - exact).max() < 1
    sets = interleave(counts)
    assert np.bincount(sets, minlength=len(counts)).tolist() == list(counts)
    for number, count in enumerate(counts):
        so_far = np.cumsum(sets == number)
        assert np.abs(so_far - np.arange(1, samples + 1) * count / samples).max() <= len(counts)


@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 5))
def test_divided_steps_are_the_order(samples, batch_size, world_size):
    parts = [
        [i for piece in step_parts([range(samples)], rank, batch_size, world_size) for i in piece]
        for rank in range(world_size)
    ]
    steps = [[i for part in parts for i in part[start : start + batch_size]] for start in range(0, samples, batch_size)]
    assert [i for step in steps for i in step] == list(range(samples))


@pytest.mark.parametrize(
    ("weights", "message"),
    [((1.0, 0.0), "above 0"), ((1.0, float("nan")), "above 0"), ((1.0, 1e-9), "less than one of 32 samples")],
)
def test_wrong_weights_are_named(sets, weights, message):
    with pytest.raises(ConfigError, match=message):
        open_shards(list(zip(map(str, sets), weights, strict=True)), batch_size=4)


def test_sets_of_other_sizes_need_one(sets, tmp_path):
    other = write_set(tmp_path / "c", raw_samples(4, 8, 8), (4,), image_size=(8, 8))
    with pytest.raises(ConfigError, match=r"set 2 of a mixture has images of \(8, 8\), and the first has \(6, 4\)"):
        open_shards({str(sets[0]): 1, str(other): 1}, batch_size=4)
    loader = open_shards({str(sets[0]): 1, str(other): 1}, batch_size=4, size=8)
    assert next(iter(loader)).images.shape == (4, 8, 8, 3)


def test_a_batch_moves_as_lightning_moves_it(raw_set):
    batch = next(open_shards(raw_set, batch_size=4).epoch(0))
    moved = batch.to("meta", non_blocking=True)
    assert type(moved) is type(batch)
    assert (moved.images.device.type, moved.ids.device.type) == ("meta", "cpu")
    assert (moved.images.shape, moved.global_size) == (batch.images.shape, 4)


def test_torchs_data_loader_takes_it(raw_set):
    loader = open_shards(raw_set, batch_size=4)
    wrapped = DataLoader(loader, batch_size=None)
    assert len(wrapped) == 6
    batches = list(wrapped)
    assert [batch.ids.tolist() for batch in batches] == ids_of(loader.epoch(0))
    assert all(isinstance(batch.images, torch.Tensor) for batch in batches)
    with pytest.raises(ConfigError, match="num_workers=0"):
        next(iter(DataLoader(loader, batch_size=None, num_workers=1)))


def test_steps_of_a_remote_set_are_those_of_a_local_one(web, tmp_path):
    directory, url = web
    write_set(directory / "set", raw_samples(23), SIZES)
    caches = LoadOptions(divide="step", loader="portable", cache=make_cache(tmp_path / "cache"))
    for rank in range(2):
        ranks = {"batch_size": 2, "rank": rank, "world_size": 2}
        local = open_shards(directory / "set", options=BY_STEP, **ranks)
        remote = open_shards(f"{url}/set", options=caches, **ranks)
        for _ in range(2):
            assert ids_of(remote) == ids_of(local)
        remote.close()
