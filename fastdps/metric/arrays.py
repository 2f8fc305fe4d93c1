"""Images as NumPy arrays (H, W, 3), read and resized without torch.

Resizing equals torchvision's `resize(antialias=True)`: for uint8 its integer arithmetic, and so the same pixels; for
floats up to rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdps.errors import ImageError, SampleError

#: Bits of the integer weights that torch resizes uint8 images with, and the most fractional bits they may have.
_WEIGHT_BITS, _MOST_FRACTIONAL_BITS = 15, 22


def arrays_of(image: Any) -> list[NDArray[Any]] | None:
    """Return an image as arrays (H, W, 3): uint8, or floats, which should be in [0, 1].

    Args:
        image: A path, a PIL image, or an array (H, W, 3), (H, W) or (N, H, W, 3).

    Returns:
        The image in a list, or those of an array of several. None for any other type.

    Raises:
        ImageError: The image has another shape, type or bit depth.
        SampleError: The file does not exist, or cannot be decoded.

    Example:
        >>> arrays_of(np.zeros((48, 64), np.uint8))[0].shape
        (48, 64, 3)
    """
    if isinstance(image, str | PathLike):
        return [_read_file(Path(image))]
    if isinstance(image, np.ndarray):
        return [_checked(part) for part in (image if image.ndim == 4 else image[None])]
    if _is_pillow(image):
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            raise ImageError(f"a PIL image has pixels of more than 8 bits (mode {image.mode}); make it 8-bit.")
        return [np.array(image.convert("RGB"))]
    return None


def resize_array(pixels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize an image as torchvision does: bilinear, with antialiasing; the aspect ratio may change.

    Args:
        pixels: The image (H, W, C), uint8 or float.
        size: (height, width) in pixels.

    Returns:
        The image (height, width, C), of the same type.

    Example:
        >>> resize_array(np.arange(4.0).reshape(1, 4, 1), (1, 2))[0, :, 0]
        array([0.57142857, 2.42857143])
    """
    for axis in (1, 0):  # the order matters for uint8, which is rounded in between
        if pixels.shape[axis] != size[axis]:
            pixels = np.moveaxis(_resize_last(np.moveaxis(pixels, axis, -1), size[axis]), -1, axis)
    return pixels


def _resize_last(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    """Resize the last axis."""
    windows = list(_windows(pixels.shape[-1], side, np.float64 if pixels.dtype == np.uint8 else np.float32))
    resized = np.empty((*pixels.shape[:-1], side), pixels.dtype)
    if pixels.dtype != np.uint8:
        for number, (start, weights) in enumerate(windows):
            resized[..., number] = pixels[..., start : start + len(weights)] @ weights.astype(pixels.dtype)
        return resized
    largest = max(weights.max() for _, weights in windows)
    bits = 0
    while bits < _MOST_FRACTIONAL_BITS and int(0.5 + largest * 2 ** (bits + 1)) < 2**_WEIGHT_BITS:
        bits += 1
    for number, (start, weights) in enumerate(windows):
        part = pixels[..., start : start + len(weights)].astype(np.float64)  # holds these integers exactly
        total = part @ np.floor(0.5 + weights * 2**bits)
        resized[..., number] = np.clip(np.floor((total + 2 ** (bits - 1)) / 2**bits), 0, 255)
    return resized


def _windows(length: int, side: int, precision: type[np.floating[Any]]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the first input and the weights of each output: a triangle as wide as two outputs, or two inputs.

    Args:
        length: The number of inputs.
        side: The number of outputs.
        precision: The precision of the scale and the centres, as torch has it.
    """
    scale = float(precision(length / side))
    width = max(scale, 1.0)
    for number in range(side):
        centre = float(precision(scale * (number + 0.5)))
        start, end = max(int(centre - width + 0.5), 0), min(int(centre + width + 0.5), length)
        weights = np.maximum(1 - np.abs((np.arange(start, end) - centre + 0.5) / width), 0)
        yield start, weights / weights.sum()


def _is_pillow(image: object) -> bool:
    """Return True for a PIL image, without importing Pillow: while it is not imported, nothing is one."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(image, module.Image)


def _checked(pixels: NDArray[Any]) -> NDArray[Any]:
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        first = " The channels are first: pass array.transpose(1, 2, 0)." if pixels.shape[:1] == (3,) else ""
        raise ImageError(f"an array has shape {pixels.shape}; images are (H, W, 3), or (H, W) for greyscale.{first}")
    if pixels.dtype != np.uint8 and not np.issubdtype(pixels.dtype, np.floating):
        raise ImageError(f"an array has type {pixels.dtype}; images are uint8, or float in [0, 1].")
    return pixels


def _read_file(path: Path) -> NDArray[np.uint8]:
    # The decoders are needed for files only.
    from fastdps.packing.sources.folder import read_file
    from fastdps.shards.images import UnreadableItemError, decode

    if not path.exists():
        raise SampleError(f"{path} does not exist.")
    if path.is_dir():
        raise SampleError(f"{path} is a folder. List its files: sorted(Path({str(path)!r}).glob('*.jpg')).")
    try:
        return decode(read_file(path.parent, path.name)).copy()
    except UnreadableItemError as error:
        raise SampleError(f"{path} {error}. Replace it, or leave it out.") from error
