"""Verify a shard set: manifest, indexes, sizes, checksums, names and order of members, images, and tables."""

from __future__ import annotations

import hashlib
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdps.errors import ShardError
from fastdps.packing.fragment import Member
from fastdps.packing.ledger import is_ledger
from fastdps.packing.target import target_at
from fastdps.packing.verify_tables import check_tables
from fastdps.runtime.console import track
from fastdps.shards.format import (
    MANIFEST,
    SCALARS,
    SHARD_NAME,
    Manifest,
    Shard,
    read_manifest,
    sample_key,
)
from fastdps.shards.images import UnreadableItemError, decode
from fastdps.shards.index import INDEX_HEADER
from fastdps.shards.jpeg_segments import has_stray_bytes
from fastdps.shards.storage import Location, Store, read_text
from fastdps.shards.tar_headers import read_members

SCALAR_BYTES = 4


@dataclass(frozen=True)
class Problem:
    """One defect of a shard set.

    Attributes:
        file: The file, or the set as a whole.
        what: The defect, as a phrase that follows the file's name.
        is_note: True for an observation about the content, which is not a defect.
    """

    file: Location
    what: str
    is_note: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def find_sets(location: Location) -> list[Location]:
    """Return the shard sets at or below a location, including unfinished ones and those without a manifest.

    A web server lists no files; the location itself is taken to be a set.

    Raises:
        ShardError: There is no shard set.
    """
    found: list[Location] = []
    if isinstance(location, Store):
        found += [location] if not location.is_listed else _find_in(location)
    elif not location.is_dir():
        raise ShardError(
            f"{location} is not a directory. Give the directory of a shard set, or one that contains shard sets."
        )
    else:
        marks = (MANIFEST, "progress*.jsonl", "shard-*.tar")
        found += sorted({path.parent for mark in marks for path in location.rglob(mark)})
    if not found:
        raise ShardError(f"{location} contains no shard set: neither it nor a directory below it has a {MANIFEST}.")
    return found


def _find_in(store: Store) -> list[Store]:
    is_set = any(name == MANIFEST or is_ledger(name) or SHARD_NAME.fullmatch(name) for name in store.files())
    return [store] * is_set + [found for below in store.directories() for found in _find_in(below)]


def check_set(location: Location, *, quick: bool = False, progress: bool = False) -> Iterator[Problem]:
    """Verify one shard set. Shards at a URL are downloaded one after another.

    Args:
        location: The directory or URL of the set.
        quick: Check the manifest, sizes, indexes and tables only, without reading shards.
        progress: Show the number of checked shards on the console.

    Yields:
        Each problem, as soon as it is found, and notes about judgements.

    Raises:
        ShardError: The storage does not answer.
    """
    target = target_at(location)
    sizes = None if isinstance(location, Store) and not location.is_listed else target.sizes()
    if sizes is not None and MANIFEST not in sizes and any(map(is_ledger, sizes)):
        yield Problem(location, "is not finished: run the same `fastdps pack` command again to resume")
        return
    try:
        manifest = read_manifest(location)
    except ShardError as error:
        yield Problem(location / MANIFEST, str(error))
        return
    known = {name for shard in manifest.shards for name in (shard.name, shard.index_name)} | set(manifest.tables)
    for name in sorted(sizes or ()):
        if name.endswith((".tar", ".idx", ".parquet")) and name not in known:
            yield Problem(location / name, "is not in the manifest")
    last_id = -1
    ids: list[int] = []
    for shard in track(
        manifest.shards, total=len(manifest.shards), what=f"checking {location}", enabled=progress, unit="shards"
    ):
        tar, index = location / shard.name, location / shard.index_name
        size = shard.bytes if sizes is None else sizes.get(shard.name)
        if size is None:
            yield Problem(tar, "is missing")
            continue
        if size != shard.bytes:
            yield Problem(tar, f"has {size} bytes, and the manifest says {shard.bytes}")
        try:
            samples = parse_index(read_text(location, shard.index_name))
            found = _check_samples(samples, shard, manifest, last_id)
            last_id = found[-1] if found else last_id
            ids += found
        except (OSError, ShardError, ValueError) as error:
            yield Problem(index, str(error))
            continue
        if not quick:
            with target.local(shard.name, size) as path:
                yield from (Problem(tar, what) for what in _check_content(path, samples, shard, manifest))
    all_ids = np.array(ids, np.int64) if len(ids) == manifest.samples else None
    for file, what, is_note in check_tables(location, manifest, all_ids):
        yield Problem(location / file, what, is_note)


