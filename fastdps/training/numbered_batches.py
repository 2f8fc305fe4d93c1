"""Batches whose content depends on their number in the epoch, and not on the number of processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence

from fastdps.loading.order import cut
from fastdps.loading.spec import Batch


class NumberedBatches(ABC):
    """Batches of an epoch by number, see `fastdps.loading.spec.BatchSource`.

    Positions in the order of an epoch, from which a training resumes, are numbers of batches.

    Attributes:
        samples: Number of samples in an epoch.
        steps: Number of steps of an epoch.
        prepared_s: Seconds that the preparation took.
    """

    samples: int
    steps: int
    prepared_s: float = 0.0

    def left_after(self, step: int, left: Sequence[range] | None = None) -> list[range]:
        """Return the batches of an epoch that remain after `step` steps, as ranges of their numbers."""
        left = [range(self.steps)] if left is None else left
        return cut(left, range(step, self.steps_for(left)))

    def steps_for(self, left: Sequence[range]) -> int:
        """Return the number of steps of `epoch(..., left=left)`."""
        return sum(map(len, left))

    def epoch(
        self,
        epoch: int,
        start_step: int = 0,
        left: Sequence[range] | None = None,
        *,
        then: int | None = None,  # noqa: ARG002, nothing is prefetched
    ) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch from `start_step` on.

        Each sample comes once in an epoch. Batches are the same in whatever step the epoch begins.

        Args:
            epoch: Number of the epoch, from 0.
            start_step: Number of batches to skip.
            left: Only this part of the epoch, see `left_after`.
            then: Not used.
        """
        batch_of = self._batches_of(epoch)
        for numbers in self.left_after(start_step, left):
            for number in numbers:
                yield batch_of(number)

    def close(self) -> None:  # noqa: B027, few have resources
        """Do nothing: there are no resources to release."""

    @abstractmethod
    def _batches_of(self, epoch: int) -> Callable[[int], Batch]:
        """Return the function from the number of a batch of an epoch to this process's part of it."""
