"""Assign every item to a shard of a set, before any item is read."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdps.errors import ConfigError
from fastdps.packing.options import PackOptions
from fastdps.packing.sources.source import Dataset, Source

#: Limits of a chunk: samples, and bytes of pixels. They bound the memory of a worker and of the queue. The smaller one
#: applies; at 64 px that is the number of samples.
CHUNK_SAMPLES = 32
CHUNK_BYTES = 4 << 20
#: Assumed bytes of an image that keeps its own size.
OWN_SIZE_BYTES = 1 << 20

#: A holdout moves a fraction of the first split to the second.
HOLDOUT_SOURCE, HOLDOUT_SPLIT = "train", "val"


@dataclass(frozen=True)
class WorkChunk:
    """Consecutive samples of one shard, which a worker packs at a time.

    Attributes:
        first_id: The sample id of the first item.
        items: The items, in the order of their sample ids.
    """

    first_id: int
    items: Sequence[Any]


@dataclass(frozen=True)
class ShardPlan:
    """The content of one shard.

    Attributes:
        number: The number of the shard in its set, from 0.
        first_id: The sample id of the first item.
        items: The items, in the order of their sample ids.
    """

    number: int
    first_id: int
    items: Sequence[Any]

    @property
    def name(self) -> str:
        """The file name of the tar."""
        return f"shard-{self.number:06d}.tar"

    @property
    def ids(self) -> range:
        """The sample ids of the items."""
        return range(self.first_id, self.first_id + len(self.items))

    def item(self, sample_id: int) -> Any:
        """Return the item of a sample id."""
        return self.items[sample_id - self.first_id]

    def chunks(self, options: PackOptions) -> Iterator[WorkChunk]:
        """Yield the shard in chunks. The size of the chunks does not affect the bytes of the shard."""
        image_bytes = OWN_SIZE_BYTES if options.size is None else 3 * options.size**2
        step = max(1, min(CHUNK_SAMPLES, CHUNK_BYTES // image_bytes))
        for start in range(0, len(self.items), step):
            yield WorkChunk(self.first_id + start, self.items[start : start + step])


@dataclass(frozen=True)
class SetPlan:
    """The content of one shard set.

    Attributes:
        name: The split, which is also the directory of the set within OUT.
        source: The source of the items.
        identity: What determines the bytes of the set: the source, a digest of its listing, and the options. It is
            stored in the manifest. A run with another identity does not change the set.
        shards: The shards, in the order of their numbers.
    """

    name: str
    source: Source
    identity: dict[str, Any]
    shards: Sequence[ShardPlan]

    @property
    def samples(self) -> int:
        """The number of items."""
        return sum(len(shard.items) for shard in self.shards)


def plan_sets(dataset: Dataset, options: PackOptions, wanted: Collection[str] | None = None) -> list[SetPlan]:
    """Shuffle the items of each split with the seed, and divide them into shards.

    Args:
        dataset: The data set.
        options: Options of packing. With a holdout, a fraction of the split "train" becomes "val"; see also
            `Dataset.hold_out`.
        wanted: The splits to pack; None for all.

    Returns:
        One plan per non-empty split.

    Raises:
        ConfigError: The data set lacks a wanted split; or, with a holdout, it has no "train" or already has a "val",
            or one of the two would be empty.
    """
    divided = dataset.hold_out(options.holdout, options.seed) if options.holdout else None
    sources = _chosen(dataset.splits() if divided is None else divided, wanted)
    moved = options.holdout if divided is None else 0.0
    if moved and (HOLDOUT_SOURCE not in sources or HOLDOUT_SPLIT in sources):
        raise ConfigError(
            f"--holdout moves a fraction of {HOLDOUT_SOURCE} to {HOLDOUT_SPLIT}, and this source has "
            f"{', '.join(sources)}. Omit --holdout, or choose other splits with --splits."
        )
    plans = []
    for name, source in sources.items():
        items = source.items()
        origin = {"kind": source.kind, **source.describe(), "items": len(items), "listing": _listing(source, items)}
        order = np.random.Generator(np.random.Philox(options.seed)).permutation(len(items))
        held_out = round(moved * len(items)) if name == HOLDOUT_SOURCE else 0
        if moved and name == HOLDOUT_SOURCE and not 0 < held_out < len(items):
            raise ConfigError(
                f"a holdout of {options.holdout} of {len(items)} items leaves a split without samples. "
                "Choose another fraction."
            )
        for split, indices in ((name, order[held_out:]), (HOLDOUT_SPLIT, order[:held_out])):
            if len(indices):
                identity = {"split": split, **origin, **options.describe()}
                shards = _divide([items[index] for index in indices], options.samples_per_shard)
                plans.append(SetPlan(split, source, identity, shards))
    return plans


def _chosen(sources: Mapping[str, Source], wanted: Collection[str] | None) -> Mapping[str, Source]:
    if wanted is None:
        return sources
    if missing := [name for name in wanted if name not in sources]:
        raise ConfigError(f"the source has no split {', '.join(missing)}; it has {', '.join(sources)}.")
    return {name: source for name, source in sources.items() if name in wanted}


def _listing(source: Source, items: Sequence[Any]) -> str:
    """Return a digest of the names of all items in order, which changes when the source changes."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(source.name(item).encode() + b"\n")
    return digest.hexdigest()[:16]


def _divide(items: Sequence[Any], samples_per_shard: int) -> list[ShardPlan]:
    return [
        ShardPlan(number, start, items[start : start + samples_per_shard])
        for number, start in enumerate(range(0, len(items), samples_per_shard))
    ]
