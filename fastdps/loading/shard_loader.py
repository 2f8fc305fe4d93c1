"""One shard set as batches, by epoch; see `fastdps.loading.loader` for the data flow."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing

from fastdps.errors import ConfigError
from fastdps.loading.checks import check_range
from fastdps.loading.index_cache import IndexCache
from fastdps.loading.options import Divide
from fastdps.loading.order import (
    EpochOrder,
    cut,
    global_batch_size,
    left_after,
    part_of,
    step_parts,
    steps_per_epoch,
)
from fastdps.loading.segments import even_places, segments
from fastdps.loading.spec import Batch, Reader, ReadSpec
from fastdps.loading.staged import StagedEpochs
from fastdps.loading.stateful import StatefulLoader
from fastdps.shards.cache import StagedSet
from fastdps.shards.format import Manifest


class ShardLoader(StatefulLoader):
    """A shard set as batches; made by `open_shards`.

    Iterating over it yields one epoch after another, and it has a state: see `StatefulLoader`. `epoch` yields any one.

    Example:
        >>> loader = open_shards("shards/sample/train", batch_size=64)  # doctest: +SKIP
        >>> for _ in range(10):  # doctest: +SKIP
        ...     for batch in loader:
        ...         batch.images, batch.ids

    Attributes:
        manifest: The manifest of the set.
        samples: Number of samples in the whole set.
        steps: Number of batches in an epoch, the same on every process.
        prepared_s: Seconds of computation before the first epoch: none.
        divide: What the processes divide, see `LoadOptions.divide`.
    """

    prepared_s = 0.0

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
        divide: Divide = "epoch",
    ) -> None:
        data = {"sha256": manifest.content_sha256(), "seed": seed, "divide": divide}
        super().__init__(data, (spec.batch_size, world_size))
        self.divide = divide
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

    @property
    def component_names(self) -> tuple[str, ...]:
        """The names of the components in the batches."""
        return tuple(component.name for component in self._spec.components)

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
        if self.divide == "step":
            return cut(left, range(step * self._spec.batch_size * self._world_size, sum(map(len, left))))
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
                yield Batch(components, ids, self._global_size(samples, step))

    def _order(self, epoch: int) -> EpochOrder:
        sizes = [shard.samples for shard in self.manifest.shards]
        return EpochOrder(sizes, seed=self._seed or 0, epoch=epoch, shuffle=self._seed is not None)

    def _own_part(self, left: Sequence[range]) -> list[range]:
        """Return the share of this process in the remaining part of an epoch."""
        if self.divide == "step":
            return step_parts(left, self._rank, self._spec.batch_size, self._world_size)
        return cut(left, part_of(sum(map(len, left)), self._rank, self._world_size))

    def _global_size(self, samples: int, step: int) -> int:
        """Return the number of samples of all processes in a step of a part of an epoch."""
        batch_size, world_size = self._spec.batch_size, self._world_size
        if self.divide == "step":
            return min(batch_size * world_size, samples - step * batch_size * world_size)
        return global_batch_size(samples, step, batch_size, world_size)


def _nothing() -> None:
    """Do nothing: a local shard can be read at once."""
