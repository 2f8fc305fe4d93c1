"""Open a shard set as batches: one contract, two implementations, DALI and a portable one.

    manifest --> order of the epoch --> this process's part --> segments --> reader --> batches on the device
                 (order.py)                                     (segments.py)(dali.py or portable.py)

Both readers get the same samples in the same order. Images that are not resized are the same bits from both, but for
JPEGs on a GPU. Resized ones differ in rounding, and by more in the outermost pixels: Pillow leaves out what would lie
outside the image, DALI repeats the border. The portable reader decodes JPEGs at a scale close to the wanted size, as
packing does, DALI in full: a value differs by 1.1 of 255 levels in the mean.

"auto" takes what is faster. That is DALI on a GPU, where it decodes, and on a CPU for PNGs and for JPEGs that have the
wanted size already. On a CPU raw images are copied faster, and large JPEGs decoded faster, by the portable reader; with
many cores DALI's threads overtake it. See `is_faster_than_dali` in portable.py, and docs/design.md for figures.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Literal

import torch

from fastdps.errors import ConfigError, ShardError
from fastdps.loading.index_cache import IndexCache
from fastdps.loading.order import EpochOrder, cut, global_batch_size, left_after, part_of, steps_per_epoch
from fastdps.loading.portable import PortableReader, is_faster_than_dali
from fastdps.loading.segments import batch_bytes, even_places, segments
from fastdps.loading.spec import Batch, Component, Reader, ReadSpec
from fastdps.loading.staged import StagedEpochs
from fastdps.runtime.machine import cores
from fastdps.shards.cache import Cache, StagedSet, make_cache
from fastdps.shards.format import SCALARS, Manifest, read_manifest
from fastdps.shards.storage import Location, Store, locate

LoaderName = Literal["auto", "dali", "portable"]

_log = logging.getLogger(__name__)


def open_shards(
    location: str | Location,
    *,
    batch_size: int,
    device: str | torch.device = "cpu",
    seed: int = 0,
    shuffle: bool = True,
    size: int | tuple[int, int] | None = None,
    rank: int = 0,
    world_size: int = 1,
    loader: LoaderName = "auto",
    num_threads: int | None = None,
    components: Sequence[str] | None = None,
    cache: Cache | None = None,
) -> ShardLoader:
    """Open a shard set, here or by URL, for process `rank` of `world_size`.

    `batch_size` is that of this process, the same on all of them. `size` in pixels, an int for a square or
    (height, width), resizes the images, bilinear with antialiasing; it is needed where the set keeps images in
    their own sizes. `loader` "auto" takes the faster one for these images on this device, see above. `num_threads`
    decode: by default this process's share of the cores; the portable loader takes eight at most. `components` are
    those to load, by default all. Shards of a URL are staged in `cache` while they are read, see
    `fastdps.shards.cache.make_cache`, which makes the default.

    Raises `ShardError` where the set has no valid manifest, no samples, or lacks a shard or an index, and
    `ConfigError` for arguments that are out of range or ask for what the set or the machine does not have.

        loader = open_shards("shards/sample/train", batch_size=64)
        for batch in loader.epoch(0):
            batch.images, batch.ids
    """
    location = locate(location)
    manifest = read_manifest(location)
    if manifest.samples == 0:
        raise ShardError(f"{location} has no samples. Pack it again from a source that has some.")
    if manifest.encoding == "raw" and manifest.image_size is None:
        raise ShardError(f"the manifest of {location} lacks the image_size of its raw images. Pack it again.")
    _check_range("batch_size", batch_size, 1)
    _check_range("world_size", world_size, 1)
    _check_range("rank", rank, 0, world_size)
    _check_range("seed", seed, 0, 2**64)
    if num_threads is not None:
        _check_range("num_threads", num_threads, 1)
    if isinstance(location, Store):
        staged = _staged(location, manifest, cache or make_cache(), batch_size)
        directory = staged.directory
    else:
        staged, directory = None, location
        _check_files(directory, manifest)
    spec = ReadSpec(
        directory=directory,
        components=_components(manifest, components),
        stored_size=manifest.image_size,
        is_raw=manifest.encoding == "raw",
        size=_image_size(location, manifest, size),
        batch_size=batch_size,
        device=_device(device),
        num_threads=num_threads or _own_cores(),
    )
    return ShardLoader(
        manifest, spec, _reader(loader, spec), staged, seed=seed, shuffle=shuffle, rank=rank, world_size=world_size
    )


class ShardLoader:
    """A shard set as batches; made by `open_shards`.

    `manifest` describes the set. `samples` is the number of samples in the whole set, `steps` that of batches in an
    epoch, the same on every process.
    """

    def __init__(
        self,
        manifest: Manifest,
        spec: ReadSpec,
        reader: Reader,
        staged: StagedSet | None,
        *,
        seed: int,
        shuffle: bool,
        rank: int,
        world_size: int,
    ) -> None:
        self.manifest = manifest
        self.samples = manifest.samples
        self.steps = steps_per_epoch(manifest.samples, spec.batch_size, world_size)
        self._spec, self._reader = spec, reader
        self._indexes = IndexCache(spec.directory, manifest)
        self._seed, self._shuffle, self._rank, self._world_size = seed, shuffle, rank, world_size
        self._staged: StagedEpochs | None = None
        if staged:
            part = self._own_part([range(manifest.samples)])
            self._staged = StagedEpochs(staged, manifest, self._order, part, batch_size=spec.batch_size)

    def left_after(self, step: int, left: Sequence[range] | None = None) -> list[range]:
        """What of an epoch is left once `step` steps are done: positions in its order, as ranges.

        `left` is what was left when these steps began, by default the whole epoch. Any number of processes can go on
        with it, which is what a run needs that is resumed with another number of them.
        """
        left = [range(self.samples)] if left is None else left
        return left_after(left, step, self._spec.batch_size, self._world_size)

    def steps_for(self, left: Sequence[range]) -> int:
        """The steps that `epoch(..., left=left)` takes."""
        return steps_per_epoch(sum(map(len, left)), self._spec.batch_size, self._world_size)

    def epoch(
        self, epoch: int, start_step: int = 0, left: Sequence[range] | None = None, *, then: int | None = None
    ) -> Generator[Batch, None, None]:
        """The batches of an epoch from `start_step` on: `steps - start_step` of them, on every process.

        With `left`, of only that part of the epoch, see `left_after`: `steps_for(left) - start_step` of them.

        Over all processes each sample comes exactly once. The order depends on the seed and the epoch alone, so
        that a start in the middle gives what an undisturbed epoch gives from there. Where samples do not divide
        evenly, the last batches are short, or empty with n = 0, so that all processes take the same steps.
        Several epochs may be open at a time; closing the generator, or leaving it, stops its threads. With `then`, the
        epoch that comes next, the shards of a store go on to come after the last batch: for that epoch, until it is
        begun, or until `close`.

        Raises `ConfigError` for an epoch or step out of range; while iterating, `ShardError` for a shard that is
        missing, cut, or does not fit its index, and `SampleError` for a sample that does not read or decode.
        """
        _check_range("epoch", epoch, 0, 2**64)
        left = [range(self.samples)] if left is None else left
        if any(numbers.step != 1 or numbers.start < 0 or numbers.stop > self.samples for numbers in left):
            raise ConfigError(f"left is {left}; it has to be of positions below {self.samples}, as ranges of step 1")
        _check_range("start_step", start_step, 0, self.steps_for(left) + 1)
        if then is not None:
            _check_range("then", then, 0, 2**64)
        return self._batches(epoch, start_step, left, then)

    def close(self) -> None:
        """Let go of shards that have come for a next epoch."""
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
                stack.callback(staged.cancel)  # first of all, since the reader may be waiting for a shard
            for step in range(start_step, self.steps_for(left)):
                has_samples = step * spec.batch_size < own_samples
                components, ids = next(loaded) if has_samples else spec.empty()
                if staged:
                    staged.release(len(ids))
                global_size = global_batch_size(samples, step, spec.batch_size, self._world_size)
                yield Batch(components, ids, global_size)

    def _order(self, epoch: int) -> EpochOrder:
        sizes = [shard.samples for shard in self.manifest.shards]
        return EpochOrder(sizes, seed=self._seed, epoch=epoch, shuffle=self._shuffle)

    def _own_part(self, left: Sequence[range]) -> list[range]:
        """What this process reads of what is left of an epoch."""
        return cut(left, part_of(sum(map(len, left)), self._rank, self._world_size))


def _nothing() -> None:
    """What a set that is here has to do before a shard is read."""


def _staged(store: Store, manifest: Manifest, cache: Cache, batch_size: int) -> StagedSet:
    """The set of a store for one process of this machine. Raises `ConfigError` where its cache is too small."""
    processes = _local_processes()
    if cache.bytes // processes < (least := batch_bytes(manifest, batch_size)):
        raise ConfigError(
            f"the cache for shards may have {cache.bytes:,} bytes in {cache.directory}, and {store} needs at least "
            f"{least * processes:,}: the shards of a batch of {batch_size}, for each process of this machine "
            f"({processes}). Give a larger --cache-size, or a --cache-dir with more room."
        )
    return StagedSet(store, manifest, cache, processes=processes)


def _reader(loader: LoaderName, spec: ReadSpec) -> Reader:
    """The implementation by name; "auto" is the faster one, of those that can be imported and know the device."""
    if loader not in ("auto", "dali", "portable"):
        raise ConfigError(f"loader is {loader!r}; it can be auto, dali or portable")
    knows_device = spec.device.type in ("cpu", "cuda")
    if loader == "dali" and not knows_device:
        raise ConfigError(f"DALI does not load to {spec.device}; use loader='portable'")
    if loader == "dali" or (loader == "auto" and knows_device and not is_faster_than_dali(spec)):
        try:
            from fastdps.loading.dali import DaliReader

            return DaliReader(spec)
        except ImportError as error:
            if loader == "dali":
                raise ConfigError(
                    f"DALI cannot be imported: {error}. Install nvidia-dali-cuda130, or use loader='portable'."
                ) from error
            _say_portable(str(error))
    return PortableReader(spec)


@functools.cache  # once a process, however many sets are opened
def _say_portable(why: str) -> None:
    _log.warning("DALI cannot be imported (%s): loading with the portable loader, which is slower", why)


def _components(manifest: Manifest, wanted: Sequence[str] | None) -> tuple[Component, ...]:
    """The wanted components in the order they were asked for."""
    there = list(manifest.components)
    names = there if wanted is None else list(wanted)
    if unknown := [name for name in names if name not in there]:
        raise ConfigError(f"no component {', '.join(map(repr, unknown))} in this set; it has {', '.join(there)}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"components are {names}; name one or more of {', '.join(there)}, each once")
    return tuple(Component(name, there.index(name), manifest.components[name], name in SCALARS) for name in names)


def _image_size(location: Location, manifest: Manifest, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """The (height, width) of the images that come out."""
    if size is None:
        if manifest.image_size is None:
            raise ConfigError(f"{location} keeps images in their own sizes; give size, e.g. size=64, to batch them")
        return manifest.image_size
    height, width = (size, size) if isinstance(size, int) else size
    _check_range("size", height, 1)
    _check_range("size", width, 1)
    return height, width


def _device(device: str | torch.device) -> torch.device:
    """The device, a CUDA one with its index."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is none that torch knows: {error}") from error
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type != "cuda":
        return found
    if not torch.cuda.is_available():
        raise ConfigError(f"device is {device}, but torch finds no CUDA; use device='cpu'")
    index = torch.cuda.current_device() if found.index is None else found.index
    if index >= torch.cuda.device_count():
        raise ConfigError(f"device is {device}, but there are only {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)


def _own_cores() -> int:
    """The cores of this process: those it may run on, divided by the processes of this machine."""
    return max(1, cores() // _local_processes())


def _local_processes() -> int:
    """The processes of this machine that train together."""
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")  # set by torchrun and accelerate
    return max(1, int(local) if local.isdigit() else 1)


def _check_range(name: str, value: int, low: int, high: int | None = None) -> None:
    """Raise `ConfigError` unless low <= value < high."""
    if value < low or (high is not None and value >= high):
        upper = "" if high is None else f" and below {high}"
        raise ConfigError(f"{name} is {value}; it has to be at least {low}{upper}")


def _check_files(directory: Path, manifest: Manifest) -> None:
    """Raise `ShardError` unless all shards and indexes are there: one listing, however many they are."""
    there = set(os.listdir(directory))
    named = [name for shard in manifest.shards for name in (shard.name, shard.index_name)]
    if missing := [name for name in named if name not in there]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ShardError(
            f"{directory} lacks {', '.join(missing[:3])}{more}, which its manifest names. "
            f"Restore them, or pack the set again; `tools/check_shards.py {directory}` checks all of it."
        )
