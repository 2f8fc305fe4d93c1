"""Judgements about n images that are at hand, and what they contradict.

Shapes: R judgements of n images, J judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastdps.contexts.judgements import JudgedPairs, judged_pairs
from fastdps.errors import ConfigError
from fastdps.shards.judgements import JudgementTable, find_faults


@dataclass(frozen=True)
class Answers:
    """Judgements of triplets of images.

    Attributes:
        triplets: Indices of ref, a and b in the images, int64 (R, 3).
        votes_a: Number of votes that find a closer to ref, (R,). "Cannot say" is half a vote for each.
        votes_b: Number of votes that find b closer, (R,).
        judge: Index in `judges`, -1 where the judge is not named, int64 (R,).
        judges: Names of the judges.

    Example:
        >>> Answers.of([(0, 1, 2), (3, 1, 2)], [1, 0]).judged().share
        array([1., 0.])
    """

    triplets: NDArray[np.int64]
    votes_a: NDArray[np.float64]
    votes_b: NDArray[np.float64]
    judge: NDArray[np.int64]
    judges: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.triplets)

    @classmethod
    def of(
        cls,
        triplets: Sequence[Sequence[int]] | NDArray[np.int64],
        share: Sequence[float] | NDArray[np.float64],
        votes: Sequence[float] | NDArray[np.float64] | None = None,
        judges: Sequence[str | None] | None = None,
    ) -> Answers:
        """Return judgements.

        Args:
            triplets: Indices of ref, a and b.
            share: Share of the votes that find b closer: 0, 1, 0.5 for "cannot say", or between.
            votes: Number of votes; None for one each.
            judges: Name of the judge of each judgement; None for no names.

        Raises:
            ConfigError: A judgement names an image twice or has no valid votes, or the lengths differ.
        """
        rows = np.asarray(triplets, np.int64).reshape(-1, 3)
        shares = np.asarray(share, np.float64)
        counts = np.ones(len(rows)) if votes is None else np.asarray(votes, np.float64)
        names = [None] * len(rows) if judges is None else list(judges)
        if not len(rows) == len(shares) == len(counts) == len(names):
            raise ConfigError(f"{len(rows)} triplets do not match {len(shares)} shares of {len(counts)} votes.")
        known = tuple(sorted({name for name in names if name is not None}))
        judge = np.array([-1 if name is None else known.index(name) for name in names], np.int64)
        answers = cls(rows, counts * (1 - shares), counts * shares, judge, known)
        for which, what in find_faults(answers._table(), np.unique(rows)):
            raise ConfigError(f"judgement {which[0] + 1} {what}.")
        return answers

    @classmethod
    def of_table(cls, table: JudgementTable, ids: NDArray[np.int64]) -> Answers:
        """Return the judgements of a table about images with these sample ids, which ascend."""
        triplets = np.searchsorted(ids, np.stack([table.ref, table.a, table.b], axis=1))
        return cls(triplets, table.votes_a, table.votes_b, table.judge, table.judges)

    def select(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> Answers:
        """Return some of the judgements, by a mask or indices."""
        return Answers(self.triplets[which], self.votes_a[which], self.votes_b[which], self.judge[which], self.judges)

    def judged(self) -> JudgedPairs:
        """Return the judgements with their distinct pairs; `ids` are the indices of the images that they name."""
        return judged_pairs(self._table())

    def _table(self) -> JudgementTable:
        ref, a, b = self.triplets.T
        rows = np.arange(1, len(self) + 1)
        return JudgementTable(ref, a, b, self.votes_a, self.votes_b, self.judge, self.judges, rows)


def find_contradictions(answers: Answers) -> NDArray[np.bool_]:
    """Return which judgements contradict others of the same judge and reference, (R,).

    "a is closer than b", "b is closer than c" and "c is closer than a" contradict each other, as do two different
    answers to one triplet. No distance agrees with all of them. Judgements without a majority contradict nothing.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    decided = answers.votes_a != answers.votes_b
    ref, a, b = answers.triplets.T
    is_b = answers.votes_b > answers.votes_a
    near, far = np.where(is_b, b, a), np.where(is_b, a, b)
    keys = np.concatenate([np.stack([answers.judge, ref, image], axis=1) for image in (near, far)])
    _, nodes = np.unique(keys, axis=0, return_inverse=True)
    start, end = nodes.reshape(2, -1)
    count = int(nodes.max(initial=-1)) + 1
    if not decided.any():
        return np.zeros(len(answers), bool)
    graph = coo_array((np.ones(decided.sum()), (start[decided], end[decided])), shape=(count, count))
    _, component = connected_components(graph.tocsr(), directed=True, connection="strong")
    return decided & (component[start] == component[end])
