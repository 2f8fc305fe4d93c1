"""The judgements that `adapt` takes, in any form, as images and answers.

file, directory of files, judgement set, list of (ref, a, b, choice) --> images (n, 3, S, S) uint8, Answers
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torch.nn import functional as F

from fastdps.errors import ConfigError, FastDPSError, ImageError, SampleError
from fastdps.loading.options import LoadOptions
from fastdps.metric.inputs import batched
from fastdps.packing.sources.folder import read_file
from fastdps.packing.sources.judgements import SHOWN_ROWS, JudgementFile
from fastdps.shards.format import read_manifest
from fastdps.shards.images import UnreadableItemError, decode
from fastdps.shards.judgements import read_judgements
from fastdps.shards.storage import Location, locate
from fastdps.training.answers import Answers
from fastdps.training.judgement_files import SIZE, SUFFIXES
from fastdps.training.run_config import open_images

#: An image of a judgement in a list: a path, a Pillow image, or a tensor (3, H, W), float in [0, 1] or uint8.
ImageLike = str | PathLike[str] | Pillow.Image | Tensor
#: (ref, a, b, choice), or with the name of the judge; choice is "a", "b", or the share of the votes for b.
Judgement = Sequence[Any]
Judgements = str | PathLike[str] | Sequence[Judgement]
_CHOICES = {"a": 0.0, "b": 1.0}


@dataclass(frozen=True)
class AnsweredImages:
    """Judgements and their images.

    Attributes:
        images: The images, uint8 (n, 3, S, S).
        answers: The judgements.
        path: Where they are from; "" for a list.
        source: The entries of a manifest: name, format, numbers of rows.
        sha256: A hash of their content.
    """

    images: Tensor
    answers: Answers
    path: str
    source: dict[str, Any]
    sha256: str


def read_answers(
    judgements: Judgements, *, size: int | None = None, by: str | None = None, loading: LoadOptions | None = None
) -> AnsweredImages:
    """Read judgements and their images.

    Args:
        judgements: A .csv, .jsonl or .parquet file, a directory of such files, a judgement set (a directory or a URL),
            or a list of (ref, a, b, choice) or (ref, a, b, choice, judge).
        size: Side in pixels to which images are resized. None for the size of a judgement set, and 128 for others.
        by: The column of a file whose value is the judge; "judge" or None for the format's own.
        loading: How shards are read.

    Returns:
        The judgements.

    Raises:
        ConfigError: There are no judgements, or one of a list is not valid.
        SampleError: An image cannot be read.
        ShardError: The judgement set is damaged.
        FastDPSError: A file cannot be read, or has invalid rows.
    """
    if not isinstance(judgements, str | PathLike):
        return _of_list(judgements, size or SIZE)
    location = locate(judgements)
    files = _files(location)
    if files:
        return _of_files(files, str(location), size or SIZE, None if by == "judge" else by)
    return _of_set(location, size, loading or LoadOptions())


def _files(location: Location) -> list[Path]:
    """Return the files of judgements at a location; none if it is a judgement set."""
    if not isinstance(location, Path):
        return []
    if location.is_file():
        return [location]
    if location.is_dir() and not (location / "manifest.json").exists():
        found = sorted(path for path in location.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
        if not found:
            raise ConfigError(f"{location} is neither a judgement set nor a directory of files {', '.join(SUFFIXES)}.")
        return found
    return []


def _of_files(files: Sequence[Path], path: str, size: int, by: str | None) -> AnsweredImages:
    """Return the judgements of files. Files in one directory share their images, which are named relative to it."""
    triplets, shares, votes, judges, place = [], [], [], [], dict[str, int]()
    digest = hashlib.sha256()
    description: dict[str, Any] = {}
    for file in files:
        source = JudgementFile(file, by=by).splits()["train"]
        judged = source.judgements()
        if judged is None:
            raise TypeError(f"{file} is not a source of judgements")
        if judged.rejected:
            shown = "; ".join(f"line {row.row} {row.reason}" for row in judged.rejected[:SHOWN_ROWS])
            raise FastDPSError(f"{file} has {len(judged.rejected):,} invalid rows: {shown}. Correct or remove them.")
        description = source.describe()
        digest.update(description["sha256"].encode())
        table, names = judged.table, judged.images
        indices = np.array([place.setdefault(name, len(place)) for name in names], np.int64)
        triplets.append(indices[np.stack([table.ref, table.a, table.b], axis=1)])
        count = table.votes_a + table.votes_b
        shares.append(table.votes_b / count)
        votes.append(count)
        judges += [None if number < 0 else table.judges[number] for number in table.judge.tolist()]
    images = _read_images(files[0].parent, list(place), size)
    answers = Answers.of(np.concatenate(triplets), np.concatenate(shares), np.concatenate(votes), judges)
    digest.update(images.numpy().tobytes())
    return AnsweredImages(images, answers, path, description, digest.hexdigest())


def _read_images(root: Path, names: Sequence[str], size: int) -> Tensor:
    """Return the images of files (n, 3, S, S). Raises `SampleError`, which names the file."""
    images = torch.empty(len(names), 3, size, size, dtype=torch.uint8)
    for number, name in enumerate(names):
        try:
            images[number] = torch.tensor(decode(read_file(root, name), size)).movedim(-1, 0)
        except (UnreadableItemError, ValueError) as error:
            raise SampleError(f"{root / name} {error}. Replace it, or leave its judgements out.") from error
    return images


def _of_set(location: Location, size: int | None, loading: LoadOptions) -> AnsweredImages:
    manifest = read_manifest(location)
    table = read_judgements(location, manifest)
    loader = open_images(location, size=size, device=torch.device("cpu"), options=loading)
    ids = np.unique(np.stack([table.ref, table.a, table.b]))
    parts = []
    with closing(loader.epoch(0)) as batches:
        for batch in batches:
            used = torch.from_numpy(np.isin(batch.ids.numpy(), ids))
            parts.append((batch.ids[used], batch.images[used].movedim(-1, 1).contiguous()))
    found, images = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    images = images[found.argsort()]
    sha256 = manifest.content_sha256()
    return AnsweredImages(images, Answers.of_table(table, ids), str(location), manifest.source, sha256)


def _of_list(judgements: Sequence[Judgement], size: int) -> AnsweredImages:
    """Return the judgements of a list. The same path or object is the same image."""
    place: dict[Any, int] = {}
    images: list[ImageLike] = []
    rows, shares, judges = [], [], []
    for number, judgement in enumerate(judgements, start=1):
        if isinstance(judgement, str) or len(judgement) not in (4, 5):
            raise ConfigError(f"judgement {number} is not (ref, a, b, choice), nor with a judge as a fifth value.")
        shares.append(_share(judgement[3], number))
        judges.append(judgement[4] if len(judgement) == 5 else None)
        row = []
        for image in judgement[:3]:
            key = str(Path(image)) if isinstance(image, str | PathLike) else id(image)
            if key not in place:
                place[key] = len(images)
                images.append(image)
            row.append(place[key])
        rows.append(row)
    if not rows:
        raise ConfigError("there are no judgements to adapt to. Give at least one (ref, a, b, choice).")
    answers = Answers.of(rows, shares, None, judges)
    pixels = torch.stack([_pixels(image, size) for image in images])
    content = json.dumps([rows, shares, [judge or "" for judge in judges]]).encode()
    digest = hashlib.sha256(content + pixels.numpy().tobytes()).hexdigest()
    return AnsweredImages(pixels, answers, "", {"name": "judgements"}, digest)


def _share(choice: Any, number: int) -> float:
    """Return the share of the votes for b. Raises `ConfigError`."""
    share = _CHOICES.get(choice) if isinstance(choice, str) else choice
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ConfigError(
            f"judgement {number} has the choice {choice!r}; it is 'a', 'b', or the share of votes for b: 0, 1, or 0.5 "
            "for 'cannot say'."
        )
    return float(share)


def _pixels(image: ImageLike, size: int) -> Tensor:
    """Return an image as uint8 (3, S, S). Raises `SampleError` or `ImageError`."""
    if isinstance(image, str | PathLike):
        path = Path(image)
        return _read_images(path.parent, [path.name], size)[0]
    if isinstance(image, Pillow.Image):
        resized = image.convert("RGB").resize((size, size), Pillow.Resampling.BILINEAR)
        return torch.tensor(np.asarray(resized)).movedim(-1, 0)
    if not isinstance(image, Tensor):
        raise ImageError(f"an image of a judgement is a path, a Pillow image or a tensor, not {type(image).__name__}.")
    batch = batched(image, "the image of a judgement")
    values = batch.float() * (1 if batch.dtype == torch.uint8 else 255)
    if values.shape[2:] != (size, size):
        values = F.interpolate(values, size=(size, size), mode="bilinear", antialias=True)
    return values[0].round().clamp(0, 255).to(torch.uint8)
