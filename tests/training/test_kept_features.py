"""Kept features give the moments of the metric itself, in memory and on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdps.metric.backbones import Backbone
from fastdps.metric.distances import COMPARISONS
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.training.kept_features import KeptFeatures
from fastdps.training.options import MomentLimits

IMAGES = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FIRST, SECOND = np.array([0, 3, 1, 2]), np.array([1, 2, 4, 0])


@pytest.fixture(scope="module")
def backbone():
    return Backbone("alexnet", pretrained=False, seed=0)


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_distances_are_those_of_the_metric(backbone, comparison):
    channels = PerceptualMetric(backbone, comparison=comparison).weights.shape[1]
    weights = torch.rand(3, channels, generator=torch.Generator().manual_seed(1))
    metric = PerceptualMetric(backbone, weights, comparison=comparison)
    done = []
    features = KeptFeatures(metric, IMAGES, on_images=done.append)
    images = IMAGES / 255
    expected = metric(images[FIRST], images[SECOND])
    torch.testing.assert_close(features.distances(weights, FIRST, SECOND), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(features.moments(FIRST, SECOND), features.matrix(np.stack([FIRST, SECOND], 1)).mean)
    assert (len(features), done, features.moments(FIRST[:0], SECOND[:0]).shape) == (5, [5], (0, channels))


def test_beyond_the_memory_features_are_in_a_file(backbone, tmp_path):
    metric = PerceptualMetric(backbone)
    limits = MomentLimits(memory_bytes=0, directory=tmp_path / "kept")
    on_disk, in_memory = KeptFeatures(metric, IMAGES, limits=limits), KeptFeatures(metric, IMAGES / 255)
    torch.testing.assert_close(on_disk.moments(FIRST, SECOND), in_memory.moments(FIRST, SECOND))
    assert not list((tmp_path / "kept").iterdir())  # it has no name, and goes with the process
