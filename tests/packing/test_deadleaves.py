"""Dead leaves: pure functions of seed and number, with the statistics of the model."""

from __future__ import annotations

import numpy as np
import pytest

from fastdps.errors import ConfigError
from fastdps.packing.sources.deadleaves import LARGEST, SMALLEST, DeadLeaves, draw_radius


def image(number, *, seed=0, size=64, count=100):
    return DeadLeaves(count=count, size=size, seed=seed).read(number)["image"]


def test_an_image_depends_on_seed_and_number_alone():
    np.testing.assert_array_equal(image(3), image(3, count=7))
    assert (image(3) != image(4)).any()
    assert (image(3) != image(3, seed=1)).any()
    assert (image(1, seed=2) != image(2, seed=1)).any()


def test_images_are_rgb_of_the_size():
    pixels = image(0, size=40)
    assert pixels.shape == (40, 40, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("low", SMALLEST)
def test_radii_follow_the_inverse_cube(low):
    random = np.random.default_rng(0)
    radii = np.array([draw_radius(low, random) for _ in range(20_000)])
    high = LARGEST
    assert low <= radii.min() < 1.01 * low
    assert radii.max() <= high
    # The density r^-3 between the bounds integrates to this distribution.
    for radius in (1.2 * low, 1.5 * low, 2 * low):
        expected = (low**-2 - radius**-2) / (low**-2 - high**-2)
        assert abs((radii <= radius).mean() - expected) < 0.02


def test_images_have_the_spectrum_of_natural_ones():
    """The power of natural images falls with frequency to the power of about -2; that of noise is constant."""
    frequency = np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(64)]))
    power = np.zeros((64, 64))
    for number in range(30):
        grey = image(number).mean(axis=2)
        power += abs(np.fft.fft2(grey - grey.mean())) ** 2
    band = (frequency > 0.03) & (frequency < 0.3)
    slope = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
    assert -3.2 < slope < -1.6


def test_images_vary_in_colour_and_use_the_range():
    means = np.array([image(number).mean(axis=(0, 1)) for number in range(40)])
    assert means.std(axis=0).min() > 15
    assert 60 < means.mean() < 170
    deviations = [image(number).std() for number in range(40)]
    assert np.median(deviations) > 30
    saturated = np.mean([(image(number) == 255).mean() for number in range(40)])
    assert saturated < 0.1


@pytest.mark.parametrize("bad", [{"count": 0, "size": 64}, {"count": 1, "size": 7}])
def test_bad_numbers_are_errors(bad):
    with pytest.raises(ConfigError):
        DeadLeaves(seed=0, **bad)
