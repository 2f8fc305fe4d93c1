"""Open a shard set as batches: one contract, two implementations, DALI and a portable one.

    manifest --> order of the epoch --> part of this process --> segments --> reader --> batches on the device
                 (order.py)                                     (segments.py)  (dali.py or portable.py)

Both readers give the same samples in the same order. Images that are not resized have the same bits from both, except
for JPEGs on a GPU. Resized images differ in rounding, and by more in the outermost pixels: Pillow ignores what lies
outside the image, DALI repeats the border. The portable reader decodes JPEGs at a scale close to the wanted size, as
packing does; DALI decodes them in full. A value then differs by 1.1 of 255 levels in the mean.

"auto" takes the faster reader. That is DALI on a GPU, where it decodes, and on a CPU for PNGs and for JPEGs that have
the wanted size already. On a CPU the portable reader copies raw images faster, and decodes large JPEGs faster; with
many cores DALI's threads overtake it. See `is_faster_than_dali` in portable.py, and docs/design.md for figures.
"""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch

from fastdps.errors import ConfigError
from fastdps.loading.checks import (
    check_files,
    check_manifest,
    check_range,
    find_components,
    find_device,
    find_image_size,
    local_processes,
    own_cores,
)
from fastdps.loading.mixed import MixedLoader, WeightedSets, pairs_of
from fastdps.loading.options import LoaderName as LoaderName
from fastdps.loading.options import LoadOptions
from fastdps.loading.portable import PortableReader, is_faster_than_dali
from fastdps.loading.segments import batch_bytes
from fastdps.loading.shard_loader import ShardLoader as ShardLoader
from fastdps.loading.spec import Reader, ReadSpec
from fastdps.shards.cache import Cache, StagedSet, make_cache
from fastdps.shards.format import Manifest, read_manifest
from fastdps.shards.storage import Location, Store, locate

_log = logging.getLogger(__name__)


@overload
def open_shards(
    location: str | Location,
    *,
    batch_size: int,
    size: int | tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    seed: int | None = 0,
    rank: int = 0,
    world_size: int = 1,
    options: LoadOptions | None = None,
) -> ShardLoader: ...


@overload
def open_shards(
    location: WeightedSets,
    *,
    batch_size: int,
    size: int | tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    seed: int | None = 0,
    rank: int = 0,
    world_size: int = 1,
    options: LoadOptions | None = None,
) -> MixedLoader: ...


def open_shards(
    location: str | Location | WeightedSets,
    *,
    batch_size: int,
    size: int | tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    seed: int | None = 0,
    rank: int = 0,
    world_size: int = 1,
    options: LoadOptions | None = None,
) -> ShardLoader | MixedLoader:
    """Open a shard set, or a mixture of several, for process `rank` of `world_size`.

    Args:
        location: Directory or URL of the set, such as "shards/sample/train" or "s3://bucket/set/train"; or several with
            their weights, as {"shards/a/train": 0.7, "shards/b/train": 0.3} or as pairs.
        batch_size: Samples per batch of this process, the same on all processes.
        size: Size in pixels to resize the images to, (height, width) or an int for a square; bilinear with
            antialiasing. Required where the set keeps images in their own sizes.
        device: Device of the batches.
        seed: Seed of the order, which is shuffled again in each epoch; None reads in packed order.
        rank: Index of this process.
        world_size: Number of processes that read the set together.
        options: How to read, see `LoadOptions`.

    Returns:
        The set as batches, see `ShardLoader`; several sets as a `MixedLoader`.

    Raises:
        ShardError: The set has no valid manifest or no samples, or lacks a shard or an index.
        ConfigError: An argument is out of range, or asks for what the set or the machine does not have; or sets do not
            fit together.

    Example:
        >>> loader = open_shards("shards/sample/train", batch_size=64)  # doctest: +SKIP
        >>> for batch in loader:  # doctest: +SKIP
        ...     batch.images, batch.ids
    """
    check_range("batch_size", batch_size, 1)
    check_range("world_size", world_size, 1)
    check_range("rank", rank, 0, world_size)
    check_range("seed", seed or 0, 0, 2**64)
    options = options or LoadOptions()
    check_range("num_threads", 1 if options.num_threads is None else options.num_threads, 1)
    if isinstance(location, str | Path | Store):
        spec = _Opening(batch_size, size, device, seed, options)
        return _open(location, spec, rank, world_size)
    pairs = pairs_of(location)
    total = sum(weight for _, weight in pairs)
    loaders = [
        _open(one, _Opening(math.ceil(batch_size * weight / total), size, device, seed, options))
        for one, weight in pairs
    ]
    weights = [weight for _, weight in pairs]
    return MixedLoader(loaders, weights, batch_size=batch_size, rank=rank, world_size=world_size)


