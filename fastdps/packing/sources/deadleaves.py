"""Dead leaves: generated images of overlapping shapes, for machines without any images.

Shapes are drawn over each other. Their radii follow r^-3 between two bounds, which gives the scale invariance of
natural images. The lower bound differs between images, so that some show a few large shapes and some many small ones.
Colours scatter around a few hues, shapes have shading and texture, and light comes from one side. Source:
Lee, Mumford, Huang 2001, "Occlusion models for natural images"; its use for training is from Baradad et al. 2021.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdps.errors import ConfigError
from fastdps.packing.sources.source import Sample, Source

#: Images are drawn larger by this factor and averaged down, for smooth edges.
OVERSAMPLING = 2
#: Bounds of the smallest radius in an image, and the largest radius, in image widths.
SMALLEST = (0.035, 0.2)
LARGEST = 0.6
#: Shapes are drawn until their areas add up to this many images, so that little background remains.
LAYERS = 4.0
#: Standard deviation of the noise, before averaging down.
GRAIN = 0.02

Array = NDArray[np.float32]


@dataclass(frozen=True)
class DeadLeaves(Source):
    """Generated images. Each is a pure function of (size, seed, number).

    Attributes:
        count: The number of images, at least 1.
        size: The side in pixels, at least 8.
        seed: The seed of all images.

    Raises:
        ConfigError: The count or the size is too small.
    """

    count: int
    size: int
    seed: int

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 8:
            raise ConfigError(f"dead leaves need a count of 1 and a size of 8 pixels, not {self.count} and {self.size}")

    def items(self) -> Sequence[int]:
        """Return the numbers of the images."""
        return range(self.count)

    def read(self, item: int) -> Sample:
        """Draw image number `item`."""
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, item])))
        return {"image": draw(self.size, random)}

    def name(self, item: int) -> str:
        """Return the number of the image."""
        return f"dead leaves {item}"

    def describe(self) -> dict[str, Any]:
        """Return the name, the count and the seed."""
        return {"name": "deadleaves", "count": self.count, "seed": self.seed}


def draw(size: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one image (size, size, 3), uint8."""
    side = size * OVERSAMPLING
    palette = _palette(random)
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:] = palette[0]
    rows, columns = np.meshgrid(*2 * [np.arange(side, dtype=np.float32)], indexing="ij")
    smallest = float(np.exp(random.uniform(*np.log(SMALLEST))))
    covered = 0.0
    while covered < LAYERS:
        radius = draw_radius(smallest, random) * side
        y, x = random.uniform(-radius, side + radius, 2)
        top, left = max(0, int(y - radius)), max(0, int(x - radius))
        box = np.s_[top : int(y + radius) + 2, left : int(x + radius) + 2]
        dy, dx = rows[box] - y, columns[box] - x
        inside = _shape(dy, dx, radius, random)
        colour = palette[random.integers(len(palette))] * random.uniform(0.7, 1.3)
        canvas[box][inside] = colour * _texture(dy[inside], dx[inside], radius, random)[:, None]
        covered += np.pi * radius**2 / (side + 2 * radius) ** 2
    canvas *= _light(rows - side / 2, columns - side / 2, side, random)[..., None]
    canvas += random.normal(0, GRAIN, canvas.shape).astype(np.float32)
    small = canvas.reshape(size, OVERSAMPLING, size, OVERSAMPLING, 3).mean(axis=(1, 3))
    return np.round(small.clip(0, 1) * 255).astype(np.uint8)


def _palette(random: np.random.Generator) -> Array:
    """Draw a few colours (colours, 3) around one or two hues, mostly pale, as in nature."""
    hues = random.uniform(0, 1, random.integers(1, 3))
    colours = [
        colorsys.hsv_to_rgb(
            (random.choice(hues) + random.normal(0, 0.06)) % 1, random.beta(1.3, 3.0), random.beta(1.8, 1.5)
        )
        for _ in range(random.integers(4, 10))
    ]
    return np.array(colours, np.float32)


def draw_radius(smallest: float, random: np.random.Generator) -> float:
    """Draw a radius in image widths with density r^-3 between `smallest` and `LARGEST`."""
    return float(random.uniform(LARGEST**-2, smallest**-2) ** -0.5)


def _light(dy: Array, dx: Array, side: int, random: np.random.Generator) -> Array:
    """Draw a brightness around 1 that rises to one side of the image; dy and dx are in pixels from its centre."""
    angle, change = random.uniform(0, 2 * np.pi), random.uniform(0, 0.5)
    return (1 + change / side * (np.cos(angle) * dx + np.sin(angle) * dy)).astype(np.float32)


def _shape(dy: Array, dx: Array, radius: float, random: np.random.Generator) -> NDArray[np.bool_]:
    """Draw the mask of a shape within its box: an ellipse, a rectangle, or a polygon."""
    angle, squeeze = random.uniform(0, np.pi), random.uniform(0.4, 1.0)
    along = (np.cos(angle) * dx + np.sin(angle) * dy) / radius
    across = (np.cos(angle) * dy - np.sin(angle) * dx) / (radius * squeeze)
    form = random.integers(3)
    if form == 0:
        return along**2 + across**2 < 1
    if form == 1:
        return np.maximum(abs(along), abs(across)) < 0.7
    inside = np.ones(dy.shape, bool)
    for corner in np.sort(random.uniform(0, 2 * np.pi, random.integers(3, 7))):
        inside &= np.cos(corner) * along + np.sin(corner) * across < 0.7
    return inside & (along**2 + across**2 < 1)


def _texture(dy: Array, dx: Array, radius: float, random: np.random.Generator) -> Array:
    """Draw the brightness of a shape's pixels around 1: shading, and for some shapes a grating or grain."""
    angle = random.uniform(0, 2 * np.pi)
    along = np.cos(angle) * dx + np.sin(angle) * dy
    brightness = 1 + random.uniform(0, 0.35) * along / radius
    kind = random.integers(3)
    if kind == 1:
        wavelength = random.uniform(3, 16)
        brightness += random.uniform(0.05, 0.3) * np.sin(along * (2 * np.pi / wavelength))
    elif kind == 2:
        brightness += random.normal(0, random.uniform(0.03, 0.15), dy.shape)
    return brightness.astype(np.float32)
