"""Judged triplets of the user: a CSV or JSONL file with the columns ref, p0, p1 and judge; paths relative to it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastdps.errors import FastDPSError
from fastdps.packing.sources.folder import read_file
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
