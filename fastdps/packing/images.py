"""Images on their way into a shard: decode, resize, encode. Pixels are uint8 RGB (height, width, 3)."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from fastdps.datasets.source import Image, UnreadableItemError
from fastdps.packing.options import Fit
from fastdps.shards import Encoding

Pixels = NDArray[np.uint8]

#: A JPEG is decoded at 1/2, 1/4 or 1/8 scale as long as its short side stays at least this many times the target.
#: On 700 ImageNet images at 64 px that moves a pixel by 0.8 of 255 levels in the mean and nearly doubles the speed.
MARGIN = 2
JPEG_OPTIONS = {"quality": 95, "subsampling": "4:4:4"}

_ORIENTATION = 0x0112
#: What makes an image upright, by its EXIF orientation (EXIF 2.3, section 4.6.4).
_UPRIGHT = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
_DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, MemoryError, Pillow.DecompressionBombError)


def decode(data: bytes, size: int | None = None, fit: Fit = "squash") -> Pixels:
    """Decode any image file that Pillow reads, as RGB and upright, and resize it to `size` pixels square.

    RGB is Pillow's conversion, of an animation that of the first frame. Resizing is bilinear with antialiasing, as
    torchvision's `Resize` does on Pillow images: "squash" gives up the aspect ratio, "crop" takes the largest square
    in the centre. Without `size` an image keeps its own. Raises `UnreadableItemError`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what counts is whether the pixels decode
        try:
            with Pillow.open(io.BytesIO(data)) as image:
                orientation = image.getexif().get(_ORIENTATION)
                width, height = image.size
                scale = _draft(image, size)
                rgb = image.convert("RGB")
        except _DECODE_ERRORS as error:
            raise UnreadableItemError(f"does not decode: {error}") from error
    if size is not None:
        # Scaled decoding rounds the size up; what it adds at the right and bottom is not part of the image.
        box = _box(width / scale, height / scale, fit)
        rgb = rgb.resize((size, size), Pillow.Resampling.BILINEAR, box=box)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return np.asarray(rgb)


def _draft(image: Pillow.Image, size: int | None) -> int:
    """Ask for scaled decoding where it saves work; returns the divisor, 1 where there is none."""
    scale = 1
    if size is not None and image.format == "JPEG":
        while scale < 8 and min(image.size) >= MARGIN * size * scale * 2:
            scale *= 2
        if scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))
    return scale


def _box(width: float, height: float, fit: Fit) -> tuple[float, float, float, float]:
    """The part of an image that is resized: all of it, or the largest square in its centre."""
    if fit == "squash":
        return 0.0, 0.0, width, height
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def pack_image(image: Image, encoding: Encoding, size: int | None, fit: Fit) -> tuple[str, bytes]:
    """An image as it goes into a shard: its extension and its bytes. Raises `UnreadableItemError`.

    With `keep` a JPEG that every decoder reads alike (RGB or grey, upright) stays as it is, after a full decode has
    shown that it is sound; anything else becomes a PNG. All other encodings carry no metadata and no colour profile.
    """
    if encoding == "keep" and isinstance(image, bytes) and _is_plain_jpeg(image):
        return "jpg", image
    pixels = image if isinstance(image, np.ndarray) else decode(image, size, fit)
    if size is not None and pixels.shape != (size, size, 3):
        raise UnreadableItemError(f"is {pixels.shape[1]} x {pixels.shape[0]} pixels, and the set has {size} x {size}")
    if encoding == "raw":
        return "bin", pixels.tobytes()
    buffer = io.BytesIO()
    if encoding == "jpeg":
        Pillow.fromarray(pixels).save(buffer, "JPEG", **JPEG_OPTIONS)
        return "jpg", buffer.getvalue()
    Pillow.fromarray(pixels).save(buffer, "PNG")
    return "png", buffer.getvalue()


def _is_plain_jpeg(data: bytes) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Pillow.open(io.BytesIO(data)) as image:
                if image.format != "JPEG" or image.mode not in ("RGB", "L"):
                    return False
                if image.getexif().get(_ORIENTATION) in _UPRIGHT:
                    return False
                image.load()
        except _DECODE_ERRORS as error:
            raise UnreadableItemError(f"does not decode: {error}") from error
    return True
