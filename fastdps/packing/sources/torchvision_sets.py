"""STL-10 and SVHN through torchvision's classes, which know their files, check them, and can download them.

torchvision reads a whole split into memory, in the process that packs: 2.8 GB for STL-10's "unlabeled", 1.6 GB for
SVHN's "extra". Workers get the pixels of one part at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdps.errors import FastDPSError
from fastdps.packing.sources.source import Dataset, Sample, Source


class NumberedImage(NamedTuple):
    """An image (height, width, 3) uint8 and its number in its split."""

    number: int
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class TorchvisionDataset(Dataset):
    """A data set of torchvision by the name of its class, in the directory `root` as torchvision lays it out.

    `split_names` are torchvision's own. With `download` files that are missing are fetched.
    """

    root: Path
    class_name: str
    split_names: tuple[str, ...]
    download: bool = False

    def splits(self) -> Mapping[str, Source]:
        """All splits; each is loaded when its items are asked for."""
        return {split: TorchvisionSplit(self, split) for split in self.split_names}


@dataclass(frozen=True)
class TorchvisionSplit(Source):
    """One split of such a data set; an item carries its pixels, since torchvision holds them all."""

    dataset: TorchvisionDataset
    split: str

    def items(self) -> Sequence[NumberedImage]:
        """All images. Raises `FastDPSError` when files are missing or damaged and not to be downloaded."""
        import torchvision  # takes seconds to import, and other sources do without

        dataset = self.dataset
        try:
            loaded = getattr(torchvision.datasets, dataset.class_name)(
                str(dataset.root), split=self.split, download=dataset.download
            )
        except ImportError as error:
            raise FastDPSError(f"{dataset.class_name} needs another package: {error}. pip install scipy") from error
        except Exception as error:  # a download fails in many ways
            hint = "Check the network" if dataset.download else "Correct --source, or pass --download"
            reason = str(error).rstrip(".")
            raise FastDPSError(
                f"{dataset.class_name} in {dataset.root}, split {self.split}: {reason}. {hint}."
            ) from error
        images = loaded.data.transpose(0, 2, 3, 1)  # torchvision has the channels first
        return [NumberedImage(number, pixels) for number, pixels in enumerate(images)]

    def read(self, item: NumberedImage) -> Sample:
        """The pixels."""
        return {"image": np.ascontiguousarray(item.pixels)}

    def name(self, item: NumberedImage) -> str:
        """The split and the number."""
        return f"{self.split} {item.number}"

    def describe(self) -> dict[str, Any]:
        """The name of the data set."""
        return {"name": self.dataset.class_name.lower()}


def stl10(root: Path, *, download: bool = False) -> TorchvisionDataset:
    """STL-10 (Coates et al. 2011): 96 x 96."""
    return TorchvisionDataset(root, "STL10", ("train", "test", "unlabeled"), download)


def svhn(root: Path, *, download: bool = False) -> TorchvisionDataset:
    """SVHN (Netzer et al. 2011), cropped digits: 32 x 32."""
    return TorchvisionDataset(root, "SVHN", ("train", "test", "extra"), download)
