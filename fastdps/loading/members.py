"""Read the index of a shard and its members, and check both.

Checked before the first sample of a shard is used: the tar has the size in the manifest; the index has the samples,
components and sizes in the manifest, in ascending order of sample ids, and they do not overlap in the tar; tar headers
are where the index says for the first and last member and for each member that does not directly follow another. This
detects an index of another shard and a truncated or shifted tar. Bytes that changed within a member are detected where
they do not decode; only `fastdps check`, which compares checksums, detects all of them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastdps.errors import SampleError, ShardError
from fastdps.shards.format import SCALARS, Manifest, Shard
from fastdps.shards.index import INDEX_HEADER
from fastdps.shards.tar_headers import BLOCK

_NAME_FIELD, _SIZE_FIELD = slice(0, 100), slice(124, 136)  # of a tar header (ustar)
SCALAR_BYTES = 4
_MAX_DIGITS = 18  # of an int64, so that no sum of two overflows
_FIELDS = 4  # per component in a line of the index: extension, offset, size, name


@dataclass(frozen=True)
class ShardIndex:
    """The index of a shard of n samples with C components, in packed order.

    Attributes:
        tar: The path of the shard.
        lines: The n lines of the index file, to write an index of a subset.
        ids: Sample ids, int64 (n,).
        names: Names of the members, (n, C).
        offsets: Offsets of the members' data in the tar in bytes, int64 (n, C).
        sizes: Sizes of the members' data in bytes, int64 (n, C).
    """

    tar: Path
    lines: list[bytes]
    ids: NDArray[np.int64]
    names: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def member_name(self, row: int, component: int) -> str:
        """Return the name in the tar of one component of the sample in `row`."""
        return bytes(self.names[row, component]).decode()

    @functools.cached_property
    def end(self) -> int:
        """The offset at which the data of the last member ends."""
        return int((self.offsets + self.sizes).max())

    @functools.cached_property
    def stride(self) -> int | None:
        """The bytes from a sample to the next; None if the spacing or the member sizes vary."""
        steps = np.diff(self.offsets, axis=0)
        if np.any(self.sizes != self.sizes[0]) or np.any(steps != steps[:1, :1]):
            return None
        return int(steps[0, 0]) if len(steps) else 0


def open_index(directory: Path, manifest: Manifest, shard: Shard) -> ShardIndex:
    """Read the index of a shard and check that manifest, index and tar are consistent.

    Raises:
        ShardError: A file cannot be read, or they are inconsistent.
    """
    try:
        blob = (directory / shard.index_name).read_bytes()
        size = (directory / shard.name).stat().st_size
    except OSError as error:
        raise shard_error(directory, shard.name, f"cannot be read: {error}") from error
    if size != shard.bytes:
        raise shard_error(directory, shard.name, f"has {size} bytes where the manifest states {shard.bytes}")
    try:
        index = _parse(blob, directory / shard.name, manifest, shard)
        suspects = _check_places(index, manifest, shard)
    except ValueError as error:
        raise shard_error(directory, shard.index_name, f"does not fit the shard: {error}") from error
    try:
        with index.tar.open("rb", buffering=0) as tar:
            for row, component in suspects:
                read_member(tar, index, row, component, header_only=True)
    except (OSError, SampleError) as error:
        raise shard_error(directory, shard.index_name, f"does not fit the shard: {error}") from error
    return index


def read_member(tar: BinaryIO, index: ShardIndex, row: int, component: int, *, header_only: bool = False) -> memoryview:
    """Read one member after a check of its tar header.

    Args:
        tar: `index.tar`, opened without a buffer.
        index: The index of the shard.
        row: The row of the sample.
        component: The position of the component.
        header_only: Check the header and return no bytes.

    Raises:
        SampleError: The tar header does not belong to the member in the index, or the tar ends or cannot be read.
    """
    offset, size = int(index.offsets[row, component]), int(index.sizes[row, component])
    wanted = BLOCK + (0 if header_only else size)
    try:
        tar.seek(offset - BLOCK)
        block = tar.read(wanted)
    except OSError as error:
        raise sample_error(index, row, component, f"cannot be read: {error}") from error
    if len(block) < wanted:
        raise sample_error(index, row, component, f"ends after {len(block)} of {wanted} bytes")
    if not _is_header_of(block[:BLOCK], index.member_name(row, component).encode(), size):
        raise sample_error(index, row, component, f"has no matching tar header before byte {offset}")
    return memoryview(block)[BLOCK:]


def read_members(
    tar: BinaryIO, index: ShardIndex, rows: NDArray[np.int64], component: int, out: NDArray[np.uint8]
) -> None:
    """Read one component of n samples of equal size into `out` (n, size); faster than `read_member`.

    Each member is read with one system call to its place, and all headers are checked together. Raises what
    `read_member` raises.
    """
    n, size = out.shape
    headers = np.empty((n, BLOCK), np.uint8)
    header_bytes, member_bytes = headers.data.cast("B"), out.data.cast("B")
    starts = (index.offsets[rows, component] - BLOCK).tolist()
    read = [
        _read_at(tar, (header_bytes[h : h + BLOCK], member_bytes[m : m + size]), start)
        for h, m, start in zip(range(0, n * BLOCK, BLOCK), range(0, n * size, size), starts, strict=True)
    ]
    is_valid = match_headers(index, rows, component, headers) & (np.array(read) == BLOCK + size)
    for position in np.flatnonzero(~is_valid).tolist():
        member = read_member(tar, index, int(rows[position]), component)  # raises the error
        out[position] = np.frombuffer(member, np.uint8)  # or repeats an interrupted read


def match_headers(
    index: ShardIndex, rows: NDArray[np.int64], component: int, headers: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """Return which of n tar headers (n, BLOCK) belong to the members in the index, all of equal size; bool (n,)."""
    size_fields, size = _field(headers, _SIZE_FIELD), int(index.sizes[0, component])
    is_match: NDArray[np.bool_] = _field(headers, _NAME_FIELD) == index.names[rows, component]
    for field in set(size_fields.tolist()):  # one, unless there is damage
        if not _has_size(field, size):
            is_match &= size_fields != field
    return is_match


def _preadv(tar: BinaryIO, parts: tuple[memoryview, memoryview], start: int) -> int:
    """Read from offset `start` into two buffers; return the number of bytes read, or -1 on an error."""
    try:
        return os.preadv(tar.fileno(), parts, start)
    except OSError:
        return -1


def _seek_and_read(tar: BinaryIO, parts: tuple[memoryview, memoryview], start: int) -> int:
    """Do the same as `_preadv` on systems without it."""
    try:
        tar.seek(start)
        return sum(tar.readinto(part) for part in parts)  # type: ignore[attr-defined]
    except OSError:
        return -1


_read_at = _preadv if hasattr(os, "preadv") else _seek_and_read


def _field(headers: NDArray[np.uint8], field: slice) -> NDArray[np.bytes_]:
    """Return a field of n tar headers (n, BLOCK) as n strings without trailing NULs."""
    return np.ascontiguousarray(headers[:, field]).view(f"S{field.stop - field.start}")[:, 0]


def shard_error(directory: Path, file: str, what: str) -> ShardError:
    """Return the error for a file of a shard set."""
    return ShardError(f"{directory / file} {what}. Run `fastdps check {directory}`, then restore or pack it again.")


def sample_error(index: ShardIndex, row: int, component: int, what: str) -> SampleError:
    """Return the error for a member of a shard."""
    return SampleError(
        f"sample {int(index.ids[row])} ({index.member_name(row, component)} in {index.tar}) {what}. "
        f"Run `fastdps check {index.tar.parent}`, then restore the shard or pack the set again."
    )


def _parse(blob: bytes, tar: Path, manifest: Manifest, shard: Shard) -> ShardIndex:
    """Parse the text of an index. Raises `ValueError` if it does not fit the manifest."""
    tokens = blob.split()
    if tokens[:1] != [INDEX_HEADER.encode()]:
        raise ValueError(f"it does not begin with {INDEX_HEADER}")
    n, width = shard.samples, _FIELDS * len(manifest.components)
    lines = blob.splitlines()[1:]
    if tokens[1:2] != [str(n).encode()] or len(lines) != n:
        raise ValueError(f"it has {len(lines)} lines and states {tokens[1:2]}, but the manifest states {n}")
    if len(tokens) != 2 + n * width:
        raise ValueError(f"its lines do not have {len(manifest.components)} components of {_FIELDS} fields each")
    columns = [tokens[2 + field :: width] for field in range(width)]
    keys = [name.partition(b".")[0] for name in columns[_FIELDS - 1]]
    for number, (component, extensions) in enumerate(manifest.components.items()):
        extension, _, _, names = columns[_FIELDS * number : _FIELDS * (number + 1)]
        if unknown := set(extension) - set(extensions.encode().split(b";")):
            raise ValueError(f"it has extensions {sorted(unknown)} for {component} instead of {extensions}")
        if any(n != k + b"." + e for n, k, e in zip(names, keys, extension, strict=True)):
            raise ValueError(f"the names of {component} do not match their samples")
    ids = _integers(keys)
    if np.any(np.diff(ids) <= 0):
        raise ValueError("its sample ids do not ascend")
    offsets = np.stack([_integers(column) for column in columns[1::_FIELDS]], axis=1)
    sizes = np.stack([_integers(column) for column in columns[2::_FIELDS]], axis=1)
    members = np.stack([np.array(column, dtype=bytes) for column in columns[3::_FIELDS]], axis=1)
    return ShardIndex(tar, lines, ids, members, offsets, sizes)


def _integers(texts: Sequence[bytes]) -> NDArray[np.int64]:
    if not b"".join(texts).replace(b"-", b"").isdigit() or max(map(len, texts)) > _MAX_DIGITS:
        raise ValueError("it has ids, offsets or sizes that are not numbers")
    return np.array(texts, dtype=bytes).astype(np.int64)


def _check_places(index: ShardIndex, manifest: Manifest, shard: Shard) -> list[tuple[int, int]]:
    """Check sizes and offsets, and return the (row, component) of the members whose tar headers must be checked.

    These are the first and the last member, and each member that does not directly follow another. Raises `ValueError`.
    """
    offsets, sizes = index.offsets, index.sizes
    for number, component in enumerate(manifest.components):
        wanted = _fixed_size(manifest, component)
        if wanted is not None and np.any(sizes[:, number] != wanted):
            raise ValueError(f"{component} must have {wanted} bytes per sample")
    if (
        np.any(sizes <= 0)
        or np.any(offsets < BLOCK)
        or np.any(offsets % BLOCK)
        or np.any(offsets + sizes > shard.bytes)
    ):
        raise ValueError("it has empty members, or members outside the shard")
    order = np.argsort(offsets, axis=None, kind="stable")
    starts = offsets.ravel()[order]
    data_ends = starts + -(-sizes.ravel()[order] // BLOCK) * BLOCK
    gaps = starts[1:] - data_ends[:-1] - BLOCK
    if np.any(gaps < 0):
        raise ValueError("its members overlap")
    is_suspect = np.zeros(len(order), dtype=bool)
    is_suspect[1:] = gaps != 0
    is_suspect[[0, -1]] = True
    rows, components = np.divmod(order[is_suspect], len(manifest.components))
    return list(zip(rows.tolist(), components.tolist(), strict=True))


def _fixed_size(manifest: Manifest, component: str) -> int | None:
    """Return the size in bytes of every member of a component, or None if it varies."""
    if component in SCALARS:
        return SCALAR_BYTES
    if manifest.encoding == "raw" and manifest.image_size is not None:
        return manifest.image_size[0] * manifest.image_size[1] * 3
    return None


def _is_header_of(header: bytes, name: bytes, size: int) -> bool:
    """Return whether a tar header has this name and size in bytes."""
    return header[_NAME_FIELD].rstrip(b"\0") == name and _has_size(header[_SIZE_FIELD], size)


def _has_size(field: bytes, size: int) -> bool:
    """Return whether the size field of a tar header states this size in bytes."""
    try:
        return int(field.rstrip(b" \0"), 8) == size
    except ValueError:
        return False
