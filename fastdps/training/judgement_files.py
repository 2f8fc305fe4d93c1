"""Judgements that are not packed: a file is packed into the cache, once for each content of it and its images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fastdps.errors import ConfigError
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.judgements import JudgementFile
from fastdps.runtime.console import print_notice
from fastdps.shards.cache import default_directory
from fastdps.shards.storage import Location, LocationLike, locate

#: Side in pixels of the images of a file that is packed, unless another one is given.
SIZE = 128
SUFFIXES = (".csv", ".jsonl", ".parquet")


def packed_judgements(shards: LocationLike, *, by: str | None = None, size: int | None = None) -> Location:
    """Return the location of a shard set; of a file of judgements, that of its judgement set in the cache.

    Args:
        shards: A shard set, or a .csv, .jsonl or .parquet file.
        by: The column whose value is the judge; "judge" or None for the format's own.
        size: Side of the packed images in pixels; None for 128.

    Returns:
        The directory or URL of the set.

    Raises:
        ConfigError: The path is a file of another kind.
        FastDPSError: The file cannot be packed.
    """
    location = locate(shards)
    if not isinstance(location, Path) or not location.is_file():
        return location
    if location.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"{location} is neither a shard set nor a file of judgements ({', '.join(SUFFIXES)}). Pack it with "
            "`fastdps pack`, and name the directory of the set."
        )
    source = JudgementFile(location, by=by)
    options = PackOptions(size=size or SIZE)
    train = source.splits()["train"]
    images = [(name, *_state(location.parent / name)) for name in train.items()]
    content = {"source": train.describe(), "images": images, "options": options.describe()}
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    out = default_directory() / "judgements" / key
    if not (out / "train" / "manifest.json").exists():
        print_notice(f"packing {location}: {len(images):,} images at {options.size} px into {out}")
    pack(source, out, options)
    return out / "train"


def _state(path: Path) -> tuple[int, int]:
    """Return size and time of the last change of a file, zeros for one that is missing; packing names it."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return 0, 0
    return status.st_size, status.st_mtime_ns
