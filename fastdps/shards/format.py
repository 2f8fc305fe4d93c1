"""The files of a shard set: names and manifest. Imports no torch, so that packing starts fast.

    DIR/shard-000000.tar    WebDataset: members KEY.COMPONENT, KEY = the sample id in nine digits
    DIR/shard-000000.idx    DALI index v1.2: one line per sample, "EXT OFFSET SIZE NAME" for each component
    DIR/samples.parquet     the name of each sample in its source, see `tables.py`
    DIR/judgements.parquet  of judgement sets: what people said about the images, see `judgements.py`
    DIR/manifest.json       the content of the set, and the size and sha256 of every shard and table

A sample id is the position of the sample in the (shuffled) packing order. Ids are unique in a set and ascend from shard
to shard. The id of a rejected source file is missing.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from operator import ge, itemgetter
from typing import Any, Literal, get_args

from fastdps.errors import FastDPSError, ShardError
from fastdps.runtime.garbage_collection import collection_paused
from fastdps.shards.storage import Location, locate, read_text
from fastdps.shards.tar_headers import BLOCK

#: The version that is written. Version 1, which has no tables, is read as well.
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
#: The tables of a set: the names of its samples, and the judgements of a judgement set.
SAMPLES, JUDGEMENTS = "samples.parquet", "judgements.parquet"
SHARD_NAME = re.compile(r"shard-[0-9]{6,18}\.tar")
#: Limits of what a manifest may state, which bound the memory of its reader: 80 MB for the order of a shard's samples,
#: and the limit that Pillow has for an image.
MAX_SHARD_SAMPLES = 10_000_000
MAX_PIXELS = 89_478_485
MAX_SHARD_BYTES = 1 << 50
MAX_TABLE_ROWS = 1 << 30
MAX_TABLE_BYTES = 1 << 34
_HEX = re.compile("[0-9a-f]*")
_shown = reprlib.Repr()  # values in messages, shortened
_shown.maxstring = _shown.maxlong = _shown.maxother = 80

Kind = Literal["images", "triplets", "pairs", "judgements"]
Encoding = Literal["raw", "jpeg", "png", "keep"]

#: The components of a sample, by kind of set.
COMPONENTS: dict[Kind, tuple[str, ...]] = {
    "images": ("image",),
    "triplets": ("ref", "p0", "p1", "judge"),
    "pairs": ("p0", "p1", "same"),
    "judgements": ("image",),
}
#: Components that are a little-endian float32 (a share of votes in [0, 1]) instead of an image.
SCALARS = frozenset({"judge", "same"})
#: Extensions of image members, by encoding. `keep` stores JPEGs unchanged and converts the rest to PNG.
IMAGE_EXTENSIONS: dict[Encoding, str] = {"raw": "bin", "jpeg": "jpg", "png": "png", "keep": "jpg;png"}


def component_extensions(kind: Kind, encoding: Encoding) -> dict[str, str]:
    """Return the extension of each component's member after the sample id, alternatives joined by ";".

    Members of sets with one image a sample have the image extension (`bin`), others include the component's name
    (`ref.bin`, `judge.f32`).

    Example:
        >>> component_extensions("pairs", "raw")
        {'p0': 'p0.bin', 'p1': 'p1.bin', 'same': 'same.f32'}
    """
    image = IMAGE_EXTENSIONS[encoding]
    if COMPONENTS[kind] == ("image",):
        return {"image": image}
    return {
        name: f"{name}.f32" if name in SCALARS else ";".join(f"{name}.{ext}" for ext in image.split(";"))
        for name in COMPONENTS[kind]
    }


def sample_key(sample_id: int) -> str:
    """Return the WebDataset key of a sample: its id in nine digits."""
    return f"{sample_id:09d}"


@dataclass(frozen=True)
class Shard:
    """A tar of a shard set.

    Attributes:
        name: The file name.
        samples: The number of samples.
        bytes: The size of the tar.
        sha256: The checksum of the tar.
    """

    name: str
    samples: int
    bytes: int
    sha256: str

    @property
    def index_name(self) -> str:
        """The file name of the shard's DALI index."""
        return self.name.removesuffix(".tar") + ".idx"


