"""Moments per channel against formulas written out position by position."""

import pytest
import torch

from fastdps.distances import spatial_moments, unit_normalize


def make_features(n: int, views: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 6, 5), (7, 3, 3)]
    return [torch.rand(n * views, *shape, generator=generator) for shape in shapes]


def test_moments_against_the_formula():
    n, distorted = 3, 2
    features = make_features(n, 1 + distorted)
    moments = spatial_moments(features, distorted)
    assert moments.mean.shape == moments.var.shape == (n, distorted, 11)
    offset = 0
    for feature in features:
        _, channels, height, width = feature.shape
        for image in range(n):
            reference = feature[image * 3].double()
            for d in range(distorted):
                other = feature[image * 3 + 1 + d].double()
                z = torch.zeros(channels, height, width, dtype=torch.float64)
                for y in range(height):
                    for x in range(width):
                        a, b = reference[:, y, x], other[:, y, x]
                        z[:, y, x] = (a / a.norm() - b / b.norm()) ** 2
                own = slice(offset, offset + channels)
                positions = height * width
                assert torch.allclose(moments.mean[image, d, own].double(), z.mean(dim=(1, 2)), rtol=1e-4)
                expected = (z**2).sum(dim=(1, 2)) / positions**2
                assert torch.allclose(moments.var[image, d, own].double(), expected, rtol=1e-4)
        offset += channels


def test_equal_views_have_no_distance():
    feature = torch.rand(1, 5, 4, 4).expand(3, -1, -1, -1)
    moments = spatial_moments([feature], 2)
    assert (moments.mean == 0).all()
    assert (moments.var == 0).all()


def test_zero_features_have_values_and_gradients():
    feature = torch.zeros(1, 4, 2, 2, requires_grad=True)
    normalized = unit_normalize(feature)
    assert (normalized == 0).all()
    normalized.sum().backward()
    assert torch.isfinite(feature.grad).all()


def test_half_precision_is_compared_in_float32():
    features = [f.bfloat16() for f in make_features(2, 3)]
    moments = spatial_moments(features, 2)
    assert moments.mean.dtype == torch.float32
    assert torch.equal(moments.mean, spatial_moments([f.float() for f in features], 2).mean)


def test_an_empty_batch_is_no_special_case():
    assert spatial_moments([torch.zeros(0, 4, 3, 3)], 6).mean.shape == (0, 6, 4)


def test_incomplete_groups_are_refused():
    with pytest.raises(ValueError, match="8 feature maps"):
        spatial_moments([torch.rand(8, 4, 2, 2)], 6)
