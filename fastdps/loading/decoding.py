"""Decode a member of a shard on the CPU without DALI: the reference for DALI's decoding.

`fastdps.shards.images.decode_resized` decodes JPEGs. webdataset's image handler decodes the JPEGs that it does not
support, and PNGs, with Pillow.
"""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastdps.loading.members import ShardIndex, read_member, sample_error
from fastdps.loading.spec import Component, ReadSpec
from fastdps.shards.images import decode_resized, size_fault
from fastdps.shards.webdataset import decode_pil


def decode_member(
    tar: BinaryIO, index: ShardIndex, row: int, component: Component, spec: ReadSpec
) -> NDArray[np.generic]:
    """Read and decode one component of a sample.

    Args:
        tar: The open `index.tar`.
        index: The index of the shard.
        row: The row of the sample in it.
        component: The component.
        spec: The wanted form.

    Returns:
        uint8 (H, W, 3) in RGB, or a float32 scalar ().

    Raises:
        SampleError: The member cannot be read or decoded; names sample, member and shard.
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
        return _decode(bytes(data), index.member_name(row, component.place), spec)
    except Exception as error:  # Pillow's decoders raise many types on damaged data
        raise sample_error(index, row, component.place, f"cannot be decoded: {error}") from error


def _decode(data: bytes, name: str, spec: ReadSpec) -> NDArray[np.uint8]:
    """Decode an image as RGB and resize it. PNGs are verified first: Pillow checks checksums only on request."""
    is_png = name.endswith(".png")
    if not is_png and (pixels := decode_resized(data, spec.size, spec.stored_size)) is not None:
        return pixels
    with Image.open(io.BytesIO(data)) as opened:
        if fault := size_fault((opened.height, opened.width), spec.stored_size):
            raise ValueError(fault)
        if is_png:
            opened.verify()
    image = decode_pil(name, data)
    if not isinstance(image, Image.Image):
        raise ValueError("it is not an image")
    return _resized(image, spec.size)


def _resized(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize an image to (height, width), bilinear with antialiasing, unless it has that size."""
    height, width = size
    same = image.size == (width, height)
    return np.asarray(image if same else image.resize((width, height), Image.Resampling.BILINEAR))
