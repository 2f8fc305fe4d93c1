"""Distances of all pairs, against `lpips` on each pair, and in less memory than the features take."""

import lpips
import pytest
import torch
from safetensors.torch import load_file

import fastdps.metric.matrix
from fastdps.errors import ConfigError
from fastdps.metric.backbones import Backbone
from fastdps.metric.distances import COMPARISONS, compared_channels
from fastdps.metric.image_metric import ImageMetric
from fastdps.metric.matrix import distance_matrix, vectors
from fastdps.metric.perceptual import PerceptualMetric
from helpers.lpips_oracle import lpips_oracle


@pytest.fixture(autouse=True)
def _weights(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(n: int, size: int = 64) -> torch.Tensor:
    """Images that differ as much as photographs do, unlike noise."""
    coarse = noise(n, 3, 5, 5)
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)


@torch.no_grad()
@pytest.mark.parametrize(("net", "backbone", "n"), [("alex", "alexnet", 60), ("vgg", "vgg16", 6)])
def test_all_pairs_against_lpips(net, backbone, n, weights_dir):
    """Every pair of all images (the bench does it with 200); lpips's own features of a pair are those of its images."""
    oracle = lpips_oracle(net, load_file(weights_dir / f"{backbone}_features.safetensors"))
    heads = torch.cat([lin.model[1].weight.flatten() for lin in oracle.lins])[None]
    images = (smooth(n) * 255).to(torch.uint8)
    found = ImageMetric(PerceptualMetric(Backbone(backbone), heads)).matrix(images)
    assert found.shape == (n, n)
    assert torch.equal(found, found.T)
    assert not found.diagonal().any()
    assert found.triu(1).max() > 0.3
    expected = lpips_pairs(oracle, images.float() / 127.5 - 1)
    assert (found - expected).abs().max() < 1e-5
    some = torch.randint(0, n, (2, 8), generator=torch.Generator().manual_seed(1))
    calls = oracle(images[some[0]].float() / 127.5 - 1, images[some[1]].float() / 127.5 - 1).flatten()
    assert (found[some[0], some[1]] - calls).abs().max() < 1e-5


def lpips_pairs(oracle: lpips.LPIPS, images: torch.Tensor) -> torch.Tensor:
    """Compute all distances with LPIPS's modules as its `forward` does, with the features of each image kept."""
    taps = [lpips.normalize_tensor(tap) for tap in oracle.net(oracle.scaling_layer(images))]
    rows = []
    for i in range(len(images)):
        heads = zip(oracle.lins, taps, strict=True)
        rows.append(sum(lpips.spatial_average(lin((tap[i : i + 1] - tap) ** 2)).flatten() for lin, tap in heads))
    return torch.stack(rows)


@pytest.mark.parametrize("comparison", COMPARISONS)
@torch.no_grad()
def test_all_comparisons_against_pairs(comparison):
    channels = sum(compared_channels((64, 192, 384, 256, 256), comparison))
    m = ImageMetric(PerceptualMetric(Backbone("alexnet"), noise(1, channels), comparison=comparison))
    images = smooth(6)
    expected = torch.stack([m(image, images) for image in images])
    assert torch.allclose(m.matrix(images), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(m.matrix(list(images)), m.matrix(images))


@torch.no_grad()
def test_near_copies_are_told_apart():
    """Distances a million times smaller than others keep their first digits."""
    metric = PerceptualMetric(Backbone("alexnet"), 3 * noise(1, 1152))
    images = smooth(3).repeat_interleave(4, dim=0).mul(0.9)
    images += 1e-3 * noise(12, 3, 64, 64, seed=3)
    found = distance_matrix(metric, images, memory_bytes=2**30)
    rows = vectors(metric, images).double()
    expected = (rows[:, None] - rows).square().sum(dim=2)
    near, far = expected[0, 1:4], expected[0, 4:]
    assert near.max() < 1e-4 * far.min()
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=0)
    copies = distance_matrix(metric, images[:1].expand(5, -1, -1, -1), memory_bytes=2**30)
    assert copies.max() < 1e-10


@torch.no_grad()
def test_little_memory_gives_the_same(monkeypatch):
    metric = PerceptualMetric(Backbone("alexnet"), noise(1, 1152))
    images, blocks = smooth(23), []
    whole = distance_matrix(metric, images, memory_bytes=2**30)
    make = fastdps.metric.matrix._block
    monkeypatch.setattr(fastdps.metric.matrix, "_block", lambda *a: blocks.append(len(a[1])) or make(*a))
    row_bytes = vectors(metric, images[:1]).nbytes
    for fitting in (1, 10, 20):
        blocks.clear()
        part = distance_matrix(metric, images, memory_bytes=fitting * row_bytes)
        assert torch.allclose(part, whole, atol=1e-6)
        assert torch.equal(part, part.T)
        assert max(blocks) <= max(1, fitting // 2)
    blocks.clear()
    distance_matrix(metric, images, memory_bytes=2**30)
    assert blocks == [23]  # each image's features once


def test_metrics_without_a_matrix_are_rejected():
    backbone = Backbone("alexnet", pretrained=False)
    for weights in (torch.ones(2, 1152), -torch.ones(1, 1152)):
        with pytest.raises(ConfigError, match="one context, with weights that are at least 0"):
            distance_matrix(PerceptualMetric(backbone, weights), smooth(2), memory_bytes=2**30)
    with pytest.raises(ConfigError, match="memory_MiB must be above 0, not 0"):
        ImageMetric(PerceptualMetric(backbone)).matrix(smooth(2), memory_MiB=0)
