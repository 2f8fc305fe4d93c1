"""A loader whose epochs are as long as a measurement needs, for the product's own loops."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from itertools import islice
from typing import cast

from fastdps.loading.loader import ShardLoader
from fastdps.loading.spec import Batch
from fastdps.shards.format import Manifest


class FirstSteps:
    """The first `steps` batches of every epoch of a loader, as if the set ended there.

    `started_s` is when the first epoch was asked for, on `time.perf_counter`'s clock: what a loop does before that
    (building networks, say) is not its steady state.
    """

    def __init__(self, loader: ShardLoader, steps: int, batch_size: int) -> None:
        self._loader = loader
        self.steps = min(steps, loader.steps)
        self.samples = min(self.steps * batch_size, loader.samples)
        self.manifest: Manifest = loader.manifest
        self.started_s: float | None = None

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """The first batches of an epoch."""
        if self.started_s is None:
            self.started_s = time.perf_counter()
        return self._batches(epoch)

    def elapsed_s(self) -> float:
        """The time since the first epoch was asked for. Raises `ValueError` if none was."""
        if self.started_s is None:
            raise ValueError("no epoch has been asked for")
        return time.perf_counter() - self.started_s

    def as_loader(self) -> ShardLoader:
        """Itself, for functions that take a loader."""
        return cast(ShardLoader, self)

    def _batches(self, epoch: int) -> Generator[Batch, None, None]:
        with closing(self._loader.epoch(epoch)) as batches:
            yield from islice(batches, self.steps)
