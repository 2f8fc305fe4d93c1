"""The work of a packing worker: turn a chunk of items into a fragment of a tar file and its index entries."""

from __future__ import annotations

import functools
import struct
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field

from fastdps.packing.options import PackOptions
from fastdps.packing.plan import WorkChunk
from fastdps.packing.sources.source import Sample, Source
from fastdps.shards.format import COMPONENTS, SCALARS, sample_key
from fastdps.shards.images import UnreadableItemError, pack_image

#: The end mark of a tar file: two empty blocks.
TAR_END = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class Member:
    """The position of one tar member.

    Attributes:
        extension: The extension, such as "jpg" or "judge.f32".
        offset: The offset of the content in bytes, from the start of the fragment or, in an index, of the tar.
        size: The size of the content in bytes.
        name: The name of the member.
    """

    extension: str
    offset: int
    size: int
    name: str


@dataclass(frozen=True)
class Reject:
    """An item that could not be packed.

    Attributes:
        id: The sample id of the item, which is missing from the set.
        item: The name of the item in its source.
        reason: The reason for the rejection.
    """

    id: int
    item: str
    reason: str


@dataclass
class Fragment:
    """A part of a tar file.

    Attributes:
        data: Complete tar members, headers and padding included.
        samples: The members of each sample.
        rejects: The items of the chunk that were rejected.
    """

    data: bytearray = field(default_factory=bytearray)
    samples: list[list[Member]] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


def make_fragment(source: Source, chunk: WorkChunk, options: PackOptions) -> Fragment:
    """Read, decode, resize and encode the items of a chunk.

    Args:
        source: The source of the items.
        chunk: The items and their sample ids.
        options: Options of packing.

    Returns:
        The fragment, whose bytes depend on the arguments only. Unreadable items are in its `rejects`.

    Raises:
        FastDPSError: The source as a whole is not available.
    """
    fragment = Fragment()
    for sample_id, item in enumerate(chunk.items, start=chunk.first_id):
        try:
            members = list(_members(source, source.read(item), options))
        except UnreadableItemError as error:
            fragment.rejects.append(Reject(sample_id, source.name(item), str(error)))
            continue
        fragment.samples.append([_append(fragment.data, sample_id, *member) for member in members])
    return fragment


def _members(source: Source, sample: Sample, options: PackOptions) -> Iterable[tuple[str, bytes]]:
    """Yield the extension and content of each component, in the order of the index."""
    for component in COMPONENTS[source.kind]:
        value = sample[component]
        if component in SCALARS:
            if not isinstance(value, float) or not 0 <= value <= 1:
                raise UnreadableItemError(f"{component} is {value!r}, not a share of votes in [0, 1]")
            yield f"{component}.f32", struct.pack("<f", value)
            continue
        if isinstance(value, float):
            raise TypeError(f"a source of {source.kind} returned a number for {component}, which must be an image")
        extension, content = pack_image(value, options.encoding, options.size, options.fit)
        yield extension if COMPONENTS[source.kind] == ("image",) else f"{component}.{extension}", content


def _append(data: bytearray, sample_id: int, extension: str, content: bytes) -> Member:
    name = f"{sample_key(sample_id)}.{extension}"
    data += _header(name, len(content))
    offset = len(data)
    data += content
    data += bytes(-len(content) % tarfile.BLOCKSIZE)
    return Member(extension, offset, len(content), name)


def _header(name: str, size: int) -> bytearray:
    """Return a USTAR tar header without owner or time, so that the bytes depend on name and content only.

    The result equals that of `tarfile`, which is slower: only the name (bytes 0 to 99) and the checksum (bytes 148 to
    155; the sum of all bytes, with the checksum field counted as spaces) differ between members of the same size.
    """
    header = bytearray(_header_without_name(size))
    header[: len(name)] = name.encode()
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * ord(" "))
    return header


@functools.lru_cache
def _header_without_name(size: int) -> bytes:
    member = tarfile.TarInfo()
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)
