"""What can be packed: a data set has splits, and each split is a source of items that can be read one by one.

    Dataset.splits() --> {"train": Source, ...}      Source.items() --> [item, ...]      Source.read(item) --> Sample

A source and its items are sent to worker processes: a source holds descriptions (paths, seeds) and not data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fastdps.shards.format import Kind
from fastdps.shards.images import Image, UnreadableItemError

#: One sample: an image, or a share of votes in [0, 1], per component (see `fastdps.shards.format.COMPONENTS`).
Sample = Mapping[str, Image | float]

#: The largest file that is read as an image, in bytes: whatever has an image's name, the memory of a worker is bounded.
MAX_FILE_BYTES = 256 << 20


class Dataset(ABC):
    """One or more sources that are packed together, each as a shard set of its own."""

    @abstractmethod
    def splits(self) -> Mapping[str, Source]:
        """The sources by the directory that each is packed to, such as "train" or "2afc/val/cnn".

        Nothing is listed or loaded for it yet. Raises `FastDPSError` when the data set is not there.
        """


class Source(Dataset):
    """A source of samples of one kind; by itself a data set with the one split "train"."""

    kind: ClassVar[Kind] = "images"

    def splits(self) -> Mapping[str, Source]:
        """All of it is "train"."""
        return {"train": self}

    @abstractmethod
    def items(self) -> Sequence[Any]:
        """All items in a fixed order, the same on every call as long as the source does not change.

        Raises `FastDPSError` when the source is not there or has nothing in it.
        """

    @abstractmethod
    def read(self, item: Any) -> Sample:
        """The sample of one item.

        Raises `UnreadableItemError` for an item that gives none, and `FastDPSError` when the source as a whole has
        gone away.
        """

    @abstractmethod
    def name(self, item: Any) -> str:
        """What an item is called where it came from, in valid Unicode; different for different items.

        It stands in `rejects.jsonl`, and tells the listing of a source from that of an earlier run.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What goes into the manifest: the source's name and the options that decide its content."""


def refuse_large(size: int) -> None:
    """Raise `UnreadableItemError` for a file of so many bytes that it is not to be read into memory."""
    if size > MAX_FILE_BYTES:
        raise UnreadableItemError(f"has {size:,} bytes, and an image may have {MAX_FILE_BYTES:,}")


def printable(path: str) -> str:
    r"""A file name in valid Unicode: bytes of it that are none become escapes such as `\xff`."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
