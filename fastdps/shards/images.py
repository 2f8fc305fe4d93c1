"""Decode, resize and encode images, for packing and for loading. Pixels are uint8 RGB (height, width, 3).

    size of a JPEG --> scale 1/1, 1/2, 1/4 or 1/8, no side below the target --> decode --> resize to the target

libjpeg-turbo skips the pixels that resizing would discard. Packing decodes with Pillow. Loading uses simplejpeg, which
decodes without Python's lock and with little Python overhead, at the same scale and with the same settings and
resizing, so that it gives the same pixels.
"""

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
from fastdps.shards.jpeg_segments import MAX_SCANS, frame_size, has_stray_bytes, has_too_many_scans

Pixels = NDArray[np.uint8]
#: An image of a source: an encoded file, or uint8 RGB pixels (height, width, 3).
Image = bytes | NDArray[np.uint8]
#: How a rectangle is made a square: by scaling or by cropping.
Fit = Literal["squash", "crop"]

#: A JPEG is decoded at 1/2, 1/4 or 1/8 scale if its short side stays at least this many times the target. On 700
#: ImageNet images at 64 px, 1 changes a value by 1.1 of 255 levels on average and takes 1.0 ms per image; 2 changes it
#: by 0.3 and takes 1.2 ms; full decoding takes 1.8 ms. The rest is Huffman decoding, which no scale avoids.
MARGIN = 1
JPEG_OPTIONS = {"quality": 95, "subsampling": "4:4:4"}

#: Formats are detected from the content, not from the extension. Pillow supports more formats, but runs another program
#: for PostScript.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000")

_ORIENTATION = 0x0112
#: The start of a PNG: signature, and length and name of its first chunk.
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
#: The operation that makes an image upright, by its EXIF orientation (EXIF 2.3, section 4.6.4).
_UPRIGHT = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
#: Modes with more than 8 bits: Pillow's conversion to RGB clips them, so that most of the image becomes white.
_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
#: Colour spaces that `decode_resized` decodes. CMYK and YCCK have no unique meaning in RGB: Pillow converts them.
_COLORSPACES = {"YCbCr", "Gray", "RGB"}


class UnreadableItemError(Exception):
    """Raised for an item that cannot be packed. The item is rejected with the reason, and packing continues."""


def decode(data: bytes, size: int | None = None, fit: Fit = "squash") -> Pixels:
    """Decode an image file as upright RGB, and resize it to a square.

    RGB is Pillow's conversion; of an animation, the first frame. Resizing is bilinear with antialiasing, as
    torchvision's `Resize` does on Pillow images.

    Args:
        data: An image file of one of `FORMATS`.
        size: The side of the square in pixels; None to keep the size.
        fit: "squash" changes the aspect ratio, "crop" takes the largest central square.

    Raises:
        UnreadableItemError: The image cannot be decoded, has more pixels than Pillow's `MAX_IMAGE_PIXELS` or more scans
            than `MAX_SCANS` (it may be a decompression bomb), or is a greyscale image of more than 8 bits.
    """
    _check_scans(data)
    with warnings.catch_warnings():
        _raise_only_on_bombs()
        try:
            with Pillow.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.mode in _DEEP_MODES:
                    raise UnreadableItemError(f"has pixels of more than 8 bits (mode {image.mode}); make it 8-bit")
                width, height = image.size
                scale = _draft(image, size)
                rgb = _rgb(image, len(data))
                orientation = _orientation(image)  # after decoding, which makes TIFFs upright
        except UnreadableItemError:
            raise
        except Exception as error:  # Pillow's decoders raise many types on damaged data
            raise _undecodable(error) from error
    if size is not None:
        # Scaled decoding rounds the size up; the added pixels at the right and bottom are not part of the image.
        rgb = _squared(rgb, size, fit, (width / scale, height / scale) if scale > 1 else rgb.size)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return np.asarray(rgb)


def _rgb(image: ImageFile.ImageFile, length: int) -> Pillow.Image:
    """Convert to RGB in a single pass over the data, without copying an image that already is RGB."""
    image.decodermaxblock = length  # otherwise Pillow feeds the decoder 64 KiB at a time
    image.load()
    return image if image.mode == "RGB" and "transparency" not in image.info else image.convert("RGB")


def _check_scans(data: bytes) -> None:
    """Raise `UnreadableItemError` for a JPEG of more scans than `MAX_SCANS`, before anything is decoded."""
    if has_too_many_scans(data):
        raise UnreadableItemError(f"has more than {MAX_SCANS} scans, so it may be a decompression bomb; save it again")


def header_fault(data: bytes, size: tuple[int, int] | None = None) -> str | None:
    """Return why a member must not be given to a decoder without limits, or None. Only the header is read.

    A decoder without limits allocates what a header says, and detects formats in which few bytes are many pixels.

    Args:
        data: The content of the member.
        size: (height, width) in pixels that the set states for all images, or None.
    """
    width = height = 0
    if data.startswith(_PNG_START):
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    elif data.startswith(b"\xff\xd8"):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
        except ValueError:  # libjpeg-turbo is stricter here than decoders are
            height, width = frame_size(data)
    if not width * height:
        return "cannot be decoded: it is not a JPEG or PNG, or its header is damaged"
    if has_stray_bytes(data):
        return "cannot be decoded safely: bytes that belong to no segment are between the segments of its header"
    if width * height > (Pillow.MAX_IMAGE_PIXELS or width * height):
        return f"cannot be decoded: it has {width} x {height} pixels, so it may be a decompression bomb"
    if has_too_many_scans(data):
        return f"cannot be decoded: it has more than {MAX_SCANS} scans, so it may be a decompression bomb"
    return f"cannot be decoded: {fault}" if (fault := size_fault((height, width), size)) else None


