"""What a source of samples is: something with items in a fixed order, each of which can be read by itself.

A source is sent to worker processes, so it holds descriptions (paths, seeds) and not data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastdps.shards import Kind

#: An image as its source has it: an encoded file, or uint8 RGB pixels (height, width, 3).
Image = bytes | NDArray[np.uint8]
#: One sample: an image, or a share of votes in [0, 1], per component (see `fastdps.shards.COMPONENTS`).
Sample = Mapping[str, Image | float]


class UnreadableItemError(Exception):
    """An item gives no sample, for the reason in its message; it is rejected and packing goes on."""


class Source(ABC):
    """A source of samples of one kind."""

    kind: ClassVar[Kind] = "images"

    @abstractmethod
    def items(self) -> Sequence[Any]:
        """All items in a fixed order, the same on every call as long as the source does not change.

        Raises `FastDPSError` when the source is not there or has nothing in it.
        """

    @abstractmethod
    def read(self, item: Any) -> Sample:
        """The sample of one item. Raises `UnreadableItemError`."""

    @abstractmethod
    def name(self, item: Any) -> str:
        """What an item is called where it came from; for people, in `rejects.jsonl`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What goes into the manifest: the source's name and the options that decide its content."""
