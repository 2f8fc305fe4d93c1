"""A picture of where two images differ: both, and the distances at their places laid over the second."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastdps.report.pictures import Panel, draw_sheet

Pixels = NDArray[np.uint8]

#: Dark to bright, so that it can be read in grey too: matplotlib's "inferno" at equal steps.
_COLOURS = np.array(
    [
        (0, 0, 4),
        (40, 11, 84),
        (101, 21, 110),
        (159, 42, 99),
        (212, 72, 66),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ]
)
#: What is left of the image below the brightest place; below the darkest all of it is.
_LEAST_SEEN = 0.15
#: Side up to which small images are enlarged, by a whole factor, in pixels.
SHOWN_AT = 256


def draw_difference(
    reference: Pixels, image: Pixels, distances: NDArray[np.floating], names: tuple[str, str], title: str
) -> Image.Image:
    """Two images (H, W, 3) side by side, and the map of their distance (H, W) over the second."""
    highest = float(distances.max())
    factor = max(1, -(-SHOWN_AT // max(reference.shape[:2])))
    panels = [
        Panel(_enlarged(reference, factor), names[0]),
        Panel(_enlarged(image, factor), names[1]),
        Panel(_enlarged(overlay(image, distances), factor), f"difference: grey 0, bright {highest:.3g}"),
    ]
    return draw_sheet([panels], title)


def overlay(image: Pixels, distances: NDArray[np.floating]) -> Pixels:
    """An image (H, W, 3) in grey, with the colour of each place's distance (H, W) over it, the largest brightest."""
    highest = distances.max()
    share = distances / highest if highest > 0 else np.zeros_like(distances)
    steps = np.linspace(0, 1, len(_COLOURS))
    colour = np.stack([np.interp(share, steps, channel) for channel in _COLOURS.T], axis=-1)
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=float)[..., None]
    seen = 1 - (1 - _LEAST_SEEN) * share[..., None]
    return np.clip(seen * grey + (1 - seen) * colour, 0, 255).round().astype(np.uint8)


def _enlarged(image: Pixels, factor: int) -> Pixels:
    return image.repeat(factor, axis=0).repeat(factor, axis=1)
