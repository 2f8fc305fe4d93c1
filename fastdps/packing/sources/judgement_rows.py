"""Read the rows of a judgement file: CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastdps.errors import FastDPSError
from fastdps.runtime.json_files import parse_json
from fastdps.shards.tables import ParquetRows

SUFFIXES = (".csv", ".jsonl", ".parquet")


class FileRow(NamedTuple):
    """One row of a judgement file.

    Attributes:
        number: The line in the file, from 1; in a Parquet file the row, from 1.
        cells: The values by column.
        fault: The reason why the row cannot be read, or "".
    """

    number: int
    cells: Mapping[str, Any]
    fault: str = ""


@dataclass(frozen=True)
class RowFile:
    """A judgement file.

    Attributes:
        columns: The names of the columns; of JSON lines those of the first line.
        sha256: The checksum of the file.
        rows: Yields the rows, with at least the given columns.
    """

    columns: tuple[str, ...]
    sha256: str
    rows: Callable[[Sequence[str]], Iterator[FileRow]]


def open_rows(path: Path, wanted: str) -> RowFile:
    """Open a judgement file.

    Args:
        path: The file.
        wanted: The columns that such a file has, for messages.

    Raises:
        FastDPSError: The file is missing, has another suffix, or cannot be read as what the suffix says.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        raise FastDPSError(
            f"the source {path} is a directory. Give the file with the judgements, such as {path / 'judgements.csv'}: "
            f"{', '.join(SUFFIXES)} with {wanted}. For the images alone, pack the kind folder."
        )
    if suffix not in SUFFIXES:
        raise FastDPSError(f"the source {path} must be a file {', '.join(SUFFIXES)} with {wanted}.")
    try:
        if suffix == ".parquet":
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            return _parquet(path, digest)
        content = path.read_bytes()
        return (_csv if suffix == ".csv" else _jsonl)(
            content.decode("utf-8-sig"), hashlib.sha256(content).hexdigest(), wanted
        )
    except OSError as error:
        raise FastDPSError(f"the source {path} cannot be read: {error.strerror}.") from error
    except (ValueError, csv.Error) as error:
        raise FastDPSError(f"the source {path} cannot be read: {error}.") from error


def _parquet(path: Path, digest: str) -> RowFile:
    source = ParquetRows(path)

    def rows(columns: Sequence[str]) -> Iterator[FileRow]:
        for number, cells in enumerate(source.rows(columns), start=1):
            yield FileRow(number, {name: cell for name, cell in cells.items() if cell is not None})

    return RowFile(tuple(source.columns), digest, rows)


def _csv(text: str, digest: str, wanted: str) -> RowFile:
    """Return the rows of a CSV file. An error of its quoting, after which no line is certain, is one of the file."""
    found = list(_csv_lines(text))
    if not found:
        raise ValueError(f"it is empty; its first line must name the columns, {wanted}")
    (_, header), *lines = found
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ValueError(f"its first line names the columns {', '.join(twice)} more than once")

    def rows(_: Sequence[str]) -> Iterator[FileRow]:
        for number, cells in lines:
            fault = f"has {len(cells)} cells, and the first line names {len(header)} columns"
            is_complete = len(cells) == len(header)
            yield FileRow(number, dict(zip(header, cells, strict=False)), "" if is_complete else fault)

    return RowFile(tuple(header), digest, rows)


def _csv_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record that is not blank with the number of its first line."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"line {number}: {error}") from error
        if cells:
            yield number, cells


def _jsonl(text: str, digest: str, wanted: str) -> RowFile:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"it is empty; each line must be an object with {wanted}")
    first = _json_row(*lines[0])
    if first.fault:
        raise ValueError(f"line {first.number} {first.fault}; each line must be an object with {wanted}")

    def rows(_: Sequence[str]) -> Iterator[FileRow]:
        return (_json_row(number, line) for number, line in lines)

    return RowFile(tuple(first.cells), digest, rows)


def _json_row(number: int, line: str) -> FileRow:
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        cells = dict(pairs)
        if len(cells) < len(pairs):
            twice.extend(name for name in cells if [key for key, _ in pairs].count(name) > 1)
        return cells

    try:
        parse_json(line)
        cells = json.loads(line, object_pairs_hook=unique)
    except ValueError as error:
        return FileRow(number, {}, f"is not JSON: {error}")
    if not isinstance(cells, dict):
        return FileRow(number, {}, "is not a JSON object")
    if twice:
        return FileRow(number, {}, f"names {', '.join(twice)} more than once")
    return FileRow(number, {name: cell for name, cell in cells.items() if cell is not None})