@dataclass(frozen=True)
class Table:
    """A table of a shard set, a Parquet file.

    Attributes:
        rows: The number of rows.
        bytes: The size of the file.
        sha256: The checksum of the file.
    """

    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        kind: What a sample is; see `COMPONENTS`.
        components: The extension of each component's members, in the order of the index; see `component_extensions`.
        encoding: How images are stored.
        image_size: (height, width) in pixels, or None if images keep their own sizes.
        samples: The number of samples of the set.
        source: The source of the samples and the options of packing.
        shards: The shards.
        format_version: The version of the format.
        tables: The tables by file name: `SAMPLES`, and `JUDGEMENTS` for a judgement set. Empty in version 1.
    """

    kind: Kind
    components: dict[str, str]
    encoding: Encoding
    image_size: tuple[int, int] | None
    samples: int
    source: dict[str, Any]
    shards: tuple[Shard, ...]
    format_version: int = FORMAT_VERSION
    tables: Mapping[str, Table] = field(default_factory=dict)

    def content_sha256(self) -> str:
        """Return a hash of the shards and judgements, which does not depend on the location of the set."""
        hashes = [shard.sha256 for shard in self.shards]
        hashes += [table.sha256 for name, table in self.tables.items() if name == JUDGEMENTS]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the text of `manifest.json`, which is deterministic."""
        content = {"format_version": self.format_version, **asdict(self)}
        if self.format_version == 1:
            del content["tables"]
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_manifest(location: str | Location) -> Manifest:
    """Read and check `manifest.json` of a shard set.

    Shard names are checked to be plain file names, so that none refers outside the set or runs a command.

    Args:
        location: The directory or URL of the set.

    Raises:
        ShardError: There is no manifest, it is invalid, or a newer fastdps wrote it.
        ConfigError: The URL is not supported.

    Example:
        >>> read_manifest("shards/imagenet/train").samples  # doctest: +SKIP
        1281167
    """
    location = locate(location)
    path = location / MANIFEST
    try:
        text = read_text(location, MANIFEST)
        with collection_paused():
            data = json.loads(text)
    except FileNotFoundError:
        raise ShardError(
            f"{location} is not a shard set: it has no {MANIFEST}. Pack one with `fastdps pack`, "
            "or name its train or val directory."
        ) from None
    except NotADirectoryError:
        raise ShardError(
            f"{location} is a file, not a shard set. Pack a file of judgements with `fastdps pack judgements --source "
            f"{location} --out DIR`, and name DIR/train."
        ) from None
    except FastDPSError:  # of the storage, which names the remedy
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ShardError(f"{path} cannot be read as JSON: {error}. Restore it or pack the set again.") from error
    try:
        with collection_paused():
            return _manifest_of(data)
    except ValueError as error:
        raise ShardError(f"{path} is not a manifest of this format: {error}. Restore it or pack again.") from error


def _manifest_of(data: Any) -> Manifest:
    """Return the manifest from its parsed JSON. Raises `ValueError`, which names the key, if it is invalid."""
    if not isinstance(data, dict):
        raise ValueError(f"expected an object, found {_shown.repr(data)}")
    version = data.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"format version {_shown.repr(version)}, but this fastdps reads 1 to {FORMAT_VERSION}; update fastdps"
        )
    _check_keys(data, [f.name for f in fields(Manifest) if version > 1 or f.name != "tables"], "")
    kind, encoding, components = data["kind"], data["encoding"], data["components"]
    if kind not in get_args(Kind) or (kind == "judgements" and version == 1):
        raise ValueError(f"unknown kind {_shown.repr(kind)}")
    if encoding not in get_args(Encoding):
        raise ValueError(f"unknown encoding {_shown.repr(encoding)}")
    expected = component_extensions(kind, encoding)
    if not isinstance(components, dict) or list(components.items()) != list(expected.items()):
        raise ValueError(f"components {_shown.repr(components)} do not belong to {kind} as {encoding}")
    if not isinstance(data["source"], dict):
        raise ValueError(f"source is {_shown.repr(data['source'])}, not an object")
    size = _image_size_of(data["image_size"])
    pixels = size[0] * size[1] if size and encoding == "raw" else 0
    shards = _shards_of(data["shards"], sum(_tar_bytes(name, 3 * pixels) for name in components))
    if (total := sum(shard.samples for shard in shards)) != data["samples"] or type(data["samples"]) is not int:
        raise ValueError(f"samples is {_shown.repr(data['samples'])}, but the shards add up to {total}")
    tables = _tables_of(data.get("tables", {}), kind, data["samples"])
    return Manifest(**{**data, "image_size": size, "shards": shards, "tables": tables})


def _image_size_of(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if type(size) is not list or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ValueError(f"image_size is {_shown.repr(size)}, not null or [height, width] in pixels")
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"image_size is {_shown.repr(size)}, and an image may have at most {MAX_PIXELS:,} pixels")
    return size[0], size[1]


