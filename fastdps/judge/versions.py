"""Distorted versions of images as pictures: a judgement about them compares two distortions of one image.

Picture number = image * VERSIONS + version; version 0 is the image itself, at the size at which it is distorted.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fastdps.contexts.distortions import NAMES, apply_plan, draw_plan, to_float
from fastdps.judge.images import ImageSource, PictureSet
from fastdps.shards.images import Pixels

#: Pictures of an image: itself, and one of each distortion.
VERSIONS = 1 + len(NAMES)
#: Images whose versions are kept.
KEPT = 64


class DistortedPictures(PictureSet):
    """Images and one version of each by every distortion.

    Args:
        source: The images.
        out: See `PictureSet`.
        size: Side in pixels of the square images that are distorted, and shown.
        seed: Seed of the distortions. Those of an image depend on this seed and on its id only.
    """

    def __init__(self, source: ImageSource, out: Path, *, size: int, seed: int) -> None:
        super().__init__(source, out)
        self._size, self._seed = size, seed
        self._kept: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._kept_lock = threading.Lock()

    def __len__(self) -> int:
        return VERSIONS * len(self.source)

    def pixels(self, number: int) -> Pixels:
        """Return a version."""
        image, version = divmod(number, VERSIONS)
        with self._kept_lock:
            found = self._kept.get(image)
        if found is None:
            found = self._make(image)
            with self._kept_lock:
                self._kept[image] = found
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return found[version]

    def for_metric(self, number: int, size: int) -> Pixels:
        """Return a version, which has this size."""
        if size != self._size:
            raise ValueError(f"versions have {self._size} pixels, not {size}")
        return self.pixels(number)

    def name(self, number: int) -> str:
        """Return the name of the image and the distortion."""
        image, version = divmod(number, VERSIONS)
        name = self.source.names[image]
        return f"{name} ({NAMES[version - 1]})" if version else name

    def own_file(self, number: int) -> Path | None:  # noqa: ARG002, the interface
        """Return None: the judged pictures have the size of the versions."""
        return None

    def file_name(self, number: int) -> str:
        """Return a name made of the id in the source, the size, the distortion and its seed."""
        image, version = divmod(number, VERSIONS)
        what = f"{NAMES[version - 1]}-{self._seed}" if version else "original"
        return f"{self.source.ids[image]:09d}-{self._size}px-{what}.png"

    def _make(self, image: int) -> NDArray[np.uint8]:
        """Return an image and its versions, (VERSIONS, size, size, 3)."""
        pixels = np.ascontiguousarray(self.source.pixels(image, self._size))
        plan = draw_plan(torch.tensor([self.source.ids[image]]), seed=self._seed, epoch=0)
        views = apply_plan(to_float(torch.tensor(pixels)[None]), plan)[0]
        distorted = views.mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return np.concatenate([pixels[None], distorted])
