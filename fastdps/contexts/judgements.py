"""Judgements as a problem of image pairs: distinct pairs, pooled votes, and folds for cross-validation.

    table: ref, a, b, votes, judge --> distinct pairs (i, j), and for each judgement the pairs (ref, a) and (ref, b)

A *judge* is a context: a person, a group or a named factor. The pooled judge is all of them together.
Shapes: n images in ascending order of their ids, P distinct pairs, R judgements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastdps.shards.judgements import JudgementTable

#: The name of the context of all judges together.
POOLED = "pooled"


@dataclass(frozen=True)
class JudgedPairs:
    """Judgements that refer to distinct pairs of images.

    Attributes:
        ids: Sample ids of the images, ascending, (n,).
        pairs: Positions in `ids` of the images of each pair, the lower one first, int64 (P, 2).
        images: Positions in `ids` of ref, a and b of each judgement, int64 (R, 3).
        first: The pair (ref, a) of each judgement, int64 (R,).
        second: The pair (ref, b) of each judgement, int64 (R,).
        votes_a: Number of votes that find a closer, float64 (R,).
        votes_b: Number of votes that find b closer, float64 (R,).
        judge: Index in `judges`, -1 where the judge is not named, int64 (R,).
        judges: Names of the judges.
    """

    ids: NDArray[np.int64]
    pairs: NDArray[np.int64]
    images: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    votes_a: NDArray[np.float64]
    votes_b: NDArray[np.float64]
    judge: NDArray[np.int64]
    judges: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.first)

    @property
    def votes(self) -> NDArray[np.float64]:
        """The number of votes of each judgement, (R,)."""
        return self.votes_a + self.votes_b

    @property
    def share(self) -> NDArray[np.float64]:
        """The share of votes that find b closer, in [0, 1], (R,)."""
        return self.votes_b / self.votes

    def select(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> JudgedPairs:
        """Return some of the judgements, and only the pairs that they need.

        Args:
            which: A mask, or indices.
        """
        used, places = np.unique(np.stack([self.first[which], self.second[which]]), return_inverse=True)
        first, second = places.reshape(2, -1)
        return JudgedPairs(
            self.ids,
            self.pairs[used],
            self.images[which],
            first,
            second,
            self.votes_a[which],
            self.votes_b[which],
            self.judge[which],
            self.judges,
        )

    def pool(self) -> JudgedPairs:
        """Return the judgements of all judges together: one per triplet, with the sum of its votes.

        A triplet is a reference and two images, in either order.
        """
        swapped = self.images[:, 1] > self.images[:, 2]
        triplets = np.where(swapped[:, None], self.images[:, [0, 2, 1]], self.images)
        _, at, places = np.unique(triplets, axis=0, return_index=True, return_inverse=True)
        places = places.reshape(-1)
        low, high = np.where(swapped, self.votes_b, self.votes_a), np.where(swapped, self.votes_a, self.votes_b)
        one, turned = self.select(at), swapped[at]
        return JudgedPairs(
            ids=one.ids,
            pairs=one.pairs,
            images=triplets[at],
            first=np.where(turned, one.second, one.first),
            second=np.where(turned, one.first, one.second),
            votes_a=np.bincount(places, weights=low, minlength=len(at)).astype(np.float64),
            votes_b=np.bincount(places, weights=high, minlength=len(at)).astype(np.float64),
            judge=np.full(len(at), -1),
            judges=(),
        )


def judged_pairs(table: JudgementTable) -> JudgedPairs:
    """Return the judgements of a table with their distinct pairs.

    The order of the pairs of an image does not matter: distances are symmetric.
    """
    columns = np.stack([table.ref, table.a, table.b], axis=1)
    ids, places = np.unique(columns, return_inverse=True)
    images = places.reshape(-1, 3)
    both = np.sort(np.concatenate([images[:, [0, 1]], images[:, [0, 2]]]), axis=1)
    keys, pair = np.unique(both[:, 0] * len(ids) + both[:, 1], return_inverse=True)
    pairs = np.stack(np.divmod(keys, len(ids)), axis=1) if len(ids) else both
    first, second = pair.reshape(2, -1)
    return JudgedPairs(ids, pairs, images, first, second, table.votes_a, table.votes_b, table.judge, table.judges)


def image_folds(images: int, folds: int, seed: int) -> NDArray[np.int64]:
    """Assign each image to a fold of equal size, at random.

    Args:
        images: Number of images.
        folds: Number of folds.
        seed: Seed of the assignment.

    Returns:
        The fold of each image, int64 (images,).
    """
    return np.random.Generator(np.random.Philox(seed)).permutation(images) % folds


def fold_masks(judged: JudgedPairs, folds: NDArray[np.int64], fold: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Divide judgements for one round of cross-validation over images.

    A judgement is held out if its reference is in the fold, and trained on if none of its images is. So no pair of a
    held-out judgement is trained on, and no image of its reference. The others are not used in this round.

    Args:
        judged: The judgements.
        folds: Fold of each image, of `image_folds`.
        fold: Number of the round.

    Returns:
        Two masks (R,): trained on, held out.
    """
    is_in = folds[judged.images] == fold
    return ~is_in.any(axis=1), is_in[:, 0]
