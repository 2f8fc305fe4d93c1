"""Images on their way into a shard: decode, resize, encode. Pixels are uint8 RGB (height, width, 3)."""

from __future__ import annotations

import io
import warnings
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageFile, UnidentifiedImageError

from fastdps.shards.format import Encoding

Pixels = NDArray[np.uint8]
#: An image as its source has it: an encoded file, or uint8 RGB pixels (height, width, 3).
Image = bytes | NDArray[np.uint8]
#: How a rectangle becomes a square.
Fit = Literal["squash", "crop"]

#: A JPEG is decoded at 1/2, 1/4 or 1/8 scale as long as its short side stays at least this many times the target.
#: On 700 ImageNet images at 64 px, 1 moves a value by 1.1 of 255 levels in the mean and takes 1.0 ms an image; 2 moves
#: it by 0.3 and takes 1.2 ms; full decoding takes 1.8 ms. The rest is Huffman decoding, which no scale saves.
MARGIN = 1
JPEG_OPTIONS = {"quality": 95, "subsampling": "4:4:4"}

#: What counts is the content, not the ending of the name. Pillow knows more, but hands PostScript to another program.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000")

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
#: Modes with more than 8 bits: Pillow's conversion to RGB clips them, and almost all of the image becomes white.
_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
#: Colour spaces that `decode_resized` decodes. CMYK and YCCK have no unique meaning in RGB: Pillow converts them.
_COLORSPACES = {"YCbCr", "Gray", "RGB"}


class UnreadableItemError(Exception):
    """An item gives no sample, for the reason in its message; it is rejected and packing goes on."""


def decode(data: bytes, size: int | None = None, fit: Fit = "squash") -> Pixels:
    """Decode an image file of one of `FORMATS`, as RGB and upright, and resize it to `size` pixels square.

    RGB is Pillow's conversion, of an animation that of the first frame. Resizing is bilinear with antialiasing, as
    torchvision's `Resize` does on Pillow images: "squash" gives up the aspect ratio, "crop" takes the largest square
    in the centre. Without `size` an image keeps its own. Raises `UnreadableItemError`, also for images of more than
    Pillow's `MAX_IMAGE_PIXELS`, which may be decompression bombs, and for grey ones of more than 8 bits.
    """
    with warnings.catch_warnings():
        _heed_bombs_alone()
        try:
            with Pillow.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.mode in _DEEP_MODES:
                    raise UnreadableItemError(f"has pixels of more than 8 bits (mode {image.mode}); make it 8-bit")
                width, height = image.size
                scale = _draft(image, size)
                rgb = _rgb(image, len(data))
                orientation = _orientation(image)  # after decoding: Pillow turns TIFFs by itself then
        except UnreadableItemError:
            raise
        except Exception as error:  # Pillow's decoders raise many kinds on damaged data
            raise _undecodable(error) from error
    if size is not None:
        # Scaled decoding rounds the size up; what it adds at the right and bottom is not part of the image.
        rgb = _squared(rgb, size, fit, (width / scale, height / scale) if scale > 1 else rgb.size)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return np.asarray(rgb)


def _rgb(image: ImageFile.ImageFile, length: int) -> Pillow.Image:
    """`convert`, but in one go through the data, and without the copy of an image that is RGB already."""
    image.decodermaxblock = length  # else Pillow feeds the decoder by 64 KiB
    image.load()
    return image if image.mode == "RGB" and "transparency" not in image.info else image.convert("RGB")


def _heed_bombs_alone() -> None:
    """Ignore Pillow's warnings of odd metadata: what counts is whether pixels decode, and fit into memory."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Pillow.DecompressionBombWarning)


def _undecodable(error: Exception) -> UnreadableItemError:
    reason = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = f"it is in no image format of {', '.join(FORMATS)}, or damaged at its beginning"
    return UnreadableItemError(f"does not decode: {reason}")


def _orientation(image: Pillow.Image) -> int | None:
    """The EXIF orientation; None where the metadata cannot be read, which is no reason to lose the pixels."""
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # as many kinds as in decoding
        return None


def scale_for(height: int, width: int, size: tuple[int, int]) -> int:
    """The divisor of the scale at which an image is decoded for `size`, (height, width): 1, 2, 4 or 8."""
    scale = 1
    while scale < 8 and height >= MARGIN * size[0] * scale * 2 and width >= MARGIN * size[1] * scale * 2:
        scale *= 2
    return scale


def _draft(image: Pillow.Image, size: int | None) -> int:
    """Ask for scaled decoding where it saves work; returns the divisor, 1 where there is none."""
    if size is None or image.format != "JPEG":
        return 1
    scale = scale_for(image.height, image.width, (size, size))
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    return scale


def _squared(image: Pillow.Image, size: int, fit: Fit, extent: tuple[float, float]) -> Pillow.Image:
    """Resize what is within `extent`, (width, height) from the top left: all of it, or its largest central square."""
    width, height = extent
    side = min(width, height)
    left, top = (0.0, 0.0) if fit == "squash" else ((width - side) / 2, (height - side) / 2)
    box = (left, top, width - left, height - top)
    return image.resize((size, size), Pillow.Resampling.BILINEAR, box=box)


def decode_resized(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """A JPEG as RGB, uint8 (height, width, 3), resized to `size`: bilinear, with antialiasing.

    None for anything but a sound JPEG in RGB or grey of a usual size: Pillow is to look at it, which knows more kinds,
    says what is wrong, and minds less.
    """
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in _COLORSPACES or height * width > (Pillow.MAX_IMAGE_PIXELS or height * width):
            return None
        if (height, width) == size:
            return simplejpeg.decode_jpeg(data, "RGB")
        scale = scale_for(height, width, size)
        # Four bytes a pixel is what Pillow resizes, and so takes without a copy.
        pixels = simplejpeg.decode_jpeg(data, "RGBX", min_height=-(-height // scale), min_width=-(-width // scale))
    except ValueError:
        return None
    image = Pillow.frombuffer("RGBX", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "RGBX", 0, 1)
    # Scaled decoding rounds the size up; what it adds at the right and bottom is not part of the image.
    box = (0, 0, width / scale, height / scale)
    return np.asarray(image.resize((size[1], size[0]), Pillow.Resampling.BILINEAR, box=box))[..., :3]


def pack_image(image: Image, encoding: Encoding, size: int | None, fit: Fit) -> tuple[str, bytes]:
    """An image as it goes into a shard: its extension and its bytes. Raises `UnreadableItemError`.

    With `keep` a JPEG that every decoder reads alike (RGB or grey, upright) stays as it is, after a full decode has
    shown that it is sound; anything else becomes a PNG. All other encodings carry no metadata and no colour profile.
    """
    if isinstance(image, bytes):
        if encoding == "keep" and _is_plain_jpeg(image):
            return "jpg", image
        pixels = decode(image, size, fit)
    else:
        pixels = image
        if size is not None and pixels.shape[:2] != (size, size):
            whole = Pillow.fromarray(pixels)
            pixels = np.asarray(_squared(whole, size, fit, whole.size))
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
        _heed_bombs_alone()
        try:
            with Pillow.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.format != "JPEG" or image.mode not in ("RGB", "L") or _orientation(image) in _UPRIGHT:
                    return False
                image.load()
        except Exception as error:  # Pillow's decoders raise many kinds on damaged data
            raise _undecodable(error) from error
    return True
