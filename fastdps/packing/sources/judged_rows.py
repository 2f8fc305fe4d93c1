"""Images with the judgements about them, and their division into "train" and "val"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fastdps.errors import ConfigError
from fastdps.shards.judgements import JudgementTable

#: What a holdout divides.
HoldoutBy = Literal["image", "row", "judge"]
HOLDOUT_BY: tuple[HoldoutBy, ...] = get_args(HoldoutBy)
_LEFT_OUT, _TRAIN, _VAL = -1, 0, 1


@dataclass(frozen=True)
class RejectedRow:
    """A row of the source that gives no judgement.

    Attributes:
        row: The line in the file, from 1; in a Parquet file the row, from 1.
        reason: The reason.
    """

    row: int
    reason: str


@dataclass(frozen=True)
class JudgedRows:
    """Images, and judgements about them.

    Attributes:
        images: The paths of the images, sorted.
        table: The judgements, with indices in `images` in place of sample ids.
        rows: The number of rows in the file; of TPIPS, of factors with a label.
        rejected: The invalid rows of the file.
        unjudged: The number of lines of the file without any answer.
        left_out: The number of rows that belong to no split of a holdout by image.
    """

    images: tuple[str, ...]
    table: JudgementTable
    rows: int
    rejected: tuple[RejectedRow, ...] = ()
    unjudged: int = 0
    left_out: int = 0

    def counts(self) -> dict[str, int]:
        """Return the numbers of rows for the manifest."""
        numbers = {"rows": self.rows, "rejected_rows": len(self.rejected), "unjudged_lines": self.unjudged}
        return {**numbers, "left_out_rows": self.left_out}

    def with_ids(self, ids: Mapping[str, int]) -> JudgementTable:
        """Return the judgements whose images all have sample ids, with these in place of indices."""
        found = np.array([ids.get(image, -1) for image in self.images], np.int64)
        ref, a, b = found[self.table.ref], found[self.table.a], found[self.table.b]
        return replace(self.table, ref=ref, a=a, b=b).select((ref >= 0) & (a >= 0) & (b >= 0))


def count_rows(table: JudgementTable) -> int:
    """Return the number of rows of the file that judgements come from; of TPIPS, of factors."""
    return len(np.unique(np.stack([table.row, table.judge]), axis=1).T) if len(table) else 0


def divide(judged: JudgedRows, fraction: float, seed: int, by: HoldoutBy) -> dict[str, JudgedRows]:
    """Divide judgements into the splits "train" and "val".

    By "image", a fraction of the images is held out. Rows with images of both sides belong to neither split, so that
    no image is in both. By "row" or "judge", a fraction of the rows or judges is held out, and images may be in both.
    An image of which a split has no judgement is not in it.

    Args:
        judged: The judgements.
        fraction: The fraction of the images, rows or judges that goes to "val".
        seed: The seed of the choice.
        by: What is divided.

    Raises:
        ConfigError: The judgements have no judges to divide, or one of the splits would be empty.
    """
    table = judged.table
    if by == "judge" and not table.judges:
        raise ConfigError("--holdout-by judge needs --by COLUMN, the column that says who judged.")
    if by == "image":
        is_held = held_out(len(judged.images), fraction, seed)
        held = is_held[table.ref].astype(int) + is_held[table.a] + is_held[table.b]
        side = np.select([held == 0, held == 3], [_TRAIN, _VAL], _LEFT_OUT)
    elif by == "row":
        rows, place = np.unique(table.row, return_inverse=True)
        side = np.where(held_out(len(rows), fraction, seed)[place], _VAL, _TRAIN)
    else:
        side = np.where(held_out(len(table.judges), fraction, seed)[table.judge], _VAL, _TRAIN)
    parts = {name: _part(judged, side, number) for name, number in (("train", _TRAIN), ("val", _VAL))}
    if empty := [name for name, part in parts.items() if not len(part.table)]:
        more = " Most rows have images of both sides; divide by row if both may have the same images." * (by == "image")
        raise ConfigError(
            f"a holdout of {fraction} by {by} leaves {empty[0]} without judgements. Choose another fraction.{more}"
        )
    return parts


def held_out(count: int, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return a random choice of a fraction of `count` things, a mask."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(count)
    is_held = np.zeros(count, bool)
    is_held[order[: round(fraction * count)]] = True
    return is_held


def _part(judged: JudgedRows, side: NDArray[np.int64], number: int) -> JudgedRows:
    """Return one split: its judgements, their images and their judges."""
    table = judged.table.select(side == number)
    used = np.unique(np.concatenate([table.ref, table.a, table.b]))
    place = np.full(len(judged.images), -1)
    place[used] = np.arange(len(used))
    judges = np.unique(table.judge[table.judge >= 0])
    index = np.full(len(table.judges) + 1, -1)  # the last one is for -1
    index[judges] = np.arange(len(judges))
    table = JudgementTable(
        ref=place[table.ref],
        a=place[table.a],
        b=place[table.b],
        votes_a=table.votes_a,
        votes_b=table.votes_b,
        judge=index[table.judge],
        judges=tuple(table.judges[judge] for judge in judges),
        row=table.row,
    )
    left_out = judged.table.select(side == _LEFT_OUT)
    images = tuple(judged.images[image] for image in used)
    return replace(judged, images=images, table=table, left_out=count_rows(left_out))
