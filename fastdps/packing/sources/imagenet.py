"""ImageNet (ILSVRC 2012): the official tars, packed or unpacked into one folder per class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastdps.packing.sources.folder import Folder, require_directory
from fastdps.packing.sources.source import Dataset, Source
from fastdps.packing.sources.tars import TarImages

NAME = "imagenet"
#: The official tars by split. The tar of "train" contains one tar per class.
TARS = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}


@dataclass(frozen=True)
class ImageNet(Dataset):
    """ImageNet at a path.

    Attributes:
        path: One of the official tars, a directory with them, a directory with `train` and `val`, or a directory of
            class folders.
    """

    path: Path

    def splits(self) -> Mapping[str, Source]:
        """Return "train" and "val", or the one that exists. Raises `FastDPSError` when the path does not exist."""
        if self.path.is_file():
            split = "val" if self.path.name == TARS["val"] else "train"
            return {split: TarImages(self.path, NAME)}
        require_directory(self.path)
        tars: dict[str, Source] = {
            split: TarImages(self.path / name, NAME) for split, name in TARS.items() if (self.path / name).is_file()
        }
        folders: dict[str, Source] = {
            split: Folder(self.path / split, NAME) for split in TARS if (self.path / split).is_dir()
        }
        return tars or folders or {"train": Folder(self.path, NAME)}
