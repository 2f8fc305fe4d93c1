"""The data sets that can be packed, by name: a row of `SOURCES` each, and `open_source`, which makes one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypedDict, Unpack

from fastdps.errors import ConfigError, did_you_mean
from fastdps.packing.options import SIZE
from fastdps.packing.sources.bapps import Bapps
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.packing.sources.folder import Folder
from fastdps.packing.sources.imagenet import ImageNet
from fastdps.packing.sources.judged_rows import HoldoutBy
from fastdps.packing.sources.judgements import JudgementFile
from fastdps.packing.sources.source import Dataset
from fastdps.packing.sources.torchvision_sets import stl10, svhn
from fastdps.packing.sources.triplets import Triplets
from fastdps.packing.sources.webdataset_shards import WebDatasetShards

#: Dead leaves that are drawn by default.
COUNT = 1500


@dataclass(frozen=True)
class SourceSettings:
    """The settings of `open_source`. Each kind of source takes some of them.

    Attributes:
        path: The directory or file of the data set.
        download: Whether missing files are downloaded to `path`.
        count: The number of images that are drawn; None for the default, `COUNT`.
        size: The side of drawn images, in pixels.
        seed: The seed of drawn images.
        by: The column of a judgement file whose value is the judge; None for no judges.
        holdout_by: What a holdout of judgements divides: "image", "row" or "judge".
        component: The extension of the image in the samples of others' shards; None if each has one image.
    """

    path: Path | None = None
    download: bool = False
    count: int | None = None
    size: int = SIZE
    seed: int = 0
    by: str | None = None
    holdout_by: HoldoutBy = "image"
    component: str | None = None

    @property
    def required_path(self) -> Path:
        """The path. Raises `ConfigError` when it is missing."""
        if self.path is None:
            raise ConfigError("this kind of source needs a path.")
        return self.path


@dataclass(frozen=True)
class SourceKind:
    """A row of `SOURCES`.

    Attributes:
        make: Returns the data set for settings.
        settings: The names of the settings that the kind takes. A kind that takes `path` requires it.
        splits: The splits that the command packs by default; None for all.
    """

    make: Callable[[SourceSettings], Dataset]
    settings: tuple[str, ...] = ("path",)
    splits: tuple[str, ...] | None = None


SOURCES: dict[str, SourceKind] = {
    "imagenet": SourceKind(lambda s: ImageNet(s.required_path)),
    "bapps": SourceKind(lambda s: Bapps(s.required_path)),
    "stl10": SourceKind(
        lambda s: stl10(s.required_path, download=s.download), ("path", "download"), splits=("train", "test")
    ),
    "svhn": SourceKind(
        lambda s: svhn(s.required_path, download=s.download), ("path", "download"), splits=("train", "test")
    ),
    "folder": SourceKind(lambda s: Folder(s.required_path)),
    "webdataset": SourceKind(lambda s: WebDatasetShards(s.required_path, s.component), ("path", "component")),
    "triplets": SourceKind(lambda s: Triplets(s.required_path)),
    "judgements": SourceKind(
        lambda s: JudgementFile(s.required_path, s.by, s.holdout_by), ("path", "by", "holdout_by")
    ),
    "deadleaves": SourceKind(
        lambda s: DeadLeaves(COUNT if s.count is None else s.count, s.size, s.seed), ("count", "size", "seed")
    ),
}


class SourceOptions(TypedDict, total=False):
    """The keywords of `open_source`: the settings in `SourceSettings`, but for the path."""

    download: bool
    count: int | None
    size: int
    seed: int
    by: str | None
    holdout_by: HoldoutBy
    component: str | None


def open_source(kind: str, path: str | PathLike[str] | None = None, **settings: Unpack[SourceOptions]) -> Dataset:
    """Return the data set of a kind, ready to be packed. No image is read yet.

    Args:
        kind: A name in `SOURCES`: imagenet, bapps, stl10, svhn, folder, webdataset, triplets, judgements or
            deadleaves.
        path: The directory of the data set. imagenet also takes one of the official tars, webdataset one tar or a
            pattern such as "laion/{000..099}.tar". triplets takes a .csv or .jsonl file with the columns ref, p0, p1
            and judge; judgements also takes .parquet and further columns, see
            `fastdps.packing.sources.judgement_formats`. deadleaves takes none.
        **settings: What some kinds take:

            * download: Download missing files to `path` (stl10 and svhn).
            * count: The number of images to draw (deadleaves); 1500 by default.
            * size: The side of the images to draw, in pixels (deadleaves); at least 8.
            * seed: The seed of the images to draw (deadleaves).
            * by: The column whose value is the judge (judgements); None for no judges.
            * holdout_by: What a holdout divides (judgements): "image", "row" or "judge".
            * component: The extension of the image, for samples with several images, such as "jpg" (webdataset).

    Returns:
        The data set, for `fastdps.packing.pack.pack`.

    Raises:
        ConfigError: The kind is unknown, its path is missing, or a setting is given that the kind does not take.

    Example:
        >>> open_source("deadleaves", count=100, seed=1)
        DeadLeaves(count=100, size=64, seed=1)
    """
    if kind not in SOURCES:
        raise ConfigError(f"{kind!r} is not a kind of source: {', '.join(SOURCES)}.{did_you_mean(kind, SOURCES)}")
    source_kind = SOURCES[kind]
    given = SourceSettings(None if path is None else Path(path), **settings)
    default = SourceSettings()
    for setting in dataclasses.fields(SourceSettings):
        is_given = getattr(given, setting.name) != getattr(default, setting.name)
        if is_given and setting.name not in source_kind.settings:
            raise ConfigError(f"{kind} takes no {setting.name}; it takes {', '.join(source_kind.settings)}.")
    if "path" in source_kind.settings and given.path is None:
        raise ConfigError(f'{kind} needs a path: open_source("{kind}", PATH).')
    return source_kind.make(given)