def _tar_bytes(component: str, image_bytes: int) -> int:
    """Return the least bytes that a component of a sample takes in a tar: its header and its padded content."""
    content = 4 if component in SCALARS else max(1, image_bytes)
    return BLOCK + -(-content // BLOCK) * BLOCK


def _shards_of(entries: Any, sample_bytes: int) -> tuple[Shard, ...]:
    """Return the shards of a manifest. There may be 100,000 of them, so each check is vectorised over all.

    Args:
        entries: The value of the key `shards`.
        sample_bytes: The least bytes that a sample takes in a tar.
    """
    if type(entries) is not list or not set(map(type, entries)) <= {dict}:
        raise ValueError(f"shards is {_shown.repr(entries)}, not a list of objects")
    keys = [f.name for f in fields(Shard)]
    try:
        columns = tuple(zip(*map(itemgetter(*keys), entries), strict=True))
    except KeyError:
        columns = ()
    if len(columns) < len(keys) or any(map(len(keys).__lt__, map(len, entries))):
        for number, entry in enumerate(entries):
            _check_keys(entry, keys, f" of shard {number}")
        return ()  # there are no entries
    names, samples, sizes, hashes = columns
    for key, values, kind in zip(keys, columns, (str, int, int, str), strict=True):
        if set(map(type, values)) != {kind}:  # a bool is not an int
            wrong = next(value for value in values if type(value) is not kind)
            raise ValueError(f"{key} of a shard is {_shown.repr(wrong)}, not of the type {kind.__name__}")
    if not all(map(SHARD_NAME.fullmatch, names)):
        wrong = next(name for name in names if not SHARD_NAME.fullmatch(name))
        raise ValueError(f"shard name {_shown.repr(wrong)} is not of the form shard-NNNNNN.tar")
    if len(set(names)) < len(names):
        raise ValueError(f"shard name {Counter(names).most_common(1)[0][0]} is listed more than once")
    if set(map(len, hashes)) != {64} or not _HEX.fullmatch("".join(hashes)):
        number = next(n for n, text in enumerate(hashes) if len(text) != 64 or not _HEX.fullmatch(text))
        raise ValueError(f"sha256 of {names[number]} is {_shown.repr(hashes[number])}, not 64 hexadecimal digits")
    if min(samples) < 0 or max(samples) > MAX_SHARD_SAMPLES:
        number = next(n for n, count in enumerate(samples) if not 0 <= count <= MAX_SHARD_SAMPLES)
        raise ValueError(
            f"samples of {names[number]} is {_shown.repr(samples[number])}, not within 0 and {MAX_SHARD_SAMPLES:,}"
        )
    if max(sizes) > MAX_SHARD_BYTES or not all(map(ge, sizes, map(sample_bytes.__mul__, samples))):
        number = next(n for n, size in enumerate(sizes) if not samples[n] * sample_bytes <= size <= MAX_SHARD_BYTES)
        least, given = samples[number] * sample_bytes, _shown.repr(sizes[number])
        raise ValueError(
            f"bytes of {names[number]} is {given}, and its {samples[number]} samples take at least {least:,} "
            f"(at most {MAX_SHARD_BYTES:,})"
        )
    return tuple(map(Shard, *columns))


def _tables_of(entries: Any, kind: Kind, samples: int) -> dict[str, Table]:
    """Return the tables of a manifest."""
    if type(entries) is not dict:
        raise ValueError(f"tables is {_shown.repr(entries)}, not an object")
    known = (SAMPLES, JUDGEMENTS) if kind == "judgements" else (SAMPLES,)
    if unknown := sorted(set(entries) - set(known)):
        raise ValueError(f"tables has {_shown.repr(unknown)}, and a set of {kind} may have {', '.join(known)}")
    if kind == "judgements" and (missing := [name for name in known if name not in entries]):
        raise ValueError(f"tables lacks {', '.join(missing)}")
    keys = [f.name for f in fields(Table)]
    for name, entry in entries.items():
        if type(entry) is not dict:
            raise ValueError(f"{name} of tables is {_shown.repr(entry)}, not an object")
        _check_keys(entry, keys, f" of {name}")
        for key, most in (("rows", MAX_TABLE_ROWS), ("bytes", MAX_TABLE_BYTES)):
            if type(entry[key]) is not int or not 0 <= entry[key] <= most:
                raise ValueError(f"{key} of {name} is {_shown.repr(entry[key])}, not within 0 and {most:,}")
        digest = entry["sha256"]
        if type(digest) is not str or len(digest) != 64 or not _HEX.fullmatch(digest):
            raise ValueError(f"sha256 of {name} is {_shown.repr(digest)}, not 64 hexadecimal digits")
    if SAMPLES in entries and entries[SAMPLES]["rows"] != samples:
        raise ValueError(f"rows of {SAMPLES} is {entries[SAMPLES]['rows']}, and the set has {samples} samples")
    return {name: Table(**entries[name]) for name in known if name in entries}


def _check_keys(found: dict[str, Any], wanted: Sequence[str], where: str) -> None:
    if unknown := sorted(set(found) - set(wanted)):
        raise ValueError(f"unknown keys {_shown.repr(unknown)}{where}")
    if missing := [key for key in wanted if key not in found]:
        raise ValueError(f"keys {missing}{where} are missing")
