"""Groups of judgements that share images: each judgement once, bounded, and independent of processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdps.contexts.judgements import judged_pairs
from fastdps.errors import ConfigError
from fastdps.loading.loader import open_shards
from fastdps.shards.judgements import read_judgements
from fastdps.training.judged_batches import JudgedBatches
from fastdps.training.judged_groups import PLANS, JudgedGroups
from fastdps.training.kept_images import KeptImages
from fastdps.training.options import MomentLimits
from helpers.judged_images import SIDE, packed_judged


def random_images(rows, images, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(images, 3, replace=False) for _ in range(rows)])


@pytest.mark.parametrize(("rows", "images", "most"), [(500, 12, 6), (500, 12, 50), (300, 400, 20), (40, 30, 3)])
def test_each_judgement_comes_once_in_groups_of_few_images(rows, images, most):
    judged = random_images(rows, images)
    groups = JudgedGroups(judged, most, seed=1)
    for epoch in range(PLANS + 1):
        found = groups.epoch(epoch)
        assert len(found) == groups.steps
        assert sorted(np.concatenate([group.judgements for group in found])) == list(range(rows))
        for group in found:
            assert len(group.images) <= most
            assert set(group.images) == set(judged[group.judgements].ravel())
            assert len(set(group.images.tolist())) == len(group.images)


def test_groups_depend_on_seed_and_epoch_only():
    judged = random_images(300, 20)
    one, same, other = (JudgedGroups(judged, 8, seed) for seed in (1, 1, 2))

    def content(groups, epoch):
        return [group.judgements.tolist() for group in groups.epoch(epoch)]

    assert content(one, 0) == content(same, 0)
    assert content(one, 0) != content(one, 1)
    assert content(one, 0) != content(one, PLANS)
    assert content(one, 0) != content(other, 0)


def test_a_step_has_far_fewer_images_than_judgements():
    groups = JudgedGroups(random_images(5000, 60), 30, seed=0).epoch(0)
    images = sum(len(group.images) for group in groups)
    assert images < 5000 / 2  # three per judgement without groups


def test_impossible_groups_are_named():
    with pytest.raises(ConfigError, match="a judgement has 3 images"):
        JudgedGroups(random_images(5, 10), 2, seed=0)
    with pytest.raises(ConfigError, match="no judgements"):
        JudgedGroups(np.empty((0, 3), int), 10, seed=0)


@pytest.fixture(scope="module")
def judged_set(tmp_path_factory):
    return packed_judged(tmp_path_factory.mktemp("judged"), rows=150, images=18) / "train"


def batches_of(location, **options):
    judged = judged_pairs(read_judgements(location))
    images = KeptImages(open_shards(location, batch_size=7, seed=None), judged.ids)
    return judged, JudgedBatches(judged, images, most_images=8, seed=3, **options)


def test_batches_hold_the_images_and_judgements_of_their_groups(judged_set):
    judged, batches = batches_of(judged_set)
    pixels = {
        int(i): x
        for b in open_shards(judged_set, batch_size=50, seed=None).epoch(0)
        for i, x in zip(b.ids, b.images, strict=True)
    }
    seen = []
    for batch in batches.epoch(0):
        part = batch.components
        for position, sample in enumerate(batch.ids.tolist()):
            assert torch.equal(part["image"][position], pixels[sample])
        ends = torch.stack([part["first"], part["second"]], dim=1)
        for a, b, share, weight in zip(part["pair_a"], part["pair_b"], part["share"], part["weight"], strict=True):
            to_a, to_b = (frozenset(batch.ids[ends[pair]].tolist()) for pair in (a, b))
            (ref,) = to_a & to_b
            seen.append((ref, *(to_a - {ref}), *(to_b - {ref}), round(share.item(), 5), round(weight.item(), 5)))
    weight = judged.votes / judged.votes.mean()
    expected = [
        (*judged.ids[images].tolist(), round(float(share), 5), round(float(np.float32(w)), 5))
        for images, share, w in zip(judged.images, judged.share, weight, strict=True)
    ]
    assert sorted(seen) == sorted(expected)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_divide_the_images_and_share_the_judgements(judged_set, world_size):
    _, alone = batches_of(judged_set)
    parts = [batches_of(judged_set, rank=rank, world_size=world_size)[1] for rank in range(world_size)]
    for whole, *own in zip(alone.epoch(1), *(part.epoch(1) for part in parts), strict=True):
        assert torch.equal(torch.cat([batch.ids for batch in own]), whole.ids)
        assert torch.equal(torch.cat([batch.components["image"] for batch in own]), whole.components["image"])
        for batch in own:
            assert batch.global_size == whole.global_size
            assert batch.global_images == len(whole.ids)
            for name in ("first", "second", "pair_a", "pair_b", "share", "weight"):
                assert torch.equal(batch.components[name], whole.components[name])


def test_an_epoch_resumes_at_any_step(judged_set):
    _, batches = batches_of(judged_set)
    everything = [batch.ids.tolist() for batch in batches.epoch(2)]
    for step in (0, 1, len(everything) - 1, len(everything)):
        assert [batch.ids.tolist() for batch in batches.epoch(2, step)] == everything[step:]
        left = batches.left_after(step)
        assert batches.steps_for(left) == len(everything) - step
        assert [batch.ids.tolist() for batch in batches.epoch(2, left=left)] == everything[step:]


def test_images_on_disk_are_those_in_memory(judged_set, tmp_path):
    ids = judged_pairs(read_judgements(judged_set)).ids
    loader = open_shards(judged_set, batch_size=7, seed=None)
    memory, disk = (
        KeptImages(loader, ids, limits=MomentLimits(memory_bytes=limit, directory=tmp_path)) for limit in (None, 0)
    )
    assert (memory.place, disk.place) == ("memory", "disk")
    rows = np.array([3, 0, 11])
    assert torch.equal(memory.of(rows), disk.of(rows))
    assert memory.of(rows).shape == (3, SIDE, SIDE, 3)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="more than the limits"):
        KeptImages(loader, ids, limits=MomentLimits(memory_bytes=0, disk_bytes=0))
