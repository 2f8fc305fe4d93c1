"""Pictures: contact sheets of images with captions, and maps of where two images differ."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fastdps.errors import FastDPSError
from fastdps.runtime.files import atomic_write, write_errors
from fastdps.shards.images import Pixels

#: Images of a sheet are enlarged by an integer factor until both sides have at least this many pixels.
SMALLEST_SIDE = 112
#: Images of a difference map are enlarged by an integer factor until the longer side has at least this many pixels.
DIFFERENCE_SIDE = 256
#: Layout of a sheet in pixels: space between panels, height of a line of text, width of a frame.
GAP, LINE, FRAME = 8, 16, 3
PAPER, INK, CHOSEN = (255, 255, 255), (40, 40, 40), (20, 150, 60)
#: From dark to bright, so that it can be read in grey as well: matplotlib's "inferno" at equal steps.
_INFERNO = np.array(
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
#: Opacity of the image where the distance is largest; where it is 0 the opacity is 1.
_LEAST_OPACITY = 0.15


@dataclass(frozen=True)
class Panel:
    """One image of a sheet.

    Attributes:
        pixels: The image, uint8 RGB (H, W, 3).
        caption: Text below the image, of any number of lines.
        chosen: Draw a frame around the image.
    """

    pixels: Pixels
    caption: str = ""
    chosen: bool = False


def draw_sheet(rows: Sequence[Sequence[Panel]], title: str) -> Image.Image:
    """Draw rows of panels below a title.

    Args:
        rows: The panels. All are drawn at the size of the first.
        title: The title.

    Returns:
        The picture, RGB.

    Raises:
        ValueError: There is no panel.
    """
    if not rows or not rows[0]:
        raise ValueError("a sheet needs at least one panel")
    height, width = rows[0][0].pixels.shape[:2]
    factor = max(1, -(-SMALLEST_SIDE // min(height, width)))
    height, width = factor * height, factor * width
    font = ImageFont.load_default(12)
    lines = max(panel.caption.count("\n") + bool(panel.caption) for row in rows for panel in row)
    pitch_y, pitch_x = height + lines * LINE + FRAME + GAP, width + GAP
    sheet_width = max(GAP + pitch_x * max(map(len, rows)), 2 * GAP + int(font.getlength(title)))
    sheet = Image.new("RGB", (sheet_width, 2 * GAP + LINE + pitch_y * len(rows)), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), title, INK, font)
    for y, row in enumerate(rows):
        for x, panel in enumerate(row):
            left, top = GAP + x * pitch_x, 2 * GAP + LINE + y * pitch_y
            if panel.chosen:
                pen.rectangle((left - FRAME, top - FRAME, left + width + FRAME - 1, top + height + FRAME - 1), CHOSEN)
            image = Image.fromarray(panel.pixels).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(image, (left, top))
            for number, line in enumerate(panel.caption.split("\n")):
                _write(pen, (left, top + height + FRAME + number * LINE), line, width, font)
    return sheet


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a picture atomically, in the format of its suffix. Raises `FastDPSError` if it cannot be written."""
    form, encoded = Image.registered_extensions().get(path.suffix.lower(), ""), io.BytesIO()
    try:
        if form not in Image.SAVE:
            raise ValueError(f"unknown file extension {path.suffix!r}")
        sheet.save(encoded, form, optimize=True)
    except (OSError, ValueError) as error:
        message = f"{path} cannot be written: {error}. Name a file such as {path.stem}.png."
        raise FastDPSError(message) from error
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(encoded.getvalue())


def _write(pen: ImageDraw.ImageDraw, at: tuple[int, int], line: str, width: int, font: Any) -> None:
    """Draw a line of text, truncated to the width."""
    while line and font.getlength(line) > width:
        line = line[:-1]
    pen.text(at, line, INK, font)


def draw_difference(
    reference: Pixels, image: Pixels, distances: NDArray[np.floating], names: tuple[str, str], title: str
) -> Image.Image:
    """Draw two images side by side, and beside them the map of their distance over the second.

    Args:
        reference: The first image, (H, W, 3).
        image: The second image, (H, W, 3).
        distances: The distance at each pixel, (H, W).
        names: Captions of the two images.
        title: Title of the picture.

    Returns:
        The picture, RGB.
    """
    highest = float(distances.max())
    factor = max(1, -(-DIFFERENCE_SIDE // max(reference.shape[:2])))
    panels = [
        Panel(_enlarged(reference, factor), names[0]),
        Panel(_enlarged(image, factor), names[1]),
        Panel(_enlarged(overlay(image, distances), factor), f"difference: grey 0, bright {highest:.3g}"),
    ]
    return draw_sheet([panels], title)


def overlay(image: Pixels, distances: NDArray[np.floating]) -> Pixels:
    """Return an image (H, W, 3) in grey, coloured by the distance (H, W) at each pixel; the largest is brightest."""
    highest = distances.max()
    share = distances / highest if highest > 0 else np.zeros_like(distances)
    steps = np.linspace(0, 1, len(_INFERNO))
    colour = np.stack([np.interp(share, steps, channel) for channel in _INFERNO.T], axis=-1)
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=float)[..., None]
    opacity = 1 - (1 - _LEAST_OPACITY) * share[..., None]
    return np.clip(opacity * grey + (1 - opacity) * colour, 0, 255).round().astype(np.uint8)


def _enlarged(image: Pixels, factor: int) -> Pixels:
    return image.repeat(factor, axis=0).repeat(factor, axis=1)
