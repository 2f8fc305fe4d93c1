"""Moments per channel against formulas written out position by position."""

import lpips
import numpy as np
import pytest
import torch

from fastdps.errors import ConfigError
from fastdps.metric import distances
from fastdps.metric.distances import (
    COMPARISONS,
    compared_channels,
    moments,
    normalized_vectors,
    unit_normalize,
    weighted_sums,
)


def make_features(n: int, views: int) -> list[torch.Tensor]:
    """Two taps as a network returns them: not negative, channels last in memory."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 6, 5), (7, 3, 3)]
    return [
        torch.rand(n * views, *shape, generator=generator).contiguous(memory_format=torch.channels_last)
        for shape in shapes
    ]


def vectors_by_hand(feature: np.ndarray, comparison: str) -> list[np.ndarray]:
    """Return the feature vectors (C,) that a comparison uses, one per position, of a map (C, H, W)."""
    channels, height, width = feature.shape
    if comparison == "spatial":
        return [feature[:, y, x] for y in range(height) for x in range(width)]
    if comparison == "mean":
        return [np.array([sum(feature[c].ravel().tolist()) / (height * width) for c in range(channels)])]
    columns = [sorted(feature[c].ravel().tolist()) for c in range(channels)]
    return [np.array([column[rank] for column in columns]) for rank in range(height * width)]


def moments_by_hand(features: list[torch.Tensor], views: int, comparison: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (n, D, C), from lists of vectors."""
    blocks = []
    for part in comparison.split("+"):
        for feature in features:
            maps = [vectors_by_hand(map_, part) for map_ in feature.double().numpy()]
            block = np.zeros((2, len(maps) // views, views - 1, feature.shape[1]))
            for image in range(len(maps) // views):
                for d in range(views - 1):
                    pairs = zip(maps[image * views], maps[image * views + 1 + d], strict=True)
                    z = [(b / np.linalg.norm(b) - a / np.linalg.norm(a)) ** 2 for a, b in pairs]
                    block[0, image, d] = sum(z) / len(z)
                    block[1, image, d] = sum(value**2 for value in z) / len(z) ** 2
            blocks.append(block)
    mean, var = np.concatenate(blocks, axis=-1)
    return mean, var


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("chunk_bytes", [1, 3000, 2**21], ids=["image by image", "two by two", "at once"])
def test_moments_against_the_formula(monkeypatch, comparison, chunk_bytes):
    monkeypatch.setattr(distances, "CHUNK_BYTES", chunk_bytes)
    n, distorted = 5, 2
    features = make_features(n, 1 + distorted)
    ours = moments(features, distorted, comparison)
    channels = sum(compared_channels([4, 7], comparison))
    assert ours.mean.shape == ours.var.shape == (n, distorted, channels)
    for moment, expected in zip(ours, moments_by_hand(features, 1 + distorted, comparison), strict=True):
        assert np.allclose(moment.numpy(), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_the_layout_of_the_maps_does_not_matter(comparison):
    features = make_features(3, 3)
    rows = [feature.contiguous() for feature in features]
    assert not any(a.stride() == b.stride() for a, b in zip(features, rows, strict=True))
    for ours, theirs in zip(moments(features, 2, comparison), moments(rows, 2, comparison), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_equal_images_have_no_distance_at_all(comparison):
    features = [feature[:1].expand(7, -1, -1, -1) for feature in make_features(1, 1)]
    assert all((moment == 0).all() for moment in moments(features, 6, comparison))


def test_combined_comparisons_are_further_taps():
    features = make_features(2, 3)
    for second in ("mean", "sort"):
        both = moments(features, 2, f"spatial+{second}")
        for together, one, other in zip(both, moments(features, 2), moments(features, 2, second), strict=True):
            assert torch.equal(together, torch.cat([one, other], dim=-1))
        assert compared_channels((4, 7), f"spatial+{second}") == (4, 7, 4, 7)


def test_invariances_of_the_comparisons():
    """Permuting positions changes only the spatial distance; mean and sort ignore positions."""
    feature = torch.rand(1, 5, 4, 4, generator=torch.Generator().manual_seed(1))
    views = torch.cat([feature, feature.roll((1, 2), dims=(2, 3))])
    assert moments([views], 1, "spatial").mean.min() > 0
    assert torch.allclose(moments([views], 1, "mean").mean, torch.zeros(1, 1, 5), atol=1e-12)
    assert (moments([views], 1, "sort").mean == 0).all()
    # Sorting depends on the distribution, averaging does not: equal means in all channels, different spread.
    spread = torch.stack([torch.full((4, 4), 0.5), torch.linspace(0, 1, 16).view(4, 4)])
    views = torch.stack([spread, spread.flip(0)])
    assert torch.allclose(moments([views], 1, "mean").mean, torch.zeros(1, 1, 2), atol=1e-12)
    assert moments([views], 1, "sort").mean.min() > 0.01


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_equal_views_have_no_distance(comparison):
    feature = torch.rand(1, 5, 4, 4).expand(3, -1, -1, -1)
    for moment in moments([feature], 2, comparison):
        assert (moment == 0).all()


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_gradients_against_numeric_ones(comparison):
    """The derivative along a random direction is that of the formula by hand."""
    features = make_features(2, 3)
    for feature in features:
        feature.requires_grad_()
    mean, var = moments(features, 2, comparison)
    generator = torch.Generator().manual_seed(2)
    weights = torch.rand(2, *mean.shape, generator=generator)
    (weights[0] * mean + 10 * weights[1] * var).sum().backward()

    directions = [torch.rand(feature.shape, generator=generator) - 0.5 for feature in features]
    ours = sum((feature.grad * along).sum().item() for feature, along in zip(features, directions, strict=True))

    def value(step: float) -> float:
        moved = [f.detach().double() + step * along for f, along in zip(features, directions, strict=True)]
        mean, var = moments_by_hand(moved, 3, comparison)
        return (weights[0].numpy() * mean + 10 * weights[1].numpy() * var).sum()

    step = 1e-6
    assert ours == pytest.approx((value(step) - value(-step)) / (2 * step), rel=1e-3)


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_values_are_the_same_with_and_without_gradients(comparison):
    features = make_features(2, 3)
    with torch.inference_mode():
        without = moments(features, 2, comparison)
    leaves = [feature.clone().requires_grad_() for feature in features]
    for one, other in zip(moments(leaves, 2, comparison), without, strict=True):
        assert torch.equal(one.detach(), other)


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_features_are_left_as_they_are(comparison):
    features = make_features(2, 3)
    before = [feature.clone() for feature in features]
    with torch.inference_mode():
        moments(features, 2, comparison)
    assert all(torch.equal(feature, own) for feature, own in zip(features, before, strict=True))


def test_memory_layout_does_not_matter():
    features = make_features(3, 3)
    rows = [feature.contiguous() for feature in features]
    for comparison in COMPARISONS:
        assert torch.allclose(moments(features, 2, comparison).mean, moments(rows, 2, comparison).mean, rtol=1e-6)


def test_zero_features_have_values_and_gradients():
    feature = torch.zeros(1, 4, 2, 2, requires_grad=True)
    normalized = unit_normalize(feature)
    assert (normalized == 0).all()
    normalized.sum().backward()
    assert torch.isfinite(feature.grad).all()


def test_half_precision_is_compared_in_float32():
    features = [f.bfloat16() for f in make_features(2, 3)]
    for comparison in COMPARISONS:
        ours = moments(features, 2, comparison)
        assert ours.mean.dtype == torch.float32
        assert torch.equal(ours.mean, moments([f.float() for f in features], 2, comparison).mean)


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_an_empty_batch_is_no_special_case(comparison):
    assert moments([torch.zeros(0, 4, 3, 3)], 6, comparison).mean.shape[:2] == (0, 6)


def test_incomplete_groups_are_rejected():
    with pytest.raises(ValueError, match="8 feature maps"):
        moments([torch.rand(8, 4, 2, 2)], 6)


def test_an_unknown_comparison_is_rejected():
    with pytest.raises(ConfigError, match=r"'sorted'. Did you mean 'sort'\? Known: spatial, mean, sort, spatial\+mean"):
        moments(make_features(1, 2), 1, "sorted")


@pytest.mark.parametrize("length", [1e-10, 3e-10, 1e-9, 1e-8, 1.0])
def test_short_vectors_are_normalised_as_lpips_does(length):
    """The guard against division by zero decides the result where vectors are as short as the guard."""
    features = torch.rand(2, 5, 3, 3, generator=torch.Generator().manual_seed(3))
    features *= length / features.norm(dim=1, keepdim=True)
    assert torch.allclose(unit_normalize(features), lpips.normalize_tensor(features), rtol=1e-4, atol=0)


@pytest.mark.parametrize("comparison", [None, *COMPARISONS])
def test_vectors_of_single_images_give_the_moments_of_pairs(comparison):
    """The default is the same for both."""
    arguments = () if comparison is None else (comparison,)
    features = make_features(2, 3)
    vectors = [tap.double().unflatten(0, (2, 3)) for tap in normalized_vectors(features, *arguments)]
    z = [(tap[:, 1:] - tap[:, :1]).square() for tap in vectors]
    found = moments(features, 2, *arguments)
    assert torch.allclose(found.mean.double(), torch.cat([tap.mean(dim=2) for tap in z], dim=-1), rtol=1e-4, atol=1e-9)
    var = torch.cat([tap.square().sum(dim=2) / tap.shape[2] ** 2 for tap in z], dim=-1)
    assert torch.allclose(found.var.double(), var, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("contexts", [1, 63, 64, 65])
@pytest.mark.parametrize(
    "shape", [(1,), (2,), (9,), (4, 1), (4, 9), (3, 2, 1), (3, 2, 9), (0, 2, 9), (3, 0, 9)], ids=str
)
def test_weighted_sums_are_a_matrix_product(contexts, shape):
    generator = torch.Generator().manual_seed(4)
    weights, values = torch.rand(contexts, shape[-1], generator=generator), torch.rand(shape, generator=generator)
    expected = np.einsum("kc,...c->...k", weights.double().numpy(), values.double().numpy())
    found = weighted_sums(weights, values)
    assert found.shape == expected.shape == (*shape[:-1], contexts)
    assert np.allclose(found.numpy(), expected, rtol=1e-5)
