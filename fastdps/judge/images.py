"""The images that the page shows: of a folder or a shard set, by number.

Only the images that were listed at the start are read, by their number, so no other file can be asked for.
"""

from __future__ import annotations

import io
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from fastdps.errors import ConfigError, FastDPSError, SampleError, ShardError
from fastdps.loading.index_cache import IndexCache
from fastdps.loading.members import ShardIndex, read_member
from fastdps.packing.sources.folder import Folder, read_file
from fastdps.runtime.files import printable, write_bytes
from fastdps.shards.format import MANIFEST, Manifest, read_manifest
from fastdps.shards.images import Pixels, UnreadableItemError, decode
from fastdps.shards.judgements import read_names

#: Images used by default, drawn at random from larger sets.
MOST_IMAGES = 1000
#: Fewest images to make a triplet of.
LEAST_IMAGES = 3
#: Longest side of an image on the page in pixels, and of one that is sent without loss.
SHOWN_SIDE, LOSSLESS_SIDE = 1024, 320
#: Quality of the JPEGs that the page shows.
SHOWN_QUALITY = 90


class ImageSource(ABC):
    """Images by number.

    Attributes:
        names: The name of each image in its source.
        ids: The id of each image in its shard set; for a folder its number among all images.
    """

    names: Sequence[str]
    ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def pixels(self, number: int, size: int | None = None) -> Pixels:
        """Return an image as uint8 RGB (H, W, 3), resized to a square of side `size` if that is given.

        Raises:
            SampleError: It cannot be read.
        """

    @abstractmethod
    def file(self, number: int) -> Path | None:
        """Return the file that holds this image alone, or None if there is no such file."""

    @abstractmethod
    def select(self, numbers: Sequence[int]) -> ImageSource:
        """Return some of the images, with new numbers."""


class FolderImages(ImageSource):
    """All image files below a folder; see `fastdps.packing.sources.folder.Folder`."""

    def __init__(self, root: Path, items: Sequence[str] | None = None, ids: Sequence[int] | None = None) -> None:
        self._root = root.resolve()  # so that paths relative to another directory can be made
        self._items = Folder(root).items() if items is None else items
        self.names = [printable(item) for item in self._items]
        self.ids = range(len(self._items)) if ids is None else ids

    def pixels(self, number: int, size: int | None = None) -> Pixels:
        """Return an image. Raises `SampleError`."""
        try:
            return decode(read_file(self._root, self._items[number]), size)
        except UnreadableItemError as error:
            raise SampleError(f"{self._root / self.names[number]} {error}. Replace it, or remove it.") from error

    def file(self, number: int) -> Path | None:
        """Return the file, if its name can be written down as text."""
        item = self._items[number]
        return self._root / item if item == self.names[number] else None

    def select(self, numbers: Sequence[int]) -> FolderImages:
        """Return some of the images."""
        return FolderImages(self._root, [self._items[n] for n in numbers], [self.ids[n] for n in numbers])


class ShardImages(ImageSource):
    """The images of a local shard set of images or judgements."""

    def __init__(
        self, directory: Path, manifest: Manifest, rows: Sequence[tuple[ShardIndex, int]], names: dict[int, str]
    ) -> None:
        self._directory, self._manifest, self._rows, self._names = directory, manifest, rows, names
        self.ids = [int(index.ids[row]) for index, row in rows]
        self.names = [names.get(sample, str(sample)) for sample in self.ids]

    @classmethod
    def open(cls, directory: Path) -> ShardImages:
        """Read the indexes of a set. Raises `ShardError`."""
        manifest = read_manifest(directory)
        if manifest.kind not in ("images", "judgements"):
            raise ShardError(
                f"{directory} is a set of {manifest.kind}. Give a folder, or a set of images or judgements."
            )
        indexes = IndexCache(directory, manifest)
        opened = [indexes.open(shard) for shard in manifest.shards]
        rows = [(index, row) for index in opened for row in range(len(index.ids))]
        return cls(directory, manifest, rows, read_names(directory, manifest))

    def pixels(self, number: int, size: int | None = None) -> Pixels:
        """Return an image. Raises `SampleError`."""
        index, row = self._rows[number]
        try:
            with index.tar.open("rb", buffering=0) as tar:
                data = read_member(tar, index, row, 0)
        except OSError as error:
            raise SampleError(f"{index.tar} cannot be read: {error.strerror}. Restore it.") from error
        side = self._manifest.image_size
        try:
            if self._manifest.encoding != "raw":
                return decode(bytes(data), size)
            assert side is not None
            image = np.frombuffer(data, np.uint8).reshape(*side, 3)
            if size is None or side == (size, size):
                return image
            return np.asarray(Pillow.fromarray(image).resize((size, size), Pillow.Resampling.BILINEAR))
        except UnreadableItemError as error:
            raise SampleError(f"{index.tar}: sample {self.ids[number]} {error}. Restore the set.") from error

    def file(self, number: int) -> Path | None:  # noqa: ARG002, the interface
        """Return None: the images are members of tars."""
        return None

    def select(self, numbers: Sequence[int]) -> ShardImages:
        """Return some of the images."""
        return ShardImages(self._directory, self._manifest, [self._rows[n] for n in numbers], self._names)


