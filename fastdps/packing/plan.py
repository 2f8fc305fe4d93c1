"""Which item goes into which shard of which split, decided before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdps.errors import ConfigError
from fastdps.packing.options import PackOptions

#: Samples that a worker turns into one fragment at a time; bounds the memory of a worker and of the queue.
PART_SAMPLES = 64


@dataclass(frozen=True)
class Part:
    """A run of consecutive samples of one shard: the unit of work of a worker."""

    first_id: int
    items: Sequence[Any]


@dataclass(frozen=True)
class ShardPlan:
    """One shard: its number in its split, and its items in order; the first has the sample id `first_id`."""

    number: int
    first_id: int
    items: Sequence[Any]

    @property
    def name(self) -> str:
        """The file name of its tar."""
        return f"shard-{self.number:06d}.tar"

    def parts(self) -> list[Part]:
        """The shard in units of work."""
        starts = range(0, len(self.items), PART_SAMPLES)
        return [Part(self.first_id + start, self.items[start : start + PART_SAMPLES]) for start in starts]


def plan_splits(items: Sequence[Any], options: PackOptions) -> dict[str, list[ShardPlan]]:
    """Shuffle all items with the seed and divide them into shards, by split: "train", and "val" with a holdout.

    Raises `ConfigError` when the holdout leaves one of the splits empty.
    """
    order = np.random.Generator(np.random.Philox(options.seed)).permutation(len(items))
    held_out = round(options.holdout * len(items))
    if options.holdout and not 0 < held_out < len(items):
        raise ConfigError(f"a holdout of {options.holdout} of {len(items)} items leaves a split without samples.")
    splits = {"train": order[held_out:], "val": order[:held_out]}
    return {
        split: _divide([items[index] for index in indices], options.samples_per_shard)
        for split, indices in splits.items()
        if len(indices)
    }


def _divide(items: Sequence[Any], samples_per_shard: int) -> list[ShardPlan]:
    return [
        ShardPlan(number, start, items[start : start + samples_per_shard])
        for number, start in enumerate(range(0, len(items), samples_per_shard))
    ]
