"""Which item goes into which shard of which set, decided before anything is read."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdps.errors import ConfigError
from fastdps.packing.options import PackOptions
from fastdps.packing.sources.source import Dataset, Source

#: Samples that a worker turns into one fragment at a time, and bytes of pixels in it: they bound the memory of a worker
#: and of the queue. The smaller of the two counts; at 64 px that is the first.
CHUNK_SAMPLES = 32
CHUNK_BYTES = 4 << 20
#: What an image is taken to have where it keeps its own size.
OWN_SIZE_BYTES = 1 << 20

#: The split that a holdout divides, and the one that it makes.
DIVIDED, HELD_OUT = "train", "val"


@dataclass(frozen=True)
class WorkChunk:
    """A run of consecutive samples of one shard: the unit of work of a worker."""

    first_id: int
    items: Sequence[Any]


@dataclass(frozen=True)
class ShardPlan:
    """One shard: its number in its set, and its items in order; the first has the sample id `first_id`."""

    number: int
    first_id: int
    items: Sequence[Any]

    @property
    def name(self) -> str:
        """The file name of its tar."""
        return f"shard-{self.number:06d}.tar"

    def item(self, sample_id: int) -> Any:
        """The item of a sample id."""
        return self.items[sample_id - self.first_id]

    def chunks(self, options: PackOptions) -> Iterator[WorkChunk]:
        """The shard in units of work. How it is divided changes nothing in the bytes."""
        image_bytes = OWN_SIZE_BYTES if options.size is None else 3 * options.size**2
        step = max(1, min(CHUNK_SAMPLES, CHUNK_BYTES // image_bytes))
        for start in range(0, len(self.items), step):
            yield WorkChunk(self.first_id + start, self.items[start : start + step])


@dataclass(frozen=True)
class SetPlan:
    """One shard set to be: its directory within OUT, its source, its shards.

    `identity` is what decides its bytes: the source, its listing and the options; it goes into the manifest, and a run
    with another one does not touch the set.
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
    """Shuffle the items of each (wanted) split with the seed and divide them into shards.

    With a holdout a part of "train" becomes "val". Raises `ConfigError` when the data set lacks a wanted split, has
    no "train" to hold out from or a "val" already, and when the holdout leaves a split without samples.
    """
    sources = _chosen(dataset.splits(), wanted)
    if options.holdout and (DIVIDED not in sources or HELD_OUT in sources):
        raise ConfigError(
            f"--holdout makes {HELD_OUT} of a part of {DIVIDED}, and this source has {', '.join(sources)}. "
            f"Leave it away, or choose splits with --splits."
        )
    plans = []
    for name, source in sources.items():
        items = source.items()
        origin = {"kind": source.kind, **source.describe(), "items": len(items), "listing": _listing(source, items)}
        order = np.random.Generator(np.random.Philox(options.seed)).permutation(len(items))
        held_out = round(options.holdout * len(items)) if name == DIVIDED else 0
        if options.holdout and name == DIVIDED and not 0 < held_out < len(items):
            raise ConfigError(f"a holdout of {options.holdout} of {len(items)} items leaves a split without samples.")
        for split, indices in ((name, order[held_out:]), (HELD_OUT, order[:held_out])):
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
    """A digest of the names of all items in order: tells whether a source has changed between two runs."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(source.name(item).encode() + b"\n")
    return digest.hexdigest()[:16]


def _divide(items: Sequence[Any], samples_per_shard: int) -> list[ShardPlan]:
    return [
        ShardPlan(number, start, items[start : start + samples_per_shard])
        for number, start in enumerate(range(0, len(items), samples_per_shard))
    ]
