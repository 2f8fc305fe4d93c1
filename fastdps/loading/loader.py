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
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

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
from fastdps.loading.index_cache import IndexCache
from fastdps.loading.options import LoaderName as LoaderName
from fastdps.loading.options import LoadOptions
from fastdps.loading.order import EpochOrder, cut, global_batch_size, left_after, part_of, steps_per_epoch
from fastdps.loading.portable import PortableReader, is_faster_than_dali
from fastdps.loading.segments import batch_bytes, even_places, segments
from fastdps.loading.spec import Batch, Reader, ReadSpec
from fastdps.loading.staged import StagedEpochs
from fastdps.shards.cache import Cache, StagedSet, make_cache
from fastdps.shards.format import Manifest, read_manifest
from fastdps.shards.storage import Location, Store, locate

_log = logging.getLogger(__name__)


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
) -> ShardLoader:
    """Open a shard set for process `rank` of `world_size`.

    Args:
        location: Directory or URL of the set, such as "shards/sample/train" or "s3://bucket/set/train".
        batch_size: Samples per batch of this process, the same on all processes.
        size: Size in pixels to resize the images to, (height, width) or an int for a square; bilinear with
            antialiasing. Required where the set keeps images in their own sizes.
        device: Device of the batches.
        seed: Seed of the order, which is shuffled again in each epoch; None reads in packed order.
        rank: Index of this process.
        world_size: Number of processes that read the set together.
        options: How to read, see `LoadOptions`.

    Returns:
        The set as batches, see `ShardLoader`.

    Raises:
        ShardError: The set has no valid manifest or no samples, or lacks a shard or an index.
        ConfigError: An argument is out of range, or asks for what the set or the machine does not have.

    Example:
        >>> loader = open_shards("shards/sample/train", batch_size=64)  # doctest: +SKIP
        >>> for batch in loader.epoch(0):  # doctest: +SKIP
        ...     batch.images, batch.ids
    """
    location, options = locate(location), options or LoadOptions()
    manifest = read_manifest(location)
    check_manifest(location, manifest)
    check_range("batch_size", batch_size, 1)
    check_range("world_size", world_size, 1)
    check_range("rank", rank, 0, world_size)
    check_range("seed", seed or 0, 0, 2**64)
    check_range("num_threads", 1 if options.num_threads is None else options.num_threads, 1)
    staged = _staged(location, manifest, options.cache, batch_size) if isinstance(location, Store) else None
    if isinstance(location, Path):
        check_files(location, manifest)
    spec = ReadSpec(
        location=location,
        directory=staged.directory if staged else Path(str(location)),
        components=find_components(manifest, options.components),
        stored_size=manifest.image_size,
        is_raw=manifest.encoding == "raw",
        size=find_image_size(location, manifest, size),
        batch_size=batch_size,
        device=find_device(device),
        num_threads=options.num_threads or own_cores(),
    )
    reader = _reader(options.loader, spec)
    return ShardLoader(manifest, spec, reader, staged, seed=seed, rank=rank, world_size=world_size)


