"""A loader as an iterable of epochs with a state, by the protocol of torchdata's `StatefulDataLoader`.

for batch in loader: ...      one epoch; the next `for` is the next epoch
loader.state_dict()           where it is: a few numbers, for any number of processes
loader.load_state_dict(state) the next `for` yields what was left of that epoch
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Self

from torch.utils.data import IterableDataset, get_worker_info

from fastdps.errors import ConfigError
from fastdps.loading.checks import check_range
from fastdps.loading.spec import Batch

_VERSION = 1


class StatefulLoader(IterableDataset[Batch]):
    """Batches by epoch, and the state of iterating over them.

    It is an `IterableDataset` of batches, so that `torch.utils.data.DataLoader(loader, batch_size=None)` takes it.

    Attributes:
        samples: Number of samples in an epoch, of all processes.
        steps: Number of batches in an epoch, the same on every process.
    """

    samples: int
    steps: int

    def __init__(self, identity: Mapping[str, Any], division: tuple[int, int]) -> None:
        self._identity = dict(identity)
        self._division = list(division)
        self._epoch = self._step = 0
        self._left: list[range] | None = None
        self._is_inside = False

    @abstractmethod
    def epoch(
        self, epoch: int, start_step: int = 0, left: Sequence[range] | None = None, *, then: int | None = None
    ) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch."""

    @abstractmethod
    def left_after(self, step: int, left: Sequence[range] | None = None) -> list[range]:
        """Return the part of an epoch that remains after `step` steps."""

    @property
    def next_epoch(self) -> int:
        """The number of the epoch that the next `for` yields, or continues after `load_state_dict`."""
        return self._epoch + self._is_inside

    def set_epoch(self, epoch: int) -> None:
        """Have the next `for` begin with an epoch. If it would anyway, a position that was loaded stays.

        Raises:
            ConfigError: The number is out of range.
        """
        check_range("epoch", epoch, 0, 2**64)
        if self._is_inside or epoch != self._epoch:
            self._go_to(epoch)

    @property
    def sampler(self) -> Self:
        """This loader: Lightning calls `loader.sampler.set_epoch(number)` before each epoch."""
        return self

    def _go_to(self, epoch: int) -> None:
        self._epoch, self._step, self._left, self._is_inside = epoch, 0, None, False

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the next epoch, or what was left of it in the state that was loaded.

        An epoch that was left early is not continued: the next one begins.

        Raises:
            ConfigError: This is a worker process of a `DataLoader`.
            ShardError: A shard is missing or damaged.
            SampleError: A sample cannot be read or decoded.
        """
        if get_worker_info() is not None:
            raise ConfigError(
                "a loader of shards has threads of its own, and each worker of a DataLoader would read all samples. "
                "Use DataLoader(loader, batch_size=None, num_workers=0)."
            )
        if self._is_inside:
            self._go_to(self._epoch + 1)
        self._is_inside = True
        epoch = self._epoch
        for batch in self.epoch(epoch, self._step, self._left, then=epoch + 1):
            self._step += 1
            yield batch
        self._go_to(epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last batch that was yielded: JSON types only, the same on every process.

        Example:
            >>> loader = open_shards("shards/sample/train", batch_size=64)  # doctest: +SKIP
            >>> for step, batch in enumerate(loader):  # doctest: +SKIP
            ...     if step == 100:
            ...         torch.save(loader.state_dict(), "loader.pt")
        """
        return {
            "version": _VERSION,
            **self._identity,
            "epoch": self._epoch,
            "division": self._division,
            "step": self._step,
            "left": None if self._left is None else _to_pairs(self._left),
            "rest": _to_pairs(self.left_after(self._step, self._left)),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where a state was taken, maybe by another number of processes.

        With the same batch size and number of processes the batches are the same as without interruption. With others
        each sample of the epoch is still read once; where steps are divided (`LoadOptions.divide`), the batches of all
        processes together are the same as long as they have the same size.

        Args:
            state_dict: A state of `state_dict`.

        Raises:
            ConfigError: The state is of other data or another seed, or it is not a state.
        """
        try:
            version, epoch, step = state_dict["version"], int(state_dict["epoch"]), int(state_dict["step"])
            left = None if state_dict["left"] is None else _to_ranges(state_dict["left"])
            rest = _to_ranges(state_dict["rest"])
            others = {name: state_dict[name] for name in self._identity}
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"this is not a state of a loader of shards: {error!r}.") from error
        if version != _VERSION:
            raise ConfigError(f"this loader reads states of version {_VERSION}, not {version}. Update fastdps.")
        for name, own in self._identity.items():
            if own != others[name]:
                raise ConfigError(
                    f"the state has {name} {others[name]}, and this loader has {own}. Open the same data."
                )
        self._go_to(epoch if rest else epoch + 1)
        if not rest:
            return
        if list(state_dict["division"]) == self._division:
            self._left, self._step = left, step
        else:
            self._left = rest


def _to_pairs(ranges: Sequence[range]) -> list[list[int]]:
    return [[numbers.start, numbers.stop] for numbers in ranges]


def _to_ranges(pairs: Sequence[Sequence[int]]) -> list[range]:
    return [range(start, stop) for start, stop in pairs]
