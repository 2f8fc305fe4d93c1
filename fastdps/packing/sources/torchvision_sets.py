"""STL-10 and SVHN through torchvision's classes, which verify their files and can download them.

torchvision reads a whole split into the memory of the main process: 2.8 GB for STL-10's "unlabeled", 1.6 GB for SVHN's
"extra". Workers receive the pixels of one chunk at a time.
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
    """One image of a split.

    Attributes:
        number: The number of the image in its split.
        pixels: The pixels (height, width, 3), uint8.
    """

    number: int
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class TorchvisionDataset(Dataset):
    """A data set of torchvision.

    Attributes:
        root: The directory, in torchvision's layout.
        class_name: The name of torchvision's class.
        split_names: The splits, by torchvision's names.
        download: Download missing files.
    """

    root: Path
    class_name: str
    split_names: tuple[str, ...]
    download: bool = False

    def splits(self) -> Mapping[str, Source]:
        """Return all splits. Each is loaded when its items are requested."""
        return {split: TorchvisionSplit(self, split) for split in self.split_names}


@dataclass(frozen=True)
class TorchvisionSplit(Source):
    """One split of a data set of torchvision. Items contain their pixels, since torchvision loads them all.

    Attributes:
        dataset: The data set.
        split: The name of the split.
    """

    dataset: TorchvisionDataset
    split: str

    def items(self) -> Sequence[NumberedImage]:
        """Return all images. Raises `FastDPSError` when files are missing or damaged, or a download fails."""
        import torchvision  # imported here because it takes seconds, and other sources do not need it

        dataset = self.dataset
        try:
            loaded = getattr(torchvision.datasets, dataset.class_name)(
                str(dataset.root), split=self.split, download=dataset.download
            )
        except ImportError as error:
            raise FastDPSError(
                f"{dataset.class_name} needs another package: {error}. Install it with `pip install scipy`."
            ) from error
        except Exception as error:  # downloads raise many kinds of errors
            hint = "Check the network" if dataset.download else "Correct --source, or pass --download"
            reason = str(error).rstrip(".")
            raise FastDPSError(
                f"{dataset.class_name} in {dataset.root}, split {self.split}: {reason}. {hint}."
            ) from error
        images = loaded.data.transpose(0, 2, 3, 1)  # torchvision stores channels first
        return [NumberedImage(number, pixels) for number, pixels in enumerate(images)]

    def read(self, item: NumberedImage) -> Sample:
        """Return the pixels."""
        return {"image": np.ascontiguousarray(item.pixels)}

    def name(self, item: NumberedImage) -> str:
        """Return the split and the number."""
        return f"{self.split} {item.number}"

    def describe(self) -> dict[str, Any]:
        """Return the name of the data set."""
        return {"name": self.dataset.class_name.lower()}


def stl10(root: Path, *, download: bool = False) -> TorchvisionDataset:
    """Return STL-10 (Coates et al. 2011): 96 x 96 pixels."""
    return TorchvisionDataset(root, "STL10", ("train", "test", "unlabeled"), download)


def svhn(root: Path, *, download: bool = False) -> TorchvisionDataset:
    """Return SVHN (Netzer et al. 2011), cropped digits: 32 x 32 pixels."""
    return TorchvisionDataset(root, "SVHN", ("train", "test", "extra"), download)
