"""One member of a shard to an array, on the CPU, without DALI. The reference that DALI's decoding is compared to.

JPEGs are decoded by `fastdps.shards.images.decode_resized`. What it leaves, and PNGs, webdataset's image handler
decodes with Pillow.
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
from fastdps.shards.images import decode_resized

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
            return _resized(Image.fromarray(pixels), spec.size)
        return _decode(bytes(data), index.member_name(row, component.place), spec.size)
    except Exception as error:  # Pillow's decoders raise many kinds on damaged data
        raise sample_error(index, row, component.place, f"cannot be decoded: {error}") from error


def _decode(data: bytes, name: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """An encoded image as RGB, resized; Pillow checks a PNG's checksums only when asked to."""
    if name.endswith(".png"):
        with Image.open(io.BytesIO(data)) as image:
            image.verify()
    elif (pixels := decode_resized(data, size)) is not None:
        return pixels
    image = _to_pil_rgb(name, data)
    if not isinstance(image, Image.Image):
        raise ValueError("it is not an image")
    return _resized(image, size)


def _resized(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """To (height, width), bilinear and antialiased; unchanged if it has that size."""
    height, width = size
    same = image.size == (width, height)
    return np.asarray(image if same else image.resize((width, height), Image.Resampling.BILINEAR))
