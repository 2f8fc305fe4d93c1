"""Options of loading. Imports no torch, so that the command line can show them without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fastdps.shards.cache import Cache

LoaderName = Literal["auto", "dali", "portable"]
Divide = Literal["epoch", "step"]


@dataclass(frozen=True)
class LoadOptions:
    """Options of reading shards; the batches are the same for all of them, except for `components` and `divide`.

    Attributes:
        loader: The reader: "dali", "portable", or "auto" for the faster one for these images on this device.
        num_threads: Threads that decode. None for this process's share of the cores; the portable reader uses at most
            eight.
        components: Names of the components to load, such as ("ref", "p0"). None for all.
        cache: Where shards of a URL are staged while they are read. None for the default, see
            `fastdps.shards.cache.make_cache`.
        divide: What the processes divide among themselves: each "epoch", in contiguous parts, so that a process reads
            complete shards; or each "step", so that the samples of all processes in a step are the same whatever their
            number, and every process reads from every shard.
    """

    loader: LoaderName = "auto"
    num_threads: int | None = None
    components: Sequence[str] | None = None
    cache: Cache | None = None
    divide: Divide = "epoch"
