"""What a worker does: turn a run of items into a piece of a tar file and the lines of its index."""

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

#: What a tar file ends with, and is filled up to a multiple of.
TAR_END = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class Member:
    """Where the content of one tar member is: extension, offset from the start of the fragment, size, name."""

    extension: str
    offset: int
    size: int
    name: str


@dataclass(frozen=True)
class Reject:
    """An item that gave no sample, and why; `id` is the sample id that is missing for it."""

    id: int
    item: str
    reason: str


@dataclass
class Fragment:
    """A piece of a tar file: whole members, one list of them per sample, and the items that were rejected."""

    data: bytearray = field(default_factory=bytearray)
    samples: list[list[Member]] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


def make_fragment(source: Source, chunk: WorkChunk, options: PackOptions) -> Fragment:
    """Read, decode, resize and encode the items of a chunk. The same chunk gives the same bytes anywhere."""
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
    """Extension and content of each component, in the order of the index."""
    for component in COMPONENTS[source.kind]:
        value = sample[component]
        if component in SCALARS:
            if not isinstance(value, float) or not 0 <= value <= 1:
                raise UnreadableItemError(f"{component} is {value!r}, not a share of votes in [0, 1]")
            yield f"{component}.f32", struct.pack("<f", value)
            continue
        if isinstance(value, float):
            raise TypeError(f"{source.kind} has a number as {component}, which is an image")
        extension, content = pack_image(value, options.encoding, options.size, options.fit)
        yield extension if source.kind == "images" else f"{component}.{extension}", content


def _append(data: bytearray, sample_id: int, extension: str, content: bytes) -> Member:
    name = f"{sample_key(sample_id)}.{extension}"
    data += _header(name, len(content))
    offset = len(data)
    data += content
    data += bytes(-len(content) % tarfile.BLOCKSIZE)
    return Member(extension, offset, len(content), name)


def _header(name: str, size: int) -> bytearray:
    """A tar header in the plain USTAR format: no owner, no time, so that the bytes say nothing but the content.

    As `tarfile` makes it, but not anew for each member: it has the name in the first 100 bytes, and in bytes 148 to 155
    the sum of all bytes with those taken for spaces.
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
