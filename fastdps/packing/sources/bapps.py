"""BAPPS (Zhang et al. 2018): human judgements of image pairs, 2AFC as triplets and JND as pairs.

    2afc/{train,val}/SUBSET/{ref,p0,p1}/NNNNNN.png  judge/NNNNNN.npy   share of votes that p1 is closer to ref
    jnd/val/SUBSET/{p0,p1}/NNNNNN.png               same/NNNNNN.npy    share of votes that both look the same

Files belong together by name, never by position. Some downloads have all of it in a directory `dataset`.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastdps.errors import FastDPSError
from fastdps.packing.sources.folder import read_file, require_directory
from fastdps.packing.sources.source import Dataset, Sample, Source
from fastdps.runtime.files import printable
from fastdps.shards.format import COMPONENTS, SCALARS
from fastdps.shards.images import Image, UnreadableItemError

#: The numbers of samples in the published sub-sets.
PUBLISHED = {
    "2afc/val/traditional": 4720,
    "2afc/val/cnn": 4720,
    "2afc/val/superres": 10856,
    "2afc/val/deblur": 9440,
    "2afc/val/color": 4720,
    "2afc/val/frameinterp": 1888,
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bapps(Dataset):
    """BAPPS in a directory.

    Attributes:
        root: The directory that contains `2afc` and `jnd`, directly or in its directory `dataset`.
    """

    root: Path

    def splits(self) -> Mapping[str, Source]:
        """Return one split per existing sub-set, by its path, such as "2afc/val/cnn"."""
        require_directory(self.root)
        base = self.root / "dataset" if (self.root / "dataset").is_dir() else self.root
        found: dict[str, Source] = {}
        for parent, subset in (("2afc/train", TwoAfc), ("2afc/val", TwoAfc), ("jnd/val", Jnd)):
            for directory in sorted(path for path in (base / parent).glob("*") if path.is_dir()):
                found[f"{parent}/{directory.name}"] = subset(base, f"{parent}/{directory.name}")
        if not found:
            raise FastDPSError(
                f"{self.root} is not BAPPS: it has no 2afc/train/*, 2afc/val/* or jnd/val/*. Correct --source."
            )
        return found


@dataclass(frozen=True)
class Subset(Source):
    """One sub-set, with a directory per component. An item is the common name of its files, without extension.

    Attributes:
        base: The directory of BAPPS.
        path: The path of the sub-set relative to it.
    """

    base: Path
    path: str

    def items(self) -> Sequence[str]:
        """Return the names found in any of the directories. Raises `FastDPSError` when a directory is missing."""
        names: set[str] = set()
        for component in COMPONENTS[self.kind]:
            directory = self.base / self.path / component
            if not directory.is_dir():
                raise FastDPSError(
                    f"{self.base / self.path} has no directory {component}: the download is incomplete. Repeat it."
                )
            names |= {path.stem for path in directory.glob(f"*{_ending(component)}")}
        if not names:
            raise FastDPSError(f"{self.base / self.path} has no samples: the download is incomplete. Repeat it.")
        if len(names) != (published := PUBLISHED.get(self.path, len(names))):
            _log.warning("BAPPS %s has %d samples, but %d were published", self.path, len(names), published)
        return sorted(names)

    def read(self, item: str) -> Sample:
        """Return the sample. Raises `UnreadableItemError` when a file is missing or has no valid share of votes."""
        return {component: self._component(component, item) for component in COMPONENTS[self.kind]}

    def name(self, item: str) -> str:
        """Return the path of the sub-set and the name."""
        return printable(f"{self.path}/{item}")

    def describe(self) -> dict[str, Any]:
        """Return the name of the data set. The split names the sub-set."""
        return {"name": "bapps"}

    def _component(self, component: str, item: str) -> Image | float:
        file = f"{component}/{item}{_ending(component)}"
        try:
            data = read_file(self.base / self.path, file)
        except UnreadableItemError as error:
            raise UnreadableItemError(f"{file} {error}") from error
        if component not in SCALARS:
            return data
        try:
            votes = np.load(io.BytesIO(data), allow_pickle=False)
        except Exception as error:  # numpy raises many kinds on damaged files
            raise UnreadableItemError(f"{file} is not a NumPy array: {error}") from error
        if not isinstance(votes, np.ndarray) or votes.size != 1 or votes.dtype.kind not in "fiub":
            raise UnreadableItemError(f"{file} does not contain exactly one number")
        return float(votes.item())


class TwoAfc(Subset):
    """Two-alternative forced choice: which of p0 and p1 is closer to ref."""

    kind = "triplets"


class Jnd(Subset):
    """Just noticeable difference: whether p0 and p1 look the same."""

    kind = "pairs"


def _ending(component: str) -> str:
    return ".npy" if component in SCALARS else ".png"
