"""What the readers are asked for: the components of a sample, their form, the device."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from fastdps.errors import ConfigError

if TYPE_CHECKING:
    from fastdps.loading.segments import Segment

#: The tensors of one batch by component, and its sample ids.
Loaded = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """The samples of one process in one step: n of them, fewer than the batch size or none at the end of an epoch.

    `components` maps names to tensors on the loader's device: images are uint8 (n, H, W, 3) in RGB, scalars (a share
    of votes) are float32 (n,). `ids` are the sample ids, int64 (n,), always on the CPU. `global_size` is the number
    of samples that all processes together have in this step.
    """

    components: dict[str, Tensor]
    ids: Tensor
    global_size: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def images(self) -> Tensor:
        """The images of a set of kind `images`, uint8 (n, H, W, 3). Raises `ConfigError` for other kinds."""
        if "image" not in self.components:
            raise ConfigError(f"this set has no component 'image'; it has {', '.join(self.components)}")
        return self.components["image"]


@dataclass(frozen=True)
class Component:
    """One wanted component: its name, its place in a line of the index, its extensions joined by ";"."""

    name: str
    place: int
    extensions: str
    is_scalar: bool


@dataclass(frozen=True)
class ReadSpec:
    """What a reader is to produce.

    `stored_size` and `size` are (height, width) in pixels: of the images in the shards, None where they vary, and
    of those produced. `is_raw` says that images are stored as their bare pixels. `num_threads` threads decode;
    `directory` is the shard set, for messages.
    """

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
        """The (height, width, 3) of images stored as bare pixels, None where they are encoded."""
        return (*self.stored_size, 3) if self.is_raw and self.stored_size else None

    @property
    def is_stored_as_wanted(self) -> bool:
        """Whether images are stored as the bare pixels that are wanted, so that there is nothing to do but copy."""
        return self.is_raw and self.stored_size == self.size

    def shape(self, component: Component, n: int) -> tuple[int, ...]:
        """The shape of a batch of n samples of a component."""
        return (n,) if component.is_scalar else (n, *self.size, 3)

    def bytes(self, component: Component, n: int) -> int:
        """The bytes of a batch of n samples of a component."""
        return math.prod(self.shape(component, n)) * dtype_of(component).itemsize

    def empty(self) -> Loaded:
        """A batch of no samples."""
        tensors = {
            c.name: torch.empty(self.shape(c, 0), dtype=dtype_of(c), device=self.device) for c in self.components
        }
        return tensors, torch.empty(0, dtype=torch.int64)


def dtype_of(component: Component) -> torch.dtype:
    """The type of a component's tensor."""
    return torch.float32 if component.is_scalar else torch.uint8


class Reader(Protocol):
    """Reads segments: one `Loaded` for each of their batches, in order.

    While the next segment is not there, no batch of those before is kept back: shards may come and go, and it may be
    waiting for the room of theirs. Closing the generator early stops its threads.

    Raises `SampleError` and `ShardError`.
    """

    def read(self, segments: Iterator[Segment]) -> Generator[Loaded, None, None]:
        """The batches of the segments."""
        ...
