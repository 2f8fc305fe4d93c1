"""JPEGs of many scans: 150 bytes each, a pass over the whole image each."""

import io

import numpy as np
import pytest
from PIL import Image

from fastdps.errors import SampleError
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.registry import open_source
from fastdps.shards.images import UnreadableItemError, decode, decode_resized, pack_image
from fastdps.shards.jpeg_segments import MAX_SCANS, has_too_many_scans
from helpers.packed import encoded, photo
from helpers.shard_sets import open_set, write_set

PLAIN = encoded(photo(64, 64), "JPEG", progressive=True)
SCAN = b"\xff\xda"


def with_scans(scans: int, data: bytes = PLAIN) -> bytes:
    """Return a progressive JPEG in which the first scan is repeated, up to a number of scans."""
    first = data.index(SCAN)
    second = data.index(SCAN, first + 2)
    scan = data[first : second - _tables(data, second)]
    return data[:second] + scan * (scans - data.count(SCAN)) + data[second:]


def _tables(data: bytes, end: int) -> int:
    """Return the bytes of the Huffman table that ends at `end`."""
    return end - data.rindex(b"\xff\xc4", 0, end) if b"\xff\xc4" in data[data.index(SCAN) : end] else 0


def with_segment(data: bytes, content: bytes) -> bytes:
    """Insert a segment of metadata."""
    return data[:2] + b"\xff\xef" + (2 + len(content)).to_bytes(2, "big") + content + data[2:]


def test_the_number_of_scans():
    assert PLAIN.count(SCAN) == 10
    assert not has_too_many_scans(PLAIN)
    assert not has_too_many_scans(with_scans(MAX_SCANS))
    assert has_too_many_scans(with_scans(MAX_SCANS + 1))


@pytest.mark.parametrize("content", [SCAN * 300, SCAN * 30_000])
def test_metadata_and_trailers_are_not_scans(content):
    for data in (with_segment(PLAIN, content), PLAIN + content):
        assert not has_too_many_scans(data)
        np.testing.assert_array_equal(decode(data), decode(PLAIN))
    assert has_too_many_scans(with_segment(with_scans(MAX_SCANS + 1), content))


def test_a_sequential_file_of_one_scan_needs_no_count():
    """Decoders stop after its only scan, so what follows costs nothing; one scan per component is counted."""
    data = encoded(photo(64, 64), "JPEG")
    assert not has_too_many_scans(data[:-2] + data[data.index(SCAN) : -2] * 300 + data[-2:])
    in_parts = bytearray(data)
    in_parts[data.index(SCAN) + 4] = 1  # the first scan has one component
    assert has_too_many_scans(bytes(in_parts[:-2]) + bytes(in_parts[data.index(SCAN) : -2]) * 300 + data[-2:])


def test_up_to_the_limit_they_are_decoded():
    data = with_scans(MAX_SCANS)
    assert decode(data).shape == (64, 64, 3)
    assert pack_image(data, "keep", None, "squash") == ("jpg", data)


@pytest.mark.parametrize("encoding", ["keep", "raw", "png"])
def test_more_are_refused(encoding):
    assert Image.open(io.BytesIO(with_scans(1000))).convert("RGB").size == (64, 64)  # a decoder takes them
    with pytest.raises(UnreadableItemError, match="has more than 100 scans, so it may be a decompression bomb"):
        pack_image(with_scans(1000), encoding, None if encoding == "keep" else 32, "squash")
    with pytest.raises(UnreadableItemError, match="more than 100 scans"):
        decode_resized(with_scans(1000), (64, 64))


def test_packing_rejects_the_file_by_name(tmp_path):
    for name in ("a", "b"):
        directory = tmp_path / "images" / name
        directory.mkdir(parents=True)
        directory.joinpath("good.jpg").write_bytes(PLAIN)
    (tmp_path / "images" / "a" / "bomb.jpg").write_bytes(with_scans(1000))
    source = open_source("folder", tmp_path / "images")
    pack(source, tmp_path / "out", PackOptions(size=32, max_rejects=1.0), workers=1)
    rejects = "".join(path.read_text() for path in (tmp_path / "out").rglob("rejects.jsonl"))
    assert "bomb.jpg" in rejects
    assert "more than 100 scans" in rejects


def test_the_portable_loader_names_the_sample(tmp_path):
    samples = [{"jpg": PLAIN}, {"jpg": with_scans(1000)}]
    directory = write_set(tmp_path / "set", samples, [2], encoding="jpeg", image_size=(64, 64))
    with pytest.raises(SampleError, match=r"sample 1 .*more than 100 scans"):
        list(open_set(directory, batch_size=2, seed=None, loader="portable").epoch(0))
