"""Contact sheets: rows of images with captions, as one picture."""

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

#: Small images are enlarged by a whole factor up to at least this width and height, in pixels.
SMALLEST_SIDE = 112
GAP = 8
LINE = 16  # height of a line of text
FRAME = 3
PAPER, INK, CHOSEN = (255, 255, 255), (40, 40, 40), (20, 150, 60)


@dataclass(frozen=True)
class Panel:
    """One image (H, W, 3) uint8 with a caption of any number of lines below; a frame if it is `chosen`."""

    pixels: NDArray[np.uint8]
    caption: str = ""
    chosen: bool = False


def draw_sheet(rows: Sequence[Sequence[Panel]], title: str) -> Image.Image:
    """Rows of panels below a title; all panels have the size of the first. Raises `ValueError` without any."""
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
    """Write a picture whole, in the format that its suffix names. Raises `FastDPSError`."""
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
    """A line of text, cut to what fits."""
    while line and font.getlength(line) > width:
        line = line[:-1]
    pen.text(at, line, INK, font)
