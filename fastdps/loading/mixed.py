r"""Mix several shard sets by weight, in an order that is a function of the weights, the seed and the epoch.

    set A: its epochs, one after another --70 % of the positions--\
    set B: its epochs, one after another --30 % of the positions----> order of the mixture --steps--> processes

Each set has positions that are spread as evenly as possible, so that each batch has its share to one sample or two. The
samples of a set come in the order of its own epochs, which continue from one epoch of the mixture to the next: each
sample of a set comes equally often, however small its weight is.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdps.errors import ConfigError
from fastdps.loading.checks import check_range
from fastdps.loading.options import Divide
from fastdps.loading.order import cut, step_places, steps_per_epoch
from fastdps.loading.shard_loader import ShardLoader
from fastdps.loading.spec import Batch
from fastdps.loading.stateful import StatefulLoader
from fastdps.shards.storage import Location

#: Locations of shard sets with their weights.
WeightedSets = Mapping[str, float] | Sequence[tuple[str | Location, float]]
#: A sample id of a mixture is that of its set plus the number of the set times this.
SET_STRIDE = 1 << 48


class MixedLoader(StatefulLoader):
    """Several shard sets as batches, mixed by weight; made by `open_shards`.

    An epoch has as many samples as all sets together. Steps are divided among the processes, see `LoadOptions.divide`.

    Args:
        loaders: The sets, each opened as by a single process, with the same components and image size.
        weights: Their shares in a batch, above 0; they need not add up to 1.
        batch_size: Samples per batch of this process.
        rank: Index of this process.
        world_size: Number of processes.

    Attributes:
        loaders: The sets.
        counts: Number of samples of each set in an epoch.
        prepared_s: Seconds of computation before the first epoch: none.
        divide: What the processes divide, see `LoadOptions.divide`: always steps.

    Raises:
        ConfigError: The sets do not fit together, or a weight is out of range.

    Example:
        >>> loader = open_shards({"shards/a/train": 0.7, "shards/b/train": 0.3}, batch_size=64)  # doctest: +SKIP
        >>> for batch in loader:  # doctest: +SKIP
        ...     batch.images, set_numbers(batch.ids)
    """

    prepared_s = 0.0
    divide: Divide = "step"

    def __init__(
        self,
        loaders: Sequence[ShardLoader],
        weights: Sequence[float],
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.loaders = tuple(loaders)
        self.samples = sum(loader.samples for loader in loaders)
        _check_sets(loaders)
        self.counts = apportion(weights, self.samples)
        sets = [loader.state_dict() for loader in loaders]
        data = {"sha256": [one["sha256"] for one in sets], "seed": sets[0]["seed"], "counts": list(self.counts)}
        super().__init__(data, (batch_size, world_size))
        self.steps = steps_per_epoch(self.samples, batch_size, world_size)
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._sets = interleave(self.counts)
        #: Of each set, its positions in the order of the mixture.
        self._positions = [np.flatnonzero(self._sets == number) for number in range(len(loaders))]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images in the batches."""
        return self.loaders[0].image_size

    def left_after(self, step: int, left: Sequence[range] | None = None) -> list[range]:
        """Return the part of an epoch that remains after `step` steps, see `ShardLoader.left_after`."""
        left = [range(self.samples)] if left is None else left
        return cut(left, range(step * self._batch_size * self._world_size, sum(map(len, left))))

    def steps_for(self, left: Sequence[range]) -> int:
        """Return the number of steps of `epoch(..., left=left)`."""
        return steps_per_epoch(sum(map(len, left)), self._batch_size, self._world_size)

    def epoch(
        self,
        epoch: int,
        start_step: int = 0,
        left: Sequence[range] | None = None,
        *,
        then: int | None = None,  # noqa: ARG002
    ) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch from `start_step` on, see `ShardLoader.epoch`.

        Args:
            epoch: Number of the epoch, from 0.
            start_step: Number of batches to skip.
            left: Read only this part of the epoch, see `left_after`.
            then: Not used: the sets of a mixture prefetch only what this epoch needs.

        Raises:
            ConfigError: The epoch or a step is out of range.
            ShardError: While iterating: a shard is missing or damaged.
            SampleError: While iterating: a sample cannot be read or decoded.
        """
        left = [range(self.samples)] if left is None else left
        check_range("epoch", epoch, 0, 2**32)
        check_range("start_step", start_step, 0, self.steps_for(left) + 1)
        return self._batches(epoch, start_step, left)

    def close(self) -> None:
        """Release the shards that were prefetched."""
        for loader in self.loaders:
            loader.close()

    def _batches(self, epoch: int, start_step: int, left: Sequence[range]) -> Generator[Batch, None, None]:
        of_all = self._batch_size * self._world_size
        total = sum(map(len, left))
        steps = list(step_places(left, self._rank, self._batch_size, self._world_size, start_step=start_step))
        part = [numbers for places in steps for numbers in places]
        with ExitStack() as stack:
            readers = [
                _SetReader(stack.enter_context(closing(self._read(number, epoch, part))))
                for number in range(len(self.loaders))
            ]
            for step, places in enumerate(steps, start=start_step):
                yield self._batch(readers, places, min(of_all, total - step * of_all))

    def _batch(self, readers: Sequence[_SetReader], places: Sequence[range], global_size: int) -> Batch:
        """Return the batch of samples at `places` in the order of the mixture."""
        sets = np.concatenate([self._sets[place.start : place.stop] for place in places] or [self._sets[:0]])
        parts = [
            reader.take(int(count))
            for reader, count in zip(readers, np.bincount(sets, minlength=len(readers)), strict=True)
            if count
        ] or [self._empty()]
        # Taken set by set; this puts them in the order of the mixture.
        order = torch.from_numpy(np.argsort(np.argsort(sets, kind="stable"), kind="stable"))
        numbers = [number for number in range(len(readers)) if (sets == number).any()] or [0]
        batch = _joined(
            [
                dataclasses.replace(part, ids=part.ids + number * SET_STRIDE)
                for number, part in zip(numbers, parts, strict=True)
            ]
        )
        components = {
            name: tensor.index_select(0, order.to(tensor.device)) for name, tensor in batch.components.items()
        }
        passes = None if batch.passes is None else batch.passes.index_select(0, order)
        return Batch(components, batch.ids.index_select(0, order), global_size, passes=passes)

    def _read(self, number: int, epoch: int, part: Sequence[range]) -> Generator[Batch, None, None]:
        """Yield batches of the samples of one set in a part of the mixture, in their order."""
        loader, own = self.loaders[number], self._positions[number]
        first = epoch * self.counts[number]
        bounds = [first + np.searchsorted(own, (place.start, place.stop)) for place in part]
        for own_epoch, ranges in _by_epoch(((int(start), int(stop)) for start, stop in bounds), loader.samples):
            with closing(loader.epoch(own_epoch, left=ranges)) as batches:
                for batch in batches:
                    passes = torch.full_like(batch.ids, own_epoch - first // loader.samples)
                    yield dataclasses.replace(batch, passes=passes)

    def _empty(self) -> Batch:
        """Return a batch without samples."""
        with closing(self.loaders[0].epoch(0)) as batches:
            batch = next(batches)
        return _slice(dataclasses.replace(batch, passes=torch.zeros_like(batch.ids)), 0, 0)


class _SetReader:
    """The samples of one set, taken in any numbers at a time."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._rest: Batch | None = None

    def take(self, samples: int) -> Batch:
        """Return the next samples; there are enough of them."""
        parts: list[Batch] = []
        while samples:
            batch = next(self._batches) if self._rest is None or not len(self._rest) else self._rest
            parts.append(_slice(batch, 0, samples))
            self._rest = _slice(batch, samples, len(batch))
            samples -= len(parts[-1])
        return _joined(parts)


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    components = {name: part[start:stop] for name, part in batch.components.items()}
    passes = None if batch.passes is None else batch.passes[start:stop]
    return Batch(components, batch.ids[start:stop], 0, passes=passes)