class ShardLoader:
    """A shard set as batches; made by `open_shards`.

    Attributes:
        manifest: The manifest of the set.
        samples: Number of samples in the whole set.
        steps: Number of batches in an epoch, the same on every process.
    """

    def __init__(
        self,
        manifest: Manifest,
        spec: ReadSpec,
        reader: Reader,
        staged: StagedSet | None,
        *,
        seed: int | None,
        rank: int,
        world_size: int,
    ) -> None:
        self.manifest = manifest
        self.samples = manifest.samples
        self.steps = steps_per_epoch(manifest.samples, spec.batch_size, world_size)
        self._spec, self._reader = spec, reader
        self._indexes = IndexCache(spec.directory, manifest)
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._staged: StagedEpochs | None = None
        if staged:
            part = self._own_part([range(manifest.samples)])
            self._staged = StagedEpochs(staged, manifest, self._order, part, batch_size=spec.batch_size)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images in the batches."""
        return self._spec.size

    def left_after(self, step: int, left: Sequence[range] | None = None) -> list[range]:
        """Return the part of an epoch that remains after `step` steps.

        Any number of processes can continue with it, so that a run can resume with another number of them.

        Args:
            step: Number of steps done.
            left: The part of the epoch that remained when these steps began, None for all of it.

        Returns:
            Ranges of positions in the order of the epoch.
        """
        left = [range(self.samples)] if left is None else left
        return left_after(left, step, self._spec.batch_size, self._world_size)

    def steps_for(self, left: Sequence[range]) -> int:
        """Return the number of steps of `epoch(..., left=left)`."""
        return steps_per_epoch(sum(map(len, left)), self._spec.batch_size, self._world_size)

    def epoch(
        self, epoch: int, start_step: int = 0, left: Sequence[range] | None = None, *, then: int | None = None
    ) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch from `start_step` on, `steps - start_step` of them on every process.

        Over all processes each sample comes exactly once. The order depends only on the seed and the epoch, so that a
        start in mid-epoch gives the batches that an uninterrupted epoch gives from there. Where the samples do not
        divide evenly, the last batches are short, or empty with n = 0, so that all processes take the same steps.
        Several epochs may be open at a time. Closing or leaving the generator stops its threads.

        Args:
            epoch: Number of the epoch, from 0.
            start_step: Number of batches to skip.
            left: Read only this part of the epoch, see `left_after`: `steps_for(left) - start_step` batches.
            then: The epoch that comes next, if any. For a remote set, prefetching of its shards begins during this
                epoch and continues until that epoch is opened, or until `close`.

        Raises:
            ConfigError: The epoch or a step is out of range.
            ShardError: While iterating: a shard is missing, truncated, or does not fit its index.
            SampleError: While iterating: a sample cannot be read or decoded.
        """
        check_range("epoch", epoch, 0, 2**64)
        left = [range(self.samples)] if left is None else left
        if any(numbers.step != 1 or numbers.start < 0 or numbers.stop > self.samples for numbers in left):
            raise ConfigError(f"left is {left}; it must be ranges of step 1 with positions below {self.samples}")
        check_range("start_step", start_step, 0, self.steps_for(left) + 1)
        if then is not None:
            check_range("then", then, 0, 2**64)
        return self._batches(epoch, start_step, left, then)

    def close(self) -> None:
        """Release the shards that were prefetched for a next epoch."""
        if self._staged:
            self._staged.close()

    def _batches(
        self, epoch: int, start_step: int, left: Sequence[range], then: int | None
    ) -> Generator[Batch, None, None]:
        spec, manifest = self._spec, self.manifest
        samples = sum(map(len, left))
        part = self._own_part(left)
        own_samples = sum(map(len, part))
        order, start = self._order(epoch), start_step * spec.batch_size
        with ExitStack() as stack:
            staged = None
            if self._staged:
                staged = stack.enter_context(closing(self._staged.begin(epoch, part, start, then)))
            places = (
                staged.places if staged else even_places(own_samples, manifest, start=start, batch_size=spec.batch_size)
            )
            wait = staged.wait if staged else _nothing
            own = segments(
                self._indexes, manifest, order, part, places, batch_size=spec.batch_size, wait_for_shard=wait
            )
            loaded = stack.enter_context(closing(self._reader.read(own)))
            if staged:
                stack.callback(staged.cancel)  # runs first on exit: the reader may be waiting for a shard
            for step in range(start_step, self.steps_for(left)):
                has_samples = step * spec.batch_size < own_samples
                components, ids = next(loaded) if has_samples else spec.empty()
                if staged:
                    staged.release(len(ids))
                global_size = global_batch_size(samples, step, spec.batch_size, self._world_size)
                yield Batch(components, ids, global_size)

    def _order(self, epoch: int) -> EpochOrder:
        sizes = [shard.samples for shard in self.manifest.shards]
        return EpochOrder(sizes, seed=self._seed or 0, epoch=epoch, shuffle=self._seed is not None)

    def _own_part(self, left: Sequence[range]) -> list[range]:
        """Return the share of this process in the remaining part of an epoch."""
        return cut(left, part_of(sum(map(len, left)), self._rank, self._world_size))


def _nothing() -> None:
    """Do nothing: a local shard can be read at once."""


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
