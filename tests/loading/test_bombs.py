"""Small members that decode to gigabytes: refused by their header, before DALI or Pillow decodes anything."""

import io
import struct
import zlib

import pytest
from PIL import Image

from fastdps.errors import SampleError
from fastdps.shards.images import header_fault
from helpers.packed import encoded, noise, photo
from helpers.shard_sets import open_set, write_set

GOOD = encoded(photo(16, 16), "PNG")


def tiff(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "TIFF", compression="group4")
    return buffer.getvalue()


def png(side: int) -> bytes:
    """A PNG whose header gives a size, and whose data end early."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


def jpeg(height: int, width: int) -> bytes:
    data = bytearray(encoded(photo(16, 16), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


BOMBS = {
    "TIFF": (tiff(64), "png", "not a JPEG or PNG"),
    "GIF": (encoded(photo(8, 8), "GIF"), "png", "not a JPEG or PNG"),
    "PNG": (png(20_000), "png", "20000 x 20000 pixels"),
    "PNG without pixels": (png(0), "png", "header is damaged"),
    "JPEG": (jpeg(60_000, 50_000), "jpg", "50000 x 60000 pixels"),
    "JPEG without pixels": (jpeg(0, 16), "jpg", "header is damaged"),
    "cut JPEG": (encoded(photo(16, 16), "JPEG")[:20], "jpg", "header is damaged"),
    "nothing": (b"", "jpg", "not a JPEG or PNG"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_headers_of_bombs(name):
    data, _, reason = BOMBS[name]
    assert reason in (header_fault(data) or "")


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + bytes(60_000)}])
def test_headers_of_images(form, options):
    assert header_fault(encoded(noise(30, 50, 3), form, **(options if form == "JPEG" else {}))) is None
    assert header_fault(encoded(noise(30, 50), form, mode="L")) is None


@pytest.mark.parametrize("name", [name for name in BOMBS if name != "nothing"])  # an index has no empty members
def test_dali_is_not_given_bombs(tmp_path, name):
    """The batch before is still delivered, and the error names the sample."""
    pytest.importorskip("nvidia.dali")
    data, extension, reason = BOMBS[name]
    good = {"png": GOOD} if extension == "png" else {"jpg": encoded(photo(16, 16), "JPEG")}
    samples = [good, good, good, {extension: data}]
    encoding = "png" if extension == "png" else "jpeg"
    directory = write_set(tmp_path / "set", samples, [4], encoding=encoding, image_size=(16, 16))
    batches = open_set(directory, batch_size=2, seed=None, loader="dali", device="cpu").epoch(0)
    assert next(batches).ids.tolist() == [0, 1]
    with pytest.raises(SampleError, match=rf"sample 3 \(000000003.{extension} in .*{reason}"):
        next(batches)
