"""The interface of a data set: it has splits, and each split is a source of items that are read one by one.

    Dataset.splits() --> {"train": Source, ...}      Source.items() --> [item, ...]      Source.read(item) --> Sample

Sources and items are pickled and sent to worker processes, so a source holds descriptions (paths, seeds), not data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fastdps.packing.sources.judged_rows import JudgedRows
from fastdps.shards.format import Kind
from fastdps.shards.images import Image, UnreadableItemError

#: One sample: an image, or a share of votes in [0, 1], per component (see `fastdps.shards.format.COMPONENTS`).
Sample = Mapping[str, Image | float]

#: The size limit of an image file in bytes. It bounds the memory of a worker, whatever has the name of an image.
MAX_FILE_BYTES = 256 << 20


class Dataset(ABC):
    """A data set with one or more splits, each of which is packed to its own shard set."""

    @abstractmethod
    def splits(self) -> Mapping[str, Source]:
        """Return the sources by split, without listing or loading them.

        Returns:
            The sources by the directory that each is packed to, such as "train" or "2afc/val/cnn".

        Raises:
            FastDPSError: The data set does not exist.
        """

    def hold_out(self, fraction: float, seed: int) -> Mapping[str, Source] | None:
        """Divide the split "train" into "train" and "val", for a data set whose items cannot be divided one by one.

        Args:
            fraction: The fraction that goes to "val", in (0, 1).
            seed: The seed of the choice.

        Returns:
            The sources by split; None to have the items divided one by one.

        Raises:
            FastDPSError: The data set does not exist, or one of the splits would be empty.
        """
        del fraction, seed
        return None


class Source(Dataset):
    """A source of samples of one kind. As a data set it has one split, "train".

    Attributes:
        kind: The kind of the samples: "images", "triplets", "pairs" or "judgements".
    """

    kind: ClassVar[Kind] = "images"

    def splits(self) -> Mapping[str, Source]:
        """Return the source itself as the split "train"."""
        return {"train": self}

    @abstractmethod
    def items(self) -> Sequence[Any]:
        """Return all items in a fixed order, the same on every call as long as the source does not change.

        Raises:
            FastDPSError: The source does not exist, or is empty.
        """

    @abstractmethod
    def read(self, item: Any) -> Sample:
        """Return the sample of one item.

        Raises:
            UnreadableItemError: The item has no valid sample; packing rejects it.
            FastDPSError: The source as a whole is no longer available; packing stops.
        """

    @abstractmethod
    def name(self, item: Any) -> str:
        """Return the name of an item in the source: valid Unicode, unique within the source.

        It identifies the item in `rejects.jsonl`. The digest of all names tells whether the source has changed.
        """

    def judgements(self) -> JudgedRows | None:
        """Return the judgements about the items; None for a source of another kind than "judgements"."""
        return None

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the name of the source and the options that determine its content, for the manifest."""


def check_file_size(size: int) -> None:
    """Raise `UnreadableItemError` for a file of more than `MAX_FILE_BYTES` bytes."""
    if size > MAX_FILE_BYTES:
        raise UnreadableItemError(f"has {size:,} bytes; an image may have at most {MAX_FILE_BYTES:,}")
