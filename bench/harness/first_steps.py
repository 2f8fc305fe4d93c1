"""A loader with shortened epochs, for measuring the loops of fastdps."""

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
    """The first batches of every epoch of a loader, as if the set ended there.

    Args:
        loader: The loader.
        steps: The number of batches in an epoch, at most that of the loader.
        batch_size: The batch size of the loader.

    Attributes:
        started_s: The time of the first call of `epoch`, by `time.perf_counter`; None before. What a loop does earlier
            (building networks, for example) is not part of its steady state.
    """

    def __init__(self, loader: ShardLoader, steps: int, batch_size: int) -> None:
        self._loader = loader
        self.steps = min(steps, loader.steps)
        self.samples = min(self.steps * batch_size, loader.samples)
        self.manifest: Manifest = loader.manifest
        self.started_s: float | None = None

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """Return the first batches of an epoch."""
        if self.started_s is None:
            self.started_s = time.perf_counter()
        return self._batches(epoch)

    def elapsed_s(self) -> float:
        """Return the seconds since the first call of `epoch`. Raises `ValueError` before it."""
        if self.started_s is None:
            raise ValueError("epoch has not been called yet")
        return time.perf_counter() - self.started_s

    def as_loader(self) -> ShardLoader:
        """Return itself, typed as a loader."""
        return cast(ShardLoader, self)

    def _batches(self, epoch: int) -> Generator[Batch, None, None]:
        with closing(self._loader.epoch(epoch)) as batches:
            yield from islice(batches, self.steps)
