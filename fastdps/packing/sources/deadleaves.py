"""Dead leaves: images made up of overlapping shapes, for machines that have no images yet.

Shapes fall on each other like leaves; their radii follow r^-3 between two bounds, which gives the scale invariance of
natural images. The lower bound differs from image to image, so that some show a few large things and some many small
ones. Colours scatter about a few hues, leaves have shading and texture, and light falls from one side. Source:
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

#: Images are drawn this much larger and averaged down, for smooth edges.
OVERSAMPLING = 2
#: Bounds of the smallest radius of the leaves of an image, and their largest radius, in image widths.
SMALLEST = (0.035, 0.2)
LARGEST = 0.6
#: Leaves fall until their areas add up to this many images, so that little of the ground is left.
LAYERS = 4.0
#: Standard deviation of the noise, before it is averaged down.
GRAIN = 0.02

Array = NDArray[np.float32]


@dataclass(frozen=True)
class DeadLeaves(Source):
    """`count` images of `size` x `size` pixels; each is a pure function of (seed, number)."""

    count: int
    size: int
    seed: int

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 8:
            raise ConfigError(f"dead leaves need a count of 1 and a size of 8 pixels, not {self.count} and {self.size}")

    def items(self) -> Sequence[int]:
        """The numbers of the images."""
        return range(self.count)

    def read(self, item: int) -> Sample:
        """Draw image number `item`."""
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, item])))
        return {"image": draw(self.size, random)}

    def name(self, item: int) -> str:
        """The number."""
        return f"dead leaves {item}"

    def describe(self) -> dict[str, Any]:
        """All that the images depend on."""
        return {"name": "deadleaves", "count": self.count, "seed": self.seed}


def draw(size: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """One image (size, size, 3)."""
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
    """A few colours (colours, 3) about one or two hues, mostly pale, as in nature."""
    hues = random.uniform(0, 1, random.integers(1, 3))
    colours = [
        colorsys.hsv_to_rgb(
            (random.choice(hues) + random.normal(0, 0.06)) % 1, random.beta(1.3, 3.0), random.beta(1.8, 1.5)
        )
        for _ in range(random.integers(4, 10))
    ]
    return np.array(colours, np.float32)


def draw_radius(smallest: float, random: np.random.Generator) -> float:
    """A radius in image widths with density r^-3 between `smallest` and `LARGEST`."""
    return float(random.uniform(LARGEST**-2, smallest**-2) ** -0.5)


def _light(dy: Array, dx: Array, side: int, random: np.random.Generator) -> Array:
    """Brightness about 1 that rises to one side of an image; dy and dx are in pixels from its centre."""
    angle, change = random.uniform(0, 2 * np.pi), random.uniform(0, 0.5)
    return (1 + change / side * (np.cos(angle) * dx + np.sin(angle) * dy)).astype(np.float32)


def _shape(dy: Array, dx: Array, radius: float, random: np.random.Generator) -> NDArray[np.bool_]:
    """Which pixels of its box a leaf covers: an ellipse, a rectangle, or a polygon."""
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
    """Brightness of a leaf's pixels about 1: shading across it, and for some a grating or grain."""
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
