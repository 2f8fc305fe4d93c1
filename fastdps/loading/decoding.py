"""One member of a shard to an array, on the CPU, with Pillow. The reference that DALI's decoding is compared to.

webdataset's image handler does the decoding proper; DALI is not needed here.
"""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
import webdataset
from numpy.typing import NDArray
from PIL import Image

from fastdps.loading.members import ShardIndex, read_member, sample_error
from fastdps.loading.spec import Component, ReadSpec

_to_pil_rgb = webdataset.imagehandler("pilrgb")


def decode_member(
    tar: BinaryIO, index: ShardIndex, row: int, component: Component, spec: ReadSpec
) -> NDArray[np.generic]:
    """One component of one sample: uint8 (H, W, 3) in RGB, or a float32 scalar (). `tar` is the open `index.tar`.

    Raises `SampleError` that names sample, member and shard where it cannot be read or decoded.
    """
    data = read_member(tar, index, row, component.place)
    if component.is_scalar:
        return np.frombuffer(data, dtype="<f4").reshape(())
    try:
        if spec.raw_shape is not None:
            pixels = np.frombuffer(data, dtype=np.uint8).reshape(spec.raw_shape)
            if spec.stored_size == spec.size:
                return pixels
            image = Image.fromarray(pixels)
        else:
            image = _decode(bytes(data), index.member_name(row, component.place))
        return np.asarray(_resized(image, spec.size))
    except Exception as error:  # Pillow's decoders raise many kinds on damaged data
        raise sample_error(index, row, component.place, f"cannot be decoded: {error}") from error


def _decode(data: bytes, name: str) -> Image.Image:
    """An encoded image as RGB; Pillow checks a PNG's checksums only when asked to."""
    if name.endswith(".png"):
        with Image.open(io.BytesIO(data)) as image:
            image.verify()
    image = _to_pil_rgb(name, data)
    if not isinstance(image, Image.Image):
        raise ValueError("it is not an image")
    return image


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """To (height, width), bilinear and antialiased; unchanged if it has that size."""
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)
