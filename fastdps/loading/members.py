"""The members of a shard: its index read and checked, single members read and checked against it.

What is guaranteed of a shard before its first sample is used: the tar has the size that the manifest states; the
index has the samples, components and sizes that the manifest states, in rising order of sample ids, and they lie
apart from each other within the tar; tar headers are where the index says for the first and last member and for
each that does not directly follow the one before. So an index of another shard, a cut or a shifted tar are found.
Bytes that changed inside a member are found where they do not decode; only `tools/check_shards.py`, which
compares checksums, finds them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastdps.errors import SampleError, ShardError
from fastdps.shards import INDEX_HEADER, SCALARS, Manifest, Shard

BLOCK = 512  # bytes; tar headers and the starts of members are multiples of it
SCALAR_BYTES = 4
_FIELDS = 4  # of a component in a line of the index: extension, offset, size, name


@dataclass(frozen=True)
class ShardIndex:
    """The index of one shard of n samples with C components, in packed order.

    `lines` (n) are the index's own lines, for writing an index of some of the samples; `ids` (n,) int64 are sample
    ids; `offsets` and `sizes` (n, C) int64 are the bytes where the members' data starts in `tar` and how many.
    """

    tar: Path
    lines: list[bytes]
    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def member_name(self, row: int, component: int) -> str:
        """The name in the tar of one component of the sample in `row`."""
        return self.lines[row].split()[_FIELDS * component + _FIELDS - 1].decode()


def open_index(directory: Path, manifest: Manifest, shard: Shard) -> ShardIndex:
    """Read the index of a shard and check that manifest, index and tar fit each other.

    Raises `ShardError` that names the shard, what does not fit, and the remedy.
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
    """The bytes of one member (none with `header_only`), after a check of its tar header.

    `tar` is the unbuffered file `index.tar`. Raises `SampleError` where the tar's header is not that of the member
    the index names, or where the tar ends or fails within it.
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
        raise sample_error(index, row, component, f"has no tar header of its own before byte {offset}")
    return memoryview(block)[BLOCK:]


def shard_error(directory: Path, file: str, what: str) -> ShardError:
    """The error for one file of a shard set, with the remedy."""
    return ShardError(
        f"{directory / file} {what}. Run `tools/check_shards.py {directory}`, then restore or pack it again."
    )


def sample_error(index: ShardIndex, row: int, component: int, what: str) -> SampleError:
    """The error for one member, with shard, sample and remedy."""
    return SampleError(
        f"sample {int(index.ids[row])} ({index.member_name(row, component)} in {index.tar}) {what}. "
        f"Run `tools/check_shards.py {index.tar.parent}`, then restore the shard or pack the set again."
    )


def _parse(blob: bytes, tar: Path, manifest: Manifest, shard: Shard) -> ShardIndex:
    """The index from its text; `ValueError` on what is not one of `shard.samples` samples of this manifest."""
    tokens = blob.split()
    if tokens[:1] != [INDEX_HEADER.encode()]:
        raise ValueError(f"it does not begin with {INDEX_HEADER}")
    n, width = shard.samples, _FIELDS * len(manifest.components)
    lines = blob.splitlines()[1:]
    if tokens[1:2] != [str(n).encode()] or len(lines) != n:
        raise ValueError(f"it has {len(lines)} lines and states {tokens[1:2]} where the manifest states {n}")
    if len(tokens) != 2 + n * width:
        raise ValueError(f"its lines do not have {len(manifest.components)} components of {_FIELDS} fields each")
    columns = [tokens[2 + field :: width] for field in range(width)]
    keys = [name.partition(b".")[0] for name in columns[_FIELDS - 1]]
    for number, (component, extensions) in enumerate(manifest.components.items()):
        extension, _, _, names = columns[_FIELDS * number : _FIELDS * (number + 1)]
        if unknown := set(extension) - set(extensions.encode().split(b";")):
            raise ValueError(f"it has extensions {sorted(unknown)} for {component}, which are {extensions}")
        if any(n != k + b"." + e for n, k, e in zip(names, keys, extension, strict=True)):
            raise ValueError(f"the names of {component} are not those of their samples")
    ids = _integers(keys)
    if np.any(np.diff(ids) <= 0):
        raise ValueError("its sample ids do not rise")
    offsets = np.stack([_integers(column) for column in columns[1::_FIELDS]], axis=1)
    sizes = np.stack([_integers(column) for column in columns[2::_FIELDS]], axis=1)
    return ShardIndex(tar, lines, ids, offsets, sizes)


def _integers(texts: Sequence[bytes]) -> NDArray[np.int64]:
    return np.array(texts, dtype=bytes).astype(np.int64)


def _check_places(index: ShardIndex, manifest: Manifest, shard: Shard) -> list[tuple[int, int]]:
    """Check sizes and offsets; the (row, component) whose headers are to be looked at in the tar.

    These are the first and the last member and those that do not directly follow the one before. Raises
    `ValueError`.
    """
    offsets, sizes = index.offsets, index.sizes
    for number, component in enumerate(manifest.components):
        wanted = _fixed_size(manifest, component)
        if wanted is not None and np.any(sizes[:, number] != wanted):
            raise ValueError(f"{component} is to have {wanted} bytes a sample")
    if (
        np.any(sizes <= 0)
        or np.any(offsets < BLOCK)
        or np.any(offsets % BLOCK)
        or np.any(offsets + sizes > shard.bytes)
    ):
        raise ValueError("it has members of no size or outside the shard")
    order = np.argsort(offsets, axis=None, kind="stable")
    starts = offsets.ravel()[order]
    data_ends = starts + -(-sizes.ravel()[order] // BLOCK) * BLOCK
    gaps = starts[1:] - data_ends[:-1] - BLOCK
    if np.any(gaps < 0):
        raise ValueError("its members overlap")
    looked_at = np.zeros(len(order), dtype=bool)
    looked_at[1:] = gaps != 0
    looked_at[[0, -1]] = True
    rows, components = np.divmod(order[looked_at], len(manifest.components))
    return list(zip(rows.tolist(), components.tolist(), strict=True))


def _fixed_size(manifest: Manifest, component: str) -> int | None:
    """The bytes that every member of a component has, or None where they vary."""
    if component in SCALARS:
        return SCALAR_BYTES
    if manifest.encoding == "raw" and manifest.image_size is not None:
        return manifest.image_size[0] * manifest.image_size[1] * 3
    return None


def _is_header_of(header: bytes, name: bytes, size: int) -> bool:
    """Whether a tar header is that of a file of this name and size (in bytes)."""
    if header[:100].rstrip(b"\0") != name:
        return False
    try:
        return int(header[124:136].rstrip(b" \0"), 8) == size
    except ValueError:
        return False
