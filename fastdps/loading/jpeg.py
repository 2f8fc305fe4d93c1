"""JPEGs at a scale close to the one that is wanted: libjpeg-turbo leaves out the pixels that resizing would drop.

    size of the image --> 1/1, 1/2, 1/4 or 1/8, no side below the target --> decode --> resize to the target

The same scale, decoder settings and resizing as in `fastdps.shards.images`, and so the same pixels. simplejpeg decodes
without Python's lock and with little Python around it.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

#: What is decoded here; the others (CMYK and YCCK) have no one meaning in RGB, and Pillow's is taken.
_COLORSPACES = {"YCbCr", "Gray", "RGB"}


def scale_for(height: int, width: int, size: tuple[int, int]) -> int:
    """The divisor of the scale at which an image is decoded for `size`, (height, width): 1, 2, 4 or 8."""
    scale = 1
    while scale < 8 and height >= size[0] * scale * 2 and width >= size[1] * scale * 2:
        scale *= 2
    return scale


def decode_resized(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """A JPEG as RGB, uint8 (height, width, 3), resized to `size`: bilinear, with antialiasing.

    None for anything but a sound JPEG in RGB or grey of a usual size: Pillow is to look at it, which knows more kinds,
    says what is wrong, and minds less.
    """
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in _COLORSPACES or height * width > (Image.MAX_IMAGE_PIXELS or height * width):
            return None
        if (height, width) == size:
            return simplejpeg.decode_jpeg(data, "RGB")
        scale = scale_for(height, width, size)
        # Four bytes a pixel is what Pillow resizes, and so takes without a copy.
        pixels = simplejpeg.decode_jpeg(data, "RGBX", min_height=-(-height // scale), min_width=-(-width // scale))
    except ValueError:
        return None
    image = Image.frombuffer("RGBX", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "RGBX", 0, 1)
    # Scaled decoding rounds the size up; what it adds at the right and bottom is not part of the image.
    box = (0, 0, width / scale, height / scale)
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box))[..., :3]
