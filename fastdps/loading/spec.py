"""The interface of the readers: the request (components, form, device) and the batches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import Tensor

from fastdps.errors import ConfigError
from fastdps.shards.storage import Location

if TYPE_CHECKING:
    from fastdps.loading.segments import Segment

#: Passes that the ids of random numbers tell apart, and their place beside the sample id.
_PASSES, _PASS_STRIDE = 1 << 16, 1 << 32

#: The tensors of one batch by component, and its sample ids.
Loaded = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """The n samples of one process in one step. At the end of an epoch n may be below the batch size, or zero.

    Attributes:
        components: Tensors on the loader's device by name: images are uint8 (n, H, W, 3) in RGB, scalars (a share of
            votes) are float32 (n,).
        ids: Sample ids, int64 (n,), always on the CPU.
        global_size: The number of samples of all processes in this step.
        passes: In a mixture, the number of the pass over its set in which each sample comes, from 0 in each epoch,
            int64 (n,) on the CPU. None where a sample comes once in an epoch.

    Example:
        >>> for batch in open_shards("shards/sample/train", batch_size=64).epoch(0):  # doctest: +SKIP
        ...     print(batch.images.shape, batch.ids.shape)
    """

    components: dict[str, Tensor]
    ids: Tensor
    global_size: int
    passes: Tensor | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return the batch with its components on a device, as Lightning moves batches; ids stay on the CPU."""
        moved = {name: part.to(device, non_blocking=non_blocking) for name, part in self.components.items()}
        return dataclasses.replace(self, components=moved)

    @property
    def draw_ids(self) -> Tensor:
        """The ids by which random numbers are drawn, int64 (n,): those of the samples, and others in later passes."""
        return self.ids if self.passes is None else self.ids + self.passes % _PASSES * _PASS_STRIDE

    @property
    def global_images(self) -> int:
        """The number of images of all processes that the throughput counts: one for each sample."""
        return self.global_size

    @property
    def loss_size(self) -> float:
        """The number by which the sum of the losses of all processes is divided."""
        return self.global_size

    @property
    def images(self) -> Tensor:
        """The images of a set of kind `images`, uint8 (n, H, W, 3). Raises `ConfigError` for other kinds."""
        if "image" not in self.components:
            raise ConfigError(f"This set has no component 'image'; it has {', '.join(self.components)}.")
        return self.components["image"]


class BatchSource(Protocol):
    """The interface by which a training reads its data: that of `ShardLoader`, where its methods are described.

    Attributes:
        samples: Number of samples in an epoch.
        steps: Number of steps of an epoch.
        prepared_s: Seconds of computation before the first epoch, part of the time of the training.
    """

    samples: int
    steps: int
    prepared_s: float

    def left_after(self, step: int, left: Sequence[range] | None = None) -> list[range]:
        """Return the part of an epoch that remains after `step` steps."""
        ...

    def steps_for(self, left: Sequence[range]) -> int:
        """Return the number of steps of a part of an epoch."""
        ...

    def epoch(
        self, epoch: int, start_step: int = 0, left: Sequence[range] | None = None, *, then: int | None = None
    ) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch."""
        ...

    def close(self) -> None:
        """Release what was prefetched."""
        ...


@dataclass(frozen=True)
class Component:
    """A requested component.

    Attributes:
        name: Its name.
        place: Its position in a line of the index.
        extensions: The extensions of its members, joined by ";".
        is_scalar: True for a float32, False for an image.
    """

    name: str
    place: int
    extensions: str
    is_scalar: bool


@dataclass(frozen=True)
class ReadSpec:
    """The request to a reader.

    Attributes:
        location: The shard set, for messages.
        directory: Where its shards are read from: the set itself, or the cache of a remote set.
        components: The requested components.
        stored_size: (height, width) in pixels of the images in the shards, None if they vary.
        is_raw: Images are stored as raw pixels.
        size: (height, width) in pixels of the images to return.
        batch_size: Samples per batch.
        device: The device of the batches.
        num_threads: Decoding threads.
    """

    location: Location
    directory: Path
    components: tuple[Component, ...]
    stored_size: tuple[int, int] | None
    is_raw: bool
    size: tuple[int, int]
    batch_size: int
    device: torch.device
    num_threads: int

    @property
    def raw_shape(self) -> tuple[int, int, int] | None:
        """The (height, width, 3) of images stored as raw pixels, None if they are encoded."""
        return (*self.stored_size, 3) if self.is_raw and self.stored_size else None

    @property
    def is_stored_as_wanted(self) -> bool:
        """True if images are stored as raw pixels of the requested size, so that they only need to be copied."""
        return self.is_raw and self.stored_size == self.size

    def shape(self, component: Component, n: int) -> tuple[int, ...]:
        """Return the shape of a batch of n samples of a component."""
        return (n,) if component.is_scalar else (n, *self.size, 3)

    def bytes(self, component: Component, n: int) -> int:
        """Return the size in bytes of a batch of n samples of a component."""
        return math.prod(self.shape(component, n)) * dtype_of(component).itemsize

    def empty(self) -> Loaded:
        """Return a batch without samples."""
        tensors = {
            c.name: torch.empty(self.shape(c, 0), dtype=dtype_of(c), device=self.device) for c in self.components
        }
        return tensors, torch.empty(0, dtype=torch.int64)


def dtype_of(component: Component) -> torch.dtype:
    """Return the type of a component's tensor."""
    return torch.float32 if component.is_scalar else torch.uint8


class Reader(Protocol):
    """Reads segments.

    While the next segment is not ready, a reader holds back no batch of the earlier ones: the next segment may be
    waiting for cache room that their shards occupy.
    """

    def read(self, segments: Iterator[Segment]) -> Generator[Loaded, None, None]:
        """Yield the batches of the segments in order. Closing the generator early stops its threads.

        Raises:
            SampleError: A sample cannot be read or decoded.
            ShardError: A shard is missing or damaged.
        """
        ...
