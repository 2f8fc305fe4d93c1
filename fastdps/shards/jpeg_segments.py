"""The segments of a JPEG, read without decoding: its size, its scans, and bytes between the segments of its header."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

#: Scans of a JPEG that are decoded at most. Each costs a pass over all coefficients of the image, some 30 ms for 150
#: bytes of file. libjpeg writes 10 in a progressive JPEG, optimisers some 20.
MAX_SCANS = 100
#: Bytes of a JPEG that are searched faster than its segments are parsed.
_SMALL_FILE = 8192
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", 0xD9
#: Markers of the frame of a sequential JPEG: baseline and extended.
_SEQUENTIAL = (0xC0, 0xC1)
#: Markers of all frames.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
#: What can follow 0xFF without a segment: fill bytes, escaped data, restart markers, start of an image.
_WITHOUT_LENGTH = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xD9)})


def has_too_many_scans(data: bytes) -> bool:
    """Return whether a file is a JPEG of more scans than `MAX_SCANS`."""
    if not data.startswith(b"\xff\xd8"):
        return False
    # Parsing the header takes some 10 us, and searching the 100 kB of a photo 80 us, but a small file less.
    if len(data) > _SMALL_FILE and _is_decoded_in_one_scan(data):
        return False
    if data.count(_START_OF_SCAN) <= MAX_SCANS or _is_decoded_in_one_scan(data):
        return False
    # The bytes of the marker can also be in metadata, e.g. in a colour profile or a thumbnail.
    scans = (at for marker, at in _segments(data) if marker == _START_OF_SCAN[1])
    return next(itertools.islice(scans, MAX_SCANS, None), None) is not None


def frame_size(data: bytes) -> tuple[int, int]:
    """Return the (height, width) in the header of a JPEG's frame; zeros if there is no frame."""
    at = next((at for marker, at in _segments(data) if marker in _FRAMES), len(data))
    return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")


def has_stray_bytes(data: bytes) -> bool:
    """Return True for a JPEG with bytes other than 0xFF between the segments before its first scan.

    libjpeg skips them. DALI 2.4 does not: its decoder raises an error while its threads still decode other images of
    the batch, which has crashed the process.
    """
    if not data.startswith(b"\xff\xd8"):
        return False
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return True
        marker = data[at + 1]
        if marker in (_START_OF_SCAN[1], _END_OF_IMAGE):
            return False
        at += 1 if marker == 0xFF else 2 if marker in _WITHOUT_LENGTH else 2 + _length(data, at)
    return False


def _length(data: bytes, at: int) -> int:
    """Return the length field of the segment at a position of a JPEG."""
    return int.from_bytes(data[at + 2 : at + 4], "big")


def _is_decoded_in_one_scan(data: bytes) -> bool:
    """Return whether a JPEG is sequential with all components in its first scan: decoders read no other then."""
    components = b""
    for marker, at in _segments(data):
        if marker in _SEQUENTIAL:
            components = data[at + 9 : at + 10]
        elif marker == _START_OF_SCAN[1]:
            return components != b"" and components == data[at + 4 : at + 5]
    return False


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the markers of a JPEG's segments, and the positions of the segments, up to the end of the image."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == _END_OF_IMAGE:
            return
        if marker in _WITHOUT_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        yield marker, at
        at += 2 + _length(data, at)
