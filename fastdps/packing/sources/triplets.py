"""Judged triplets of the user: a CSV or JSONL file with the columns ref, p0, p1 and judge; paths relative to it."""

from __future__ import annotations

import csv
import io
import json
import math
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastdps.errors import ConfigError, FastDPSError
from fastdps.packing.sources.folder import read_file
from fastdps.packing.sources.judged_rows import held_out
from fastdps.packing.sources.source import Sample, Source
from fastdps.runtime.files import printable
from fastdps.shards.format import COMPONENTS, SCALARS
from fastdps.shards.images import Image, UnreadableItemError

COLUMNS = COMPONENTS["triplets"]


class Row(NamedTuple):
    """One triplet of the file.

    Attributes:
        line: The number of its line, from 1.
        cells: Its values by column.
    """

    line: int
    cells: dict[str, Any]


@dataclass(frozen=True)
class Triplets(Source):
    """The triplets listed in a file. `judge` is the share of votes in [0, 1] for p1 being closer to ref.

    Other columns are ignored.

    Attributes:
        path: The .csv or .jsonl file.
    """

    path: Path
    kind = "triplets"

    def hold_out(self, fraction: float, seed: int) -> Mapping[str, Source]:
        """Divide the triplets so that no image is in both splits: by reference, or by image.

        By reference where each image belongs to one reference only, so that nothing is lost. By image otherwise:
        triplets with images of both sides are left out, as in judgement sets.
        """
        rows = self.items()
        names = [_images_of(row) for row in rows]
        units, what = _units_of(names)
        order = sorted({unit for of_row in units for unit in of_row})
        is_held = dict(zip(order, held_out(len(order), fraction, seed).tolist(), strict=True))
        sides = [{is_held[unit] for unit in of_row} or {False} for of_row in units]  # rows without images are rejected
        parts = {
            split: [row for row, side in zip(rows, sides, strict=True) if side == {wanted}]
            for split, wanted in (("train", False), ("val", True))
        }
        if empty := [split for split, part in parts.items() if not part]:
            raise ConfigError(
                f"a holdout of {fraction} by {what} leaves {empty[0]} without triplets. Choose another fraction."
            )
        left_out = len(rows) - sum(map(len, parts.values()))
        return {split: DividedTriplets(self.path, tuple(part), what, left_out) for split, part in parts.items()}

    def items(self) -> Sequence[Row]:
        """Return all rows. Raises `FastDPSError` when the file is neither CSV nor JSONL, or lacks a column."""
        readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
        if self.path.suffix.lower() not in readers:
            raise FastDPSError(f"the source {self.path} must be a .csv or .jsonl file with {', '.join(COLUMNS)}.")
        try:
            text = self.path.read_text(encoding="utf-8-sig")
            rows = list(readers[self.path.suffix.lower()](text))
        except OSError as error:
            raise FastDPSError(f"the source {self.path} cannot be read: {error.strerror}.") from error
        except (ValueError, csv.Error) as error:
            raise FastDPSError(f"the source {self.path} cannot be read: {error}.") from error
        if not rows:
            raise FastDPSError(f"the source {self.path} lists no triplets.")
        return rows

    def read(self, item: Row) -> Sample:
        """Return the three image files and the share of votes."""
        return {name: self._component(name, item.cells[name]) for name in COLUMNS}

    def name(self, item: Row) -> str:
        """Return the number of the line and its values."""
        return printable(f"line {item.line}: " + ", ".join(str(item.cells[name]) for name in COLUMNS))

    def describe(self) -> dict[str, Any]:
        """Return the kind of source only: the location of the file is not a property of the set."""
        return {"name": "triplets"}

    def _component(self, name: str, cell: Any) -> Image | float:
        if name in SCALARS:
            try:
                share = float(cell)
            except (TypeError, ValueError, OverflowError):
                share = math.nan
            if not 0 <= share <= 1:
                raise UnreadableItemError(f"{name} is {cell!r}, not a share of votes in [0, 1]")
            return share
        if not isinstance(cell, str) or not cell:
            raise UnreadableItemError(f"{name} is {cell!r}, not the path of an image")
        try:
            return read_file(self.path.parent, cell)
        except (UnreadableItemError, ValueError) as error:
            raise UnreadableItemError(f"{name} {error}") from error


@dataclass(frozen=True)
class DividedTriplets(Triplets):
    """The triplets of one split of a holdout.

    Attributes:
        rows: The triplets. None in worker processes, which read images only.
        holdout_by: What was divided: "image" or "reference".
        left_out: Number of triplets that belong to no split.
    """

    rows: tuple[Row, ...] | None = None
    holdout_by: str = "image"
    left_out: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return DividedTriplets, (self.path,)

    def items(self) -> Sequence[Row]:
        """Return the rows of the split."""
        if self.rows is None:
            raise TypeError("a source in a worker process has no rows")
        return self.rows

    def describe(self) -> dict[str, Any]:
        """Return the kind of source, what was divided, and the number of triplets that belong to no split."""
        return {**super().describe(), "holdout_by": self.holdout_by, "left_out_rows": self.left_out}


def _images_of(row: Row) -> list[str]:
    """Return the images of a row in one spelling, the reference first; of invalid rows only valid names."""
    cells = [row.cells[name] for name in COLUMNS if name not in SCALARS]
    return [posixpath.normpath(cell) for cell in cells if isinstance(cell, str) and cell]


def _units_of(names: Sequence[Sequence[str]]) -> tuple[Sequence[Sequence[str]], str]:
    """Return what is divided of each row, and its name: the reference if its images are its own, all images if not."""
    owner: dict[str, str] = {}
    is_own = all(owner.setdefault(image, images[0]) == images[0] for images in names for image in images)
    if not is_own:
        return names, "image"
    return [images[:1] for images in names], "reference"


def _csv_rows(text: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise ValueError(f"its first line must name the columns {', '.join(COLUMNS)}; {', '.join(missing)} are missing")
    if twice := [name for name in COLUMNS if (reader.fieldnames or []).count(name) > 1]:
        raise ValueError(f"its first line names the columns {', '.join(twice)} more than once")
    for cells in reader:
        if None in cells or None in cells.values():
            raise ValueError(f"line {reader.line_num} does not have {len(reader.fieldnames or ())} cells")
        yield Row(reader.line_num, {name: cells[name] for name in COLUMNS})


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises `ValueError` if it has one of the columns twice."""
    names = [name for name, _ in pairs]
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise ValueError(f"{', '.join(twice)} comes twice")
    return dict(pairs)


def _jsonl_rows(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        if not isinstance(cells, dict) or any(name not in cells for name in COLUMNS):
            raise ValueError(f"line {number} must be an object with {', '.join(COLUMNS)}")
        yield Row(number, {name: cells[name] for name in COLUMNS})