def size_fault(found: tuple[int, int], stated: tuple[int, int] | None) -> str | None:
    """Return how the (height, width) of an image differs from the size that its set states, or None."""
    if stated is None or found == stated:
        return None
    return f"it has {found[1]} x {found[0]} pixels, and the manifest states {stated[1]} x {stated[0]}"


def _raise_only_on_bombs() -> None:
    """Ignore Pillow's warnings about odd metadata, and raise the warning about decompression bombs."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Pillow.DecompressionBombWarning)


def _undecodable(error: Exception) -> UnreadableItemError:
    reason = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = f"it has no image format of {', '.join(FORMATS)}, or its header is damaged"
    return UnreadableItemError(f"does not decode: {reason}")


def _orientation(image: Pillow.Image) -> int | None:
    """Return the EXIF orientation, or None if the metadata cannot be read: the pixels are still usable."""
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # many types, as in decoding
        return None


def scale_for(height: int, width: int, size: tuple[int, int]) -> int:
    """Return the scale divisor, 1, 2, 4 or 8, at which a JPEG is decoded for `size` (height, width)."""
    scale = 1
    while scale < 8 and height >= MARGIN * size[0] * scale * 2 and width >= MARGIN * size[1] * scale * 2:
        scale *= 2
    return scale


def _draft(image: Pillow.Image, size: int | None) -> int:
    """Request scaled decoding if it saves work, and return the divisor."""
    if size is None or image.format != "JPEG":
        return 1
    scale = scale_for(image.height, image.width, (size, size))
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    return scale


def _squared(image: Pillow.Image, size: int, fit: Fit, extent: tuple[float, float]) -> Pillow.Image:
    """Resize the area `extent`, (width, height) from the top left: all of it, or its largest central square."""
    width, height = extent
    side = min(width, height)
    left, top = (0.0, 0.0) if fit == "squash" else ((width - side) / 2, (height - side) / 2)
    box = (left, top, width - left, height - top)
    return image.resize((size, size), Pillow.Resampling.BILINEAR, box=box)


def decode_resized(
    data: bytes, size: tuple[int, int], stored_size: tuple[int, int] | None = None
) -> NDArray[np.uint8] | None:
    """Decode a JPEG with simplejpeg and resize it: bilinear, with antialiasing.

    Args:
        data: An image file.
        size: (height, width) in pixels.
        stored_size: (height, width) in pixels that the image must have, or None.

    Returns:
        RGB, uint8 (height, width, 3), or None for anything but a valid RGB or greyscale JPEG of that size. Such files
        are left to Pillow, which supports more kinds, tolerates more errors and reports them.

    Raises:
        UnreadableItemError: The JPEG has more scans than `MAX_SCANS`.
    """
    _check_scans(data)
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in _COLORSPACES or height * width > (Pillow.MAX_IMAGE_PIXELS or height * width):
            return None
        if size_fault((height, width), stored_size):
            return None
        if (height, width) == size:
            return simplejpeg.decode_jpeg(data, "RGB")
        scale = scale_for(height, width, size)
        # Pillow resizes images of four bytes per pixel, and takes these without a copy.
        pixels = simplejpeg.decode_jpeg(data, "RGBX", min_height=-(-height // scale), min_width=-(-width // scale))
    except ValueError:
        return None
    image = Pillow.frombuffer("RGBX", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "RGBX", 0, 1)
    # As in `decode`: the pixels that scaled decoding adds are not part of the image.
    box = (0, 0, width / scale, height / scale)
    return np.asarray(image.resize((size[1], size[0]), Pillow.Resampling.BILINEAR, box=box))[..., :3]


def pack_image(image: Image, encoding: Encoding, size: int | None, fit: Fit) -> tuple[str, bytes]:
    """Encode an image for a shard.

    With `keep` a JPEG that all decoders read alike (RGB or greyscale, upright) is stored unchanged after a full decode
    has shown that it is valid; everything else becomes a PNG. Re-encoded images have no metadata and no colour profile.

    Args:
        image: An image file, or pixels.
        encoding: The encoding of the set.
        size: The side of the square in pixels; None to keep the size.
        fit: "squash" or "crop"; see `decode`.

    Returns:
        The extension and the bytes of the member.

    Raises:
        UnreadableItemError: As `decode`.
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
    _check_scans(data)
    with warnings.catch_warnings():
        _raise_only_on_bombs()
        try:
            with Pillow.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.format != "JPEG" or image.mode not in ("RGB", "L") or _orientation(image) in _UPRIGHT:
                    return False
                if has_stray_bytes(data):
                    return False
                image.load()
        except Exception as error:  # Pillow's decoders raise many types on damaged data
            raise _undecodable(error) from error
    return True
