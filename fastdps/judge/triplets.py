"""The triplets that the page may ask: of all pictures, of versions of one image, or of a list.

`random(k)` is the k-th triplet of a random sequence that is the same for all people, so that their answers overlap.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastdps.errors import ConfigError, FastDPSError
from fastdps.judge.images import ImageSource
from fastdps.judge.versions import VERSIONS
from fastdps.packing.sources.folder import is_image_name
from fastdps.packing.sources.judgement_rows import FileRow, open_rows
from fastdps.shards.judgements import JudgementTable

#: Columns of a file of triplets: the reference, and two names of each candidate.
COLUMNS = (("ref",), ("p0", "a"), ("p1", "b"))
#: Triplets without a known image that a message names.
SHOWN_ROWS = 3


class Triplet(NamedTuple):
    """Three pictures by number.

    Attributes:
        ref: The reference.
        a: One candidate.
        b: The other one.
    """

    ref: int
    a: int
    b: int

    @property
    def key(self) -> tuple[int, int, int]:
        """The triplet without the order of its candidates."""
        return self.ref, min(self.a, self.b), max(self.a, self.b)


class Deck(ABC):
    """A set of triplets to ask.

    Attributes:
        seed: Seed of the random sequence.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @property
    def count(self) -> int | None:
        """The number of triplets; None if there are more than anyone answers."""
        return None

    @abstractmethod
    def random(self, number: int) -> Triplet:
        """Return a triplet of the random sequence."""

    def sample(self, most: int) -> list[Triplet]:
        """Return different triplets of the random sequence."""
        numbers = range(most if self.count is None else min(most, self.count))
        return list({triplet.key: triplet for triplet in map(self.random, numbers)}.values())

    def generator(self, number: int) -> np.random.Generator:
        """Return the generator of one member of the sequence."""
        return np.random.Generator(np.random.Philox(key=[self.seed, number]))


class ImageTriplets(Deck):
    """Any three of the pictures."""

    def __init__(self, pictures: int, seed: int) -> None:
        super().__init__(seed)
        self._pictures = pictures

    def random(self, number: int) -> Triplet:
        """Return three different pictures."""
        return Triplet(*self.generator(number).choice(self._pictures, 3, replace=False).tolist())


class VersionTriplets(Deck):
    """An image and two of its distorted versions."""

    def __init__(self, images: int, seed: int) -> None:
        super().__init__(seed)
        self._images = images

    def random(self, number: int) -> Triplet:
        """Return an image and two versions."""
        generator = self.generator(number)
        first = VERSIONS * int(generator.integers(self._images))
        one, other = (1 + generator.choice(VERSIONS - 1, 2, replace=False)).tolist()
        return Triplet(first, first + one, first + other)


class GivenTriplets(Deck):
    """Triplets of a list, each asked once, in an order that is the same for all people."""

    def __init__(self, triplets: Sequence[Triplet], seed: int) -> None:
        super().__init__(seed)
        unique = list({triplet.key: triplet for triplet in triplets}.values())
        self._triplets = [unique[place] for place in self.generator(0).permutation(len(unique)).tolist()]

    @property
    def count(self) -> int:
        """The number of different triplets."""
        return len(self._triplets)

    def random(self, number: int) -> Triplet:
        """Return the triplet of a number below `count`."""
        return self._triplets[number]


def read_triplets(path: Path, source: ImageSource, root: Path) -> list[Triplet]:
    """Read the triplets to ask from a file.

    Args:
        path: A .csv, .jsonl or .parquet file with the columns ref, p0 and p1 (or a and b). Images are named as in the
            source, or by their path relative to this file.
        source: The images.
        root: The folder of the images, or the directory of their shard set.

    Returns:
        The triplets, in the order of the file.

    Raises:
        FastDPSError: The file cannot be read, lacks a column, or names images that are not in the source.
    """
    wanted = ", ".join(" or ".join(names) for names in COLUMNS)
    rows = open_rows(path, wanted)
    columns = [next((name for name in names if name in rows.columns), "") for names in COLUMNS]
    if "" in columns:
        raise FastDPSError(f"{path} has the columns {', '.join(rows.columns)}; triplets need {wanted}.")
    names = _Names(source, path.parent, root)
    found: list[Triplet] = []
    faults: list[str] = []
    for row in rows.rows(columns):
        try:
            found.append(_triplet(row, columns, names))
        except ValueError as error:
            faults.append(f"line {row.number} {error}")
    if faults:
        raise FastDPSError(
            f"{path} has {len(faults):,} triplets that cannot be asked: {'; '.join(faults[:SHOWN_ROWS])}. Correct or "
            "remove them."
        )
    return found


class _Names:
    """The number of an image by its name, or by its path."""

    def __init__(self, source: ImageSource, here: Path, root: Path) -> None:
        self._numbers = {name: number for number, name in enumerate(source.names)}
        self._here, self._root = here.resolve(), root.resolve()

    def __getitem__(self, name: str) -> int:
        if name in self._numbers:
            return self._numbers[name]
        if is_image_name(name):
            path = self._here.joinpath(name)
            for candidate in (path, path.resolve()):
                if candidate.is_relative_to(self._root):
                    inside = candidate.relative_to(self._root).as_posix()
                    if inside in self._numbers:
                        return self._numbers[inside]
        raise ValueError(f"names {name!r}, which is not one of the images")


def _triplet(row: FileRow, columns: Sequence[str], names: _Names) -> Triplet:
    """Return the triplet of a row. Raises `ValueError`, whose message follows the number of the line."""
    if row.fault:
        raise ValueError(row.fault)
    numbers = []
    for column in columns:
        name: Any = row.cells.get(column)
        if not isinstance(name, str) or not name or "\0" in name:
            raise ValueError(f"has no {column}")
        numbers.append(names[name])
    if len(set(numbers)) < len(numbers):
        raise ValueError("names an image twice")
    return Triplet(*numbers)


def judged_triplets(table: JudgementTable, ids: Sequence[int]) -> list[Triplet]:
    """Return the triplets of a judgement set whose images are all among those with the given sample ids."""
    places: Mapping[int, int] = {sample: number for number, sample in enumerate(ids)}
    rows = zip(table.ref.tolist(), table.a.tolist(), table.b.tolist(), strict=True)
    found = [Triplet(*(places[image] for image in row)) for row in rows if all(image in places for image in row)]
    if not found:
        raise ConfigError("no triplet of the set has all of its images among those used. Give a larger --most-images.")
    return found