def parse_index(text: str) -> list[list[Member]]:
    """Parse a DALI index v1.2.

    Args:
        text: The content of the file.

    Returns:
        The members of each sample.

    Raises:
        ValueError: The text is malformed; the message names the line.
    """
    header, *lines = text.splitlines() or [""]
    if header != f"{INDEX_HEADER} {len(lines)}":
        raise ValueError(f"begins with {header!r} and has {len(lines)} samples")
    samples = []
    for number, line in enumerate(lines, start=2):
        fields = line.split(" ")
        if len(fields) % 4:
            raise ValueError(f"line {number} is not a list of extension, offset, size and name")
        quads = [fields[at : at + 4] for at in range(0, len(fields), 4)]
        try:
            samples.append([Member(ext, int(offset), int(size), name) for ext, offset, size, name in quads])
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return samples


def _check_samples(samples: list[list[Member]], shard: Shard, manifest: Manifest, last_id: int) -> list[int]:
    """Check an index against the manifest and for consistency. Return the sample ids. Raises `ValueError`."""
    if len(samples) != shard.samples:
        raise ValueError(f"has {len(samples)} samples, and the manifest says {shard.samples}")
    end, ids = 0, []
    allowed = [extensions.split(";") for extensions in manifest.components.values()]
    for members in samples:
        key = members[0].name.split(".")[0]
        if not key.isdigit() or sample_key(int(key)) != key:
            raise ValueError(f"names a member {members[0].name!r}, which does not begin with a sample id")
        if int(key) <= last_id:
            raise ValueError(f"sample {key} does not come after sample {last_id}")
        last_id = int(key)
        ids.append(last_id)
        if len(members) != len(allowed) or any(m.extension not in a for m, a in zip(members, allowed, strict=False)):
            raise ValueError(f"sample {key} has {[m.extension for m in members]}, expected {allowed}")
        if wrong := [m.name for m in members if m.name != f"{key}.{m.extension}"]:
            raise ValueError(f"sample {key} lists the member {wrong[0]!r}")
        for member in members:
            if member.offset < end + tarfile.BLOCKSIZE or member.offset % tarfile.BLOCKSIZE or member.size < 0:
                raise ValueError(f"places {member.name} at {member.offset}, which is not a valid offset")
            end = member.offset + member.size
        if end > shard.bytes:
            raise ValueError(f"places {members[-1].name} beyond the end of the shard")
    return ids


def _check_content(tar: Path, samples: list[list[Member]], shard: Shard, manifest: Manifest) -> Iterator[str]:
    """Check a shard against its checksum and its index, and decode every member. Yield each defect."""
    with tar.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            yield "does not have the checksum of the manifest: its bytes have changed"
    expected = [member for members in samples for member in members]
    try:
        with tar.open("rb") as file:
            present = [(info.name, info.offset_data, info.size) for info in read_members(file)]
    except (OSError, tarfile.TarError) as error:
        yield f"is not a valid tar file: {error}"
        return
    if present != [(m.name, m.offset, m.size) for m in expected]:
        yield "does not have the members that its index lists"
        return
    with tar.open("rb") as file:
        for member in expected:
            file.seek(member.offset)
            if reason := _find_fault(member, file.read(member.size), manifest):
                yield f"member {member.name} {reason}"


def _find_fault(member: Member, content: bytes, manifest: Manifest) -> str | None:
    """Return the defect of a member's content, or None."""
    size = manifest.image_size
    if member.extension.removesuffix(".f32") in SCALARS:
        if len(content) != SCALAR_BYTES:
            return f"has {len(content)} bytes, not {SCALAR_BYTES}"
        share = struct.unpack("<f", content)[0]
        return None if 0 <= share <= 1 else f"is {share}, not a share of votes in [0, 1]"
    if manifest.encoding == "raw":
        expected = 3 * size[0] * size[1] if size else 0
        return None if len(content) == expected else f"has {len(content)} bytes, not {expected}"
    try:
        pixels = decode(content)
    except UnreadableItemError as error:
        return str(error)
    if has_stray_bytes(content):
        return "has bytes between the segments of its JPEG header, at which DALI can crash; pack it again"
    if size and pixels.shape[:2] != size:
        return f"is {pixels.shape[1]} x {pixels.shape[0]} pixels, not {size[1]} x {size[0]}"
    return None
