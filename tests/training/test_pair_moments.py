"""Kept moments equal those of the metric, wherever they are kept and however the images are divided."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdps.contexts.judgements import judged_pairs
from fastdps.errors import ConfigError, ShardError
from fastdps.loading.loader import open_shards
from fastdps.metric.backbones import Backbone
from fastdps.metric.distances import COMPARISONS, distances
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.shards.judgements import read_judgements
from fastdps.training.options import MomentLimits
from fastdps.training.pair_moments import BATCH, PairMoments
from helpers.judged_images import packed_judged

IMAGES = 70  # more than two batches, so that blocks can differ


@pytest.fixture(scope="module")
def judged_set(tmp_path_factory):
    return packed_judged(tmp_path_factory.mktemp("judged"), rows=120, images=IMAGES) / "train"


@pytest.fixture(scope="module")
def backbone():
    return Backbone("alexnet", pretrained=False, seed=0)


def loader(location, batch_size=17):
    return open_shards(location, batch_size=batch_size, seed=None)


def moments_of(location, metric, **limits) -> PairMoments:
    judged = judged_pairs(read_judgements(location))
    return PairMoments(metric, loader(location), judged.ids, judged.pairs, limits=MomentLimits(**limits))


def images_of(location) -> dict[int, torch.Tensor]:
    return {
        int(sample): image.permute(2, 0, 1) / 255
        for batch in loader(location).epoch(0)
        for sample, image in zip(batch.ids, batch.images, strict=True)
    }


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_moments_are_those_of_the_metric(judged_set, backbone, comparison):
    weights = torch.rand(2, 1152 * (2 if "+" in comparison else 1), generator=torch.Generator().manual_seed(0))
    metric = PerceptualMetric(backbone, weights, comparison=comparison)
    judged, images = judged_pairs(read_judgements(judged_set)), images_of(judged_set)
    some = judged.pairs[::7]
    x, y = (torch.stack([images[int(judged.ids[position])] for position in some[:, side]]) for side in (0, 1))
    found = moments_of(judged_set, metric).distances(metric.weights)[::7]
    torch.testing.assert_close(found, metric(x, y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("limits", "place"), [({}, "memory"), ({"memory_bytes": 0}, "disk"),
                                               ({"memory_bytes": 0, "disk_bytes": 0}, "computed")])  # fmt: skip
def test_the_place_does_not_change_the_moments(judged_set, backbone, tmp_path, limits, place):
    metric = PerceptualMetric(backbone)
    expected = moments_of(judged_set, metric)
    kept = moments_of(judged_set, metric, directory=tmp_path, **limits)
    assert kept.place == place
    assert list(tmp_path.iterdir()) == []  # the file has no name, so that a killed process leaves none
    for _ in range(2):
        seen = np.concatenate([which for which, _ in kept.blocks()])
        assert sorted(seen) == list(range(len(kept)))
        torch.testing.assert_close(
            kept.distances(metric.weights), expected.distances(metric.weights), rtol=1e-6, atol=1e-6
        )


def test_features_are_computed_once_if_they_fit_and_in_blocks_otherwise(judged_set, backbone):
    metric = PerceptualMetric(backbone)
    used = len(judged_pairs(read_judgements(judged_set)).ids)
    assert moments_of(judged_set, metric).images == used
    blocks = moments_of(judged_set, metric, memory_bytes=0)  # a block is one batch
    assert blocks.images == sum(used - start for start in range(0, used, BATCH))


def test_only_images_of_the_pairs_are_computed(judged_set, backbone):
    judged = judged_pairs(read_judgements(judged_set))
    some = judged.select(np.arange(5))
    kept = PairMoments(PerceptualMetric(backbone), loader(judged_set), some.ids, some.pairs)
    assert kept.images == len(np.unique(some.pairs))
    everything = moments_of(judged_set, PerceptualMetric(backbone)).distances(torch.ones(1, 1152))
    places = [judged.pairs.tolist().index(pair) for pair in some.pairs.tolist()]
    torch.testing.assert_close(kept.distances(torch.ones(1, 1152)), everything[places])


def test_a_missing_image_is_an_error(judged_set, backbone):
    judged = judged_pairs(read_judgements(judged_set))
    with pytest.raises(ShardError, match="images of its judgements"):
        PairMoments(PerceptualMetric(backbone), loader(judged_set), judged.ids + 1000, judged.pairs)


def test_limits_are_checked():
    with pytest.raises(ConfigError, match="--moments-memory must not be negative"):
        MomentLimits(memory_bytes=-1)
    assert MomentLimits().memory > 0
    assert MomentLimits().disk > 0


def test_distances_are_products_with_the_moments(judged_set, backbone):
    kept = moments_of(judged_set, PerceptualMetric(backbone))
    ((which, block),) = kept.blocks()
    weights = torch.rand(3, 1152)
    torch.testing.assert_close(kept.distances(weights)[torch.from_numpy(which)], distances(weights, block))
