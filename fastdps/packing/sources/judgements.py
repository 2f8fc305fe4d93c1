"""Judgements of people, from a file: each image is packed once, and a table says which of two is closer to which.

JudgementFile --> open_rows --> format_of --> JudgedRows --> divide (with a holdout) --> JudgedImages, one a split

An item is the path of an image, relative to the directory of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fastdps.errors import ConfigError, FastDPSError, did_you_mean
from fastdps.packing.sources.folder import read_file
from fastdps.packing.sources.judged_rows import HOLDOUT_BY, HoldoutBy, JudgedRows, RejectedRow, divide
from fastdps.packing.sources.judgement_formats import (
    FORMATS,
    Answer,
    BadRowError,
    JudgementFormat,
    format_of,
    judge_of,
    wanted_columns,
)
from fastdps.packing.sources.judgement_rows import RowFile, open_rows
from fastdps.packing.sources.source import Dataset, Sample, Source
from fastdps.shards.images import UnreadableItemError
from fastdps.shards.judgements import JudgementTable

#: Invalid rows that a message names.
SHOWN_ROWS = 3


@dataclass(frozen=True)
class JudgedImages(Source):
    """The images that judgements are about, each once, and the judgements.

    Attributes:
        root: The directory of the images.
        judged: The images and the judgements. None in worker processes, which read images only.
        description: The entries of the manifest.
    """

    root: Path
    judged: JudgedRows | None
    description: Mapping[str, Any]
    kind = "judgements"

    def __reduce__(self) -> tuple[Any, ...]:
        return JudgedImages, (self.root, None, {})

    def items(self) -> tuple[str, ...]:
        """Return the paths of the images, in order."""
        return self.judgements().images

    def read(self, item: str) -> Sample:
        """Return the content of the file."""
        try:
            return {"image": read_file(self.root, item)}
        except ValueError as error:  # a path that the system refuses
            raise UnreadableItemError(f"cannot be read: {error}") from error

    def name(self, item: str) -> str:
        """Return the path."""
        return item

    def judgements(self) -> JudgedRows:
        """Return the judgements about the items."""
        if self.judged is None:
            raise TypeError("a source in a worker process has no judgements")
        return self.judged

    def describe(self) -> dict[str, Any]:
        """Return the format and a digest of the file, and the numbers of its rows."""
        return {"name": "judgements", **self.description}


@dataclass(frozen=True)
class JudgementFile(Dataset):
    """The judgements in a file, in one of the `FORMATS`.

    Attributes:
        path: A .csv, .jsonl or .parquet file.
        by: The column whose value is the judge; None for the format's own, or for no judges.
        holdout_by: What a holdout divides: images, rows or judges.

    Raises:
        ConfigError: `holdout_by` is unknown.
    """

    path: Path
    by: str | None = None
    holdout_by: HoldoutBy = "image"

    def __post_init__(self) -> None:
        if self.holdout_by not in HOLDOUT_BY:
            raise ConfigError(f"--holdout-by must be one of {', '.join(HOLDOUT_BY)}, not {self.holdout_by!r}.")

    def splits(self) -> Mapping[str, Source]:
        """Return all judgements as the split "train"."""
        return {"train": self._source(self._judged, {})}

    def hold_out(self, fraction: float, seed: int) -> Mapping[str, Source]:
        """Divide the images, rows or judges; see `divide`."""
        parts = divide(self._judged, fraction, seed, self.holdout_by)
        return {split: self._source(judged, {"holdout_by": self.holdout_by}) for split, judged in parts.items()}

    def _source(self, judged: JudgedRows, more: Mapping[str, Any]) -> JudgedImages:
        return JudgedImages(self.path.parent, judged, {**self._origin, **more, **judged.counts()})

    @cached_property
    def _file(self) -> RowFile:
        return open_rows(self.path, wanted_columns())

    @cached_property
    def _format(self) -> str:
        return format_of(self._file, self.path)

    @property
    def _origin(self) -> dict[str, Any]:
        return {"format": self._format, "sha256": self._file.sha256, "by": self._judge_column}

    @property
    def _judge_column(self) -> str | None:
        own, by = FORMATS[self._format], self.by
        if by is None or by == own.judge:
            return own.judge
        if own.judge is not None:
            raise ConfigError(f"the judges of {self.path} ({self._format}) are the values of {own.judge}; omit --by.")
        if by not in self._file.columns:
            raise ConfigError(
                f"{self.path} has no column {by!r} for --by. It has {', '.join(self._file.columns)}."
                f"{did_you_mean(by, self._file.columns)}"
            )
        if by in own.columns or by == "votes":
            raise ConfigError(f"--by {by} must be the column that says who judged; {by} is a part of the judgement.")
        return by

    @cached_property
    def _judged(self) -> JudgedRows:
        judged = _parse(self._file, FORMATS[self._format], self._judge_column)
        if not len(judged.table):
            shown = "; ".join(f"line {row.row} {row.reason}" for row in judged.rejected[:SHOWN_ROWS])
            more = f": none of its {judged.rows:,} rows is valid: {shown}" if shown else ""
            raise FastDPSError(f"the source {self.path} lists no judgements{more}.")
        return judged


def _parse(file: RowFile, form: JudgementFormat, by: str | None) -> JudgedRows:
    """Return the judgements of a file."""
    wanted = [name for name in (*form.columns, *form.optional) if name in file.columns]
    if by is not None and by in file.columns:
        wanted.append(by)
    needs_votes = "votes" in wanted
    rows = unjudged = 0
    rejected: list[RejectedRow] = []
    answers: list[tuple[Answer, str | None, int]] = []
    for line in form.valid(file.rows(wanted)):
        expanded = list(form.expand(line))
        unjudged += not expanded
        for row in expanded:
            rows += 1
            try:
                if row.fault:
                    raise BadRowError(row.fault)
                if needs_votes and "votes" not in row.cells:
                    raise BadRowError("votes is missing")
                judge = None if by is None else judge_of(row.cells, by)
                answers += [(answer, judge, row.number) for answer in form.answers(row.cells)]
            except BadRowError as error:
                rejected.append(RejectedRow(row.number, str(error)))
    return _judged_rows(answers, rows, unjudged, rejected)


def _judged_rows(
    answers: list[tuple[Answer, str | None, int]], rows: int, unjudged: int, rejected: list[RejectedRow]
) -> JudgedRows:
    images = sorted({image for answer, _, _ in answers for image in (answer.ref, answer.a, answer.b)})
    judges = sorted({judge for _, judge, _ in answers if judge is not None})
    place = {image: number for number, image in enumerate(images)}
    index = {judge: number for number, judge in enumerate(judges)}

    def column(values: Iterator[int]) -> Any:
        return np.fromiter(values, np.int64, len(answers))

    table = JudgementTable(
        ref=column(place[answer.ref] for answer, _, _ in answers),
        a=column(place[answer.a] for answer, _, _ in answers),
        b=column(place[answer.b] for answer, _, _ in answers),
        votes_a=np.fromiter((answer.votes_a for answer, _, _ in answers), np.float64, len(answers)),
        votes_b=np.fromiter((answer.votes_b for answer, _, _ in answers), np.float64, len(answers)),
        judge=column(-1 if judge is None else index[judge] for _, judge, _ in answers),
        judges=tuple(judges),
        row=column(row for _, _, row in answers),
    )
    return JudgedRows(tuple(images), table, rows, tuple(rejected), unjudged)