def _joined(batches: Sequence[Batch]) -> Batch:
    components = {name: torch.cat([one.components[name] for one in batches]) for name in batches[0].components}
    passes = [one.passes for one in batches if one.passes is not None]
    return Batch(components, torch.cat([one.ids for one in batches]), 0, passes=torch.cat(passes) if passes else None)


def _by_epoch(bounds: Iterable[tuple[int, int]], samples: int) -> Iterator[tuple[int, list[range]]]:
    """Yield the epochs of a set of `samples`, each with its positions, for ranges of numbers that run through all."""
    pieces = [
        (epoch, range(max(start - epoch * samples, 0), min(stop - epoch * samples, samples)))
        for start, stop in bounds
        for epoch in range(start // samples, -(-stop // samples))
        if start < stop
    ]
    for epoch, group in itertools.groupby(pieces, key=lambda piece: piece[0]):
        ranges: list[range] = []
        for _, numbers in group:
            if ranges and ranges[-1].stop == numbers.start:
                ranges[-1] = range(ranges[-1].start, numbers.stop)
            else:
                ranges.append(numbers)
        yield epoch, ranges


def apportion(weights: Sequence[float], samples: int) -> tuple[int, ...]:
    """Divide samples by weight, by the method of the largest remainder.

    Args:
        weights: The weights, above 0.
        samples: The number to divide.

    Raises:
        ConfigError: The share of a weight is less than one sample.

    Example:
        >>> apportion([0.7, 0.3], 9)
        (6, 3)
    """
    exact = np.asarray(weights, dtype=np.float64) / math.fsum(weights) * samples
    counts = np.floor(exact).astype(np.int64)
    most = np.argsort(counts - exact, kind="stable")[: samples - int(counts.sum())]
    counts[most] += 1
    if not counts.all():
        raise ConfigError(
            f"a weight of {min(weights):g} is less than one of {samples:,} samples. Raise it, or omit it."
        )
    return tuple(counts.tolist())


def interleave(counts: Sequence[int]) -> NDArray[np.int16]:
    """Return the number of the set at each position, with the positions of each set spread evenly.

    Example:
        >>> interleave([4, 2]).tolist()
        [0, 1, 0, 0, 1, 0]
    """
    times = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    sets = np.repeat(np.arange(len(counts), dtype=np.int16), counts)
    return sets[np.argsort(times, kind="stable")]


def set_numbers(ids: Tensor) -> Tensor:
    """Return the number of the set of each sample of a mixture, from 0, in the order in which the sets were given.

    Args:
        ids: Sample ids of a `Batch`, int64 (n,). `ids % 2**48` are the ids in the sets.

    Returns:
        Numbers, int64 (n,).

    Raises:
        ValueError: The ids are not int64.

    Example:
        >>> set_numbers(torch.tensor([5, 2**48 + 5])).tolist()
        [0, 1]
    """
    if ids.dtype != torch.int64:
        raise ValueError(f"ids must be int64, not {ids.dtype}")
    return ids // SET_STRIDE


def sample_name(sample: int) -> str:
    """Return a sample id for messages, with its set if that is not the first of a mixture.

    Example:
        >>> sample_name(7), sample_name(2**48 + 7)
        ('7', '7 of set 2')
    """
    number, own = divmod(sample, SET_STRIDE)
    return f"{own} of set {number + 1}" if number > 0 else str(sample)


def pairs_of(sets: WeightedSets) -> list[tuple[str | Location, float]]:
    """Return sets and weights as pairs. Raises `ConfigError` for no set, or a weight out of range."""
    pairs = list(sets.items()) if isinstance(sets, Mapping) else list(sets)
    if not pairs or any(not isinstance(pair, tuple | list) or len(pair) != 2 for pair in pairs):
        raise ConfigError("several shard sets are given as {location: weight, ...} or as pairs of location and weight.")
    for location, weight in pairs:
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"the weight of {location} must be above 0, not {weight:g}.")
    return [(location, float(weight)) for location, weight in pairs]


def _check_sets(loaders: Sequence[ShardLoader]) -> None:
    first = loaders[0]
    for number, loader in enumerate(loaders[1:], start=2):
        for name, own, other in (
            ("components", loader.component_names, first.component_names),
            ("images of", loader.image_size, first.image_size),
        ):
            if own != other:
                raise ConfigError(
                    f"set {number} of a mixture has {name} {own}, and the first has {other}. Choose components with "
                    "LoadOptions, and a size for all images."
                )