def open_images(path: Path) -> ImageSource:
    """Open the images of a folder or a shard set.

    Args:
        path: A folder of image files, or the directory of a local shard set of images or judgements.

    Raises:
        ConfigError: There is no such directory, or it holds several sets.
        FastDPSError: The folder has too few images, or the set is damaged.
    """
    if not path.is_dir():
        raise ConfigError(f"{path} is not a directory. Give a folder of images, or the directory of a shard set.")
    if (path / MANIFEST).exists():
        found: ImageSource = ShardImages.open(path)
    else:
        splits = sorted(entry.name for entry in path.iterdir() if (entry / MANIFEST).exists())
        if splits:
            raise ConfigError(f"{path} holds the shard sets {', '.join(splits)}. Give one of them: {path / splits[0]}.")
        found = FolderImages(path)
    if len(found) < LEAST_IMAGES:
        raise FastDPSError(f"{path} has {len(found)} images. A triplet needs at least {LEAST_IMAGES}.")
    return found


class PictureSet(ABC):
    """What the page shows, by number: images, or images and their distorted versions.

    Attributes:
        source: The images.
        out: The directory to which pictures without a file of their own are written when they are judged.
    """

    def __init__(self, source: ImageSource, out: Path) -> None:
        self.source, self.out = source, out
        self._lock = threading.Lock()
        self._paths: dict[int, str] = {}

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def pixels(self, number: int) -> Pixels:
        """Return a picture as it is shown, uint8 RGB (H, W, 3). Raises `SampleError`."""

    @abstractmethod
    def for_metric(self, number: int, size: int) -> Pixels:
        """Return a picture as the metric sees it, uint8 RGB (size, size, 3). Raises `SampleError`."""

    @abstractmethod
    def name(self, number: int) -> str:
        """Return the name of a picture."""

    @abstractmethod
    def own_file(self, number: int) -> Path | None:
        """Return a file that holds the picture, if there is one besides those that `path` writes."""

    @abstractmethod
    def file_name(self, number: int) -> str:
        """Return the name of the file that `path` writes."""

    def path_of(self, number: int) -> str:
        """Return the path of a picture relative to `out`, as answers have it, whether it is written yet or not."""
        if number not in self._paths:
            own = self.own_file(number)
            relative = f"images/{self.file_name(number)}" if own is None else _relative(own, self.out)
            self._paths[number] = relative
        return self._paths[number]

    def numbers(self) -> dict[str, int]:
        """Return the number of each picture by its path in answers."""
        return {self.path_of(number): number for number in range(len(self))}

    def write(self, number: int) -> None:
        """Write a picture that has no file of its own, unless that was done. Raises `FastDPSError`."""
        if self.own_file(number) is not None:
            return
        with self._lock:
            target = self.out / self.path_of(number)
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                write_bytes(target, encode_png(self.pixels(number)))

    def encoded(self, number: int) -> tuple[bytes, str]:
        """Return a picture as the page gets it: the content and its type. It has no metadata of the original."""
        image = Pillow.fromarray(self.pixels(number))
        image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        if max(image.size) <= LOSSLESS_SIDE:
            return encode_png(np.asarray(image)), "image/png"
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=SHOWN_QUALITY)
        return buffer.getvalue(), "image/jpeg"


class PlainPictures(PictureSet):
    """The images themselves."""

    def __len__(self) -> int:
        return len(self.source)

    def pixels(self, number: int) -> Pixels:
        """Return an image in its own size."""
        return self.source.pixels(number)

    def for_metric(self, number: int, size: int) -> Pixels:
        """Return an image as a square, as packing makes it."""
        return self.source.pixels(number, size)

    def name(self, number: int) -> str:
        """Return the name of the image."""
        return self.source.names[number]

    def own_file(self, number: int) -> Path | None:
        """Return the file of the image."""
        return self.source.file(number)

    def file_name(self, number: int) -> str:
        """Return a name made of the id in the source."""
        return f"{self.source.ids[number]:09d}.png"


def encode_png(pixels: Pixels) -> bytes:
    """Return an image as PNG."""
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _relative(path: Path, directory: Path) -> str:
    """Return a path below a resolved directory relative to another one."""
    return Path(os.path.relpath(path, directory.resolve())).as_posix()