@dataclass(frozen=True)
class _Opening:
    """The arguments of `open_shards` that are the same for each set."""

    batch_size: int
    size: int | tuple[int, int] | None
    device: str | torch.device
    seed: int | None
    options: LoadOptions


def _open(location: str | Location, opening: _Opening, rank: int = 0, world_size: int = 1) -> ShardLoader:
    """Open one shard set."""
    location, options, batch_size = locate(location), opening.options, opening.batch_size
    manifest = read_manifest(location)
    check_manifest(location, manifest)
    staged = _staged(location, manifest, options.cache, batch_size) if isinstance(location, Store) else None
    if isinstance(location, Path):
        check_files(location, manifest)
    spec = ReadSpec(
        location=location,
        directory=staged.directory if staged else Path(str(location)),
        components=find_components(manifest, options.components),
        stored_size=manifest.image_size,
        is_raw=manifest.encoding == "raw",
        size=find_image_size(location, manifest, opening.size),
        batch_size=batch_size,
        device=find_device(opening.device),
        num_threads=options.num_threads or own_cores(),
    )
    reader = _reader(options.loader, spec)
    ranks = {"rank": rank, "world_size": world_size}
    return ShardLoader(manifest, spec, reader, staged, seed=opening.seed, divide=options.divide, **ranks)


def _staged(store: Store, manifest: Manifest, cache: Cache | None, batch_size: int) -> StagedSet:
    """Return the remote set as one local process reads it. Raises `ConfigError` if the cache is too small."""
    cache, processes = cache or make_cache(), local_processes()
    if cache.bytes // processes < (least := batch_bytes(manifest, batch_size)):
        raise ConfigError(
            f"the shard cache {cache.directory} is limited to {cache.bytes:,} bytes, and {store} needs at least "
            f"{least * processes:,}: the shards of a batch of {batch_size} for each process on this machine "
            f"({processes}). Give a larger --cache-size, or a --cache-dir with more free space."
        )
    return StagedSet(store, manifest, cache, processes=processes)


def _reader(loader: LoaderName, spec: ReadSpec) -> Reader:
    """Return the reader by name; "auto" is the faster one that can be imported and supports the device."""
    if loader not in ("auto", "dali", "portable"):
        raise ConfigError(f"loader is {loader!r}; it must be auto, dali or portable")
    supports_device = spec.device.type in ("cpu", "cuda")
    if loader == "dali" and not supports_device:
        raise ConfigError(f"DALI does not load to {spec.device}; use loader='portable'")
    if loader == "dali" or (loader == "auto" and supports_device and not is_faster_than_dali(spec)):
        try:
            from fastdps.loading.dali import DaliReader

            return DaliReader(spec)
        except ImportError as error:
            if loader == "dali":
                raise ConfigError(
                    f"DALI cannot be imported: {error}. Install nvidia-dali-cuda130, or use loader='portable'."
                ) from error
            _warn_portable(str(error))
    return PortableReader(spec)


@functools.cache  # once per process, however many sets are opened
def _warn_portable(why: str) -> None:
    _log.warning("DALI cannot be imported (%s): loading with the portable loader, which is slower", why)
