"""Limits and headers of images: the size of a JPEG's frame against Pillow, and each limit at and above its value."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from fastdps.shards.images import (
    UnreadableItemError,
    decode,
    decode_resized,
    header_fault,
    pack_image,
    scale_for,
    size_fault,
)
from fastdps.shards.jpeg_segments import frame_size, has_stray_bytes
from helpers.packed import encoded, noise, photo

HEIGHT, WIDTH = 30, 52
JPEG = encoded(photo(HEIGHT, WIDTH), "JPEG")
PNG = encoded(photo(HEIGHT, WIDTH), "PNG")


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (2 + len(content)).to_bytes(2, "big") + content


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}, {"exif": b"Exif\0\0"}])
@pytest.mark.parametrize("shape", [(1, 1), (30, 52), (300, 7), (1, 40_000), (40_000, 1)], ids=str)
def test_the_size_of_a_frame_is_that_of_pillow(shape, options):
    data = encoded(noise(*shape, 3), "JPEG", **options)
    with Image.open(io.BytesIO(data)) as image:
        assert frame_size(data) == (image.height, image.width) == shape
    assert header_fault(data, shape) is None


@pytest.mark.parametrize("marker", range(0xC0, 0xD0))
def test_each_kind_of_frame_has_a_size_and_no_other_segment(marker):
    """0xC4, 0xC8 and 0xCC are Huffman tables, an extension and arithmetic tables (ITU T.81, table B.1)."""
    content = bytes([8, 1, 2, 3, 4, 1, 1, 0x11, 0])
    data = b"\xff\xd8" + segment(marker, content) + segment(0xDA, b"\1\1\0\0\x3f\0") + b"\xff\xd9"
    assert frame_size(data) == ((0, 0) if marker in (0xC4, 0xC8, 0xCC) else (0x0102, 0x0304))


@pytest.mark.parametrize("marker", [0x01, *range(0xD0, 0xD9), 0xFF])
def test_markers_without_a_segment_are_skipped(marker):
    data = JPEG[:2] + bytes([0xFF, marker]) * 2 + JPEG[2:]
    assert frame_size(data) == (HEIGHT, WIDTH)
    assert not has_stray_bytes(data)
    assert has_stray_bytes(data[:6] + b"\xfe" + data[6:]) is (marker != 0xFF)  # after fill bytes it is a marker


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff", JPEG[:20], b"\xff\xd8\xff\xd9", PNG])
def test_without_a_frame_there_is_no_size(data):
    assert frame_size(data) == (0, 0)
    assert not has_stray_bytes(data)


def test_sizes_are_compared_by_height_and_width():
    assert size_fault((3, 5), None) is size_fault((3, 5), (3, 5)) is None
    assert size_fault((3, 5), (5, 3)) == "it has 5 x 3 pixels, and the manifest states 3 x 5"


@pytest.mark.parametrize("data", [JPEG, PNG], ids=["JPEG", "PNG"])
def test_the_limit_of_pixels_is_inclusive(monkeypatch, data):
    pixels = HEIGHT * WIDTH
    for limit, is_refused in ((pixels, False), (pixels - 1, True), (None, False)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert bool(header_fault(data)) is is_refused
        if data is JPEG:
            assert (decode_resized(data, (8, 8)) is None) is is_refused
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limit does not depend on the filters of the caller
            for encoding, size in (("raw", 16), ("keep", None)):
                if is_refused:
                    with pytest.raises(UnreadableItemError, match="decompression bomb"):
                        pack_image(data, encoding, size, "squash")
                else:
                    pack_image(data, encoding, size, "squash")


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_deep_images_are_rejected(mode):
    pixels = np.arange(64).reshape(8, 8).astype({"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode])
    with Image.open(io.BytesIO(encoded(pixels, "TIFF"))) as image:
        assert image.mode == mode
    with pytest.raises(UnreadableItemError, match=f"more than 8 bits .mode {mode}"):
        decode(encoded(pixels, "TIFF"))


def test_the_scale_is_the_largest_that_keeps_both_sides():
    """At most 1/8, which is what libjpeg offers, and no side below the target."""
    for height, width, size in [
        (10_000, 10_000, (1, 1)),
        (511, 512, (64, 64)),
        (512, 512, (64, 64)),
        (64, 9999, (32, 8)),
    ]:
        fitting = [n for n in (1, 2, 4, 8) if height >= n * size[0] and width >= n * size[1]]
        assert scale_for(height, width, size) == max(fitting)
    assert scale_for(63, 63, (64, 64)) == 1


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_pixels_of_a_source_are_resized_as_pillow_does(fit):
    pixels = photo(40, 24)
    box = None if fit == "squash" else (0, 8, 24, 32)
    expected = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR, box=box)
    assert pack_image(pixels, "raw", 16, fit) == ("bin", np.asarray(expected).tobytes())
    assert pack_image(pixels, "raw", None, fit) == ("bin", pixels.tobytes())
    assert pack_image(photo(16, 16), "raw", 16, fit) == ("bin", photo(16, 16).tobytes())


def test_jpegs_are_those_of_pillow_at_quality_95_without_subsampling():
    """Packed sets keep their bytes over versions."""
    extension, data = pack_image(photo(16, 16), "jpeg", 16, "squash")
    assert extension == "jpg"
    assert data == encoded(photo(16, 16), "JPEG", quality=95, subsampling=0)
    assert simplejpeg.decode_jpeg_header(data)[3] == "444"
