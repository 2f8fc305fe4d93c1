"""The images of the bench: packed once by fastdps, and kept.

photographs of $FASTDPS_TEST_DATA/imagenet-sample, or dead leaves --pack--> distinct images, raw 64 px
--repeat--> sets of any number of 64 px images, raw, PNG or JPEG
photographs --pack--> sets at 256 px and at full size
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastdps.errors import ConfigError
from fastdps.loading.loader import open_shards
from fastdps.loading.options import LoadOptions
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.packing.sources.folder import Folder
from fastdps.packing.sources.source import Sample, Source
from fastdps.shards.format import Encoding

PHOTOS_VARIABLE = "FASTDPS_TEST_DATA"
SIZE = 64
#: The maximum number of distinct images; larger sets repeat them.
DISTINCT = 700


def find_photos() -> Path | None:
    """Return the directory of real images, or None."""
    root = os.environ.get(PHOTOS_VARIABLE)
    path = Path(root) / "imagenet-sample" if root else None
    return path if path and path.is_dir() else None


@dataclass(frozen=True)
class Repeated(Source):
    """A source that repeats a few images.

    Attributes:
        pixels: The distinct images (n, H, W, 3), uint8.
        count: The number of items.
        name_of_images: The name of the distinct images.
    """

    pixels: NDArray[np.uint8] = field(repr=False)
    count: int
    name_of_images: str

    def items(self) -> Sequence[int]:
        """Return the numbers of the images."""
        return range(self.count)

    def read(self, item: int) -> Sample:
        """Return the pixels of one image."""
        return {"image": self.pixels[item % len(self.pixels)]}

    def name(self, item: int) -> str:
        """Return the number of the image."""
        return f"image {item}"

    def describe(self) -> dict[str, Any]:
        """Return the name and the number of distinct images."""
        return {"name": f"{self.name_of_images}, repeated", "distinct": len(self.pixels)}


@dataclass(frozen=True)
class EvenSelection(Source):
    """At most `count` items of another source, evenly spaced.

    Attributes:
        source: The other source.
        count: The maximum number of items.
    """

    source: Source
    count: int

    def items(self) -> Sequence[Any]:
        """Return the selected items."""
        every = self.source.items()
        count = min(self.count, len(every))
        return [every[number * len(every) // count] for number in range(count)]

    def read(self, item: Any) -> Sample:
        """Return the sample of the other source."""
        return self.source.read(item)

    def name(self, item: Any) -> str:
        """Return the name in the other source."""
        return self.source.name(item)

    def describe(self) -> dict[str, Any]:
        """Return the description of the other source, and the maximum number of items."""
        return {**self.source.describe(), "at_most": self.count}


@dataclass(frozen=True)
class BenchData:
    """The shard sets of the bench.

    Methods that return the directory of a set pack it first if it does not exist. They raise the errors of
    `fastdps.packing.pack.pack`.

    Attributes:
        directory: The directory of all sets.
        images: The default number of images in a set.
        photos: The directory of real images; None to draw dead leaves.
    """

    directory: Path
    images: int
    photos: Path | None

    @property
    def source(self) -> str:
        """The name of the distinct images."""
        return "imagenet-sample" if self.photos else "deadleaves"

    def small(self, encoding: Encoding, images: int | None = None, shards: int | None = None) -> Path:
        """Return a set of 64 px images, by default `self.images` of them, divided into `shards` if given."""
        count = images or self.images
        options, name = PackOptions(encoding=encoding, size=SIZE), f"{encoding}-{SIZE}-{count}"
        if shards is not None:
            options, name = replace(options, samples_per_shard=-(-count // shards)), f"{name}-in-{shards}"
        source = Repeated(self._pixels(), count, self.source)
        return self._packed(name, source, options, workers=1)

    def photographs(self, size: int | None, encoding: Encoding = "jpeg") -> Path:
        """Return a set of photographs, square with `size` pixels a side, or as they are for None. Needs `photos`."""
        if self.photos is None:
            raise ValueError("photographs need FASTDPS_TEST_DATA")
        source = EvenSelection(Folder(self.photos), min(self.images, DISTINCT))
        options = PackOptions(encoding=encoding if size else "keep", size=size)
        return self._packed(f"{encoding}-{size or 'full'}-{source.count}", source, options)

    def photo_files(self) -> list[Path]:
        """Return the files of the photographs, for baselines that load files; empty without `photos`."""
        found = sorted(path for path in self.photos.rglob("*") if path.is_file()) if self.photos else []
        return found[: min(self.images, DISTINCT)]

    def files(self) -> list[Path]:
        """Return the distinct 64 px images as PNG files, for baselines that load files."""
        directory = self.directory / self.source / "files"
        pixels = self._pixels()
        paths = [directory / f"{number:06d}.png" for number in range(len(pixels))]
        directory.mkdir(parents=True, exist_ok=True)
        for path, image in zip(paths, pixels, strict=True):
            if not path.exists():
                temporary = path.with_suffix(".partial")
                Image.fromarray(image).save(temporary, "png")
                temporary.replace(path)
        return paths

    def _pixels(self) -> NDArray[np.uint8]:
        """Return the distinct images (n, 64, 64, 3), uint8."""
        count = min(self.images, DISTINCT)
        source = EvenSelection(Folder(self.photos), count) if self.photos else DeadLeaves(count, SIZE, seed=0)
        directory = self._packed(f"distinct-{count}", source, PackOptions(encoding="raw", size=SIZE))
        loader = open_shards(directory, batch_size=count, seed=None, options=LoadOptions(loader="portable"))
        with closing(loader.epoch(0)) as batches:
            return next(batches).images.numpy()

    def _packed(self, name: str, source: Source, options: PackOptions, workers: int | None = None) -> Path:
        out = self.directory / self.source / name
        try:
            pack(source, out, options, workers=workers)
        except ConfigError:  # the directory has a set of other images, or of another version
            pack(source, out, options, workers=workers, overwrite=True)
        return out / "train"
