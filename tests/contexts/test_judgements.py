"""Judgements as pairs, pooled votes and folds, compared with plain loops."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fastdps.contexts.judgements import JudgedPairs, fold_masks, image_folds, judged_pairs
from fastdps.shards.judgements import JudgementTable


def random_table(rows: int, images: int, judges: int = 3, seed: int = 0) -> JudgementTable:
    """Random judgements of images whose ids have gaps."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(10 * images, images, replace=False))
    chosen = np.stack([rng.choice(ids, 3, replace=False) for _ in range(rows)])
    votes = rng.integers(0, 4, (rows, 2)) + np.array([1, 0])
    return JudgementTable(
        *chosen.T,
        *votes.T.astype(float),
        judge=rng.integers(-1, judges, rows),
        judges=tuple(f"person {number}" for number in range(judges)),
        row=np.arange(rows) + 2,
    )


@pytest.fixture
def table() -> JudgementTable:
    return random_table(300, 12)


def named(judged: JudgedPairs, pair: int) -> frozenset[int]:
    return frozenset(judged.ids[judged.pairs[pair]].tolist())


def test_each_judgement_refers_to_its_pairs(table):
    judged = judged_pairs(table)
    for row in range(len(table)):
        assert named(judged, judged.first[row]) == {table.ref[row], table.a[row]}
        assert named(judged, judged.second[row]) == {table.ref[row], table.b[row]}
    pairs = [tuple(pair) for pair in judged.pairs.tolist()]
    assert len(set(pairs)) == len(pairs)
    assert all(low < high for low, high in pairs)
    np.testing.assert_allclose(judged.share, table.votes_b / (table.votes_a + table.votes_b))


def test_a_selection_keeps_its_judgements_and_only_their_pairs(table):
    judged = judged_pairs(table)
    some = judged.select(judged.judge == 1)
    rows = np.flatnonzero(table.judge == 1)
    assert [named(some, pair) for pair in some.first] == [named(judged, pair) for pair in judged.first[rows]]
    assert [named(some, pair) for pair in some.second] == [named(judged, pair) for pair in judged.second[rows]]
    assert set(np.concatenate([some.first, some.second])) == set(range(len(some.pairs)))


def test_pooling_sums_the_votes_of_the_same_triplet_in_either_order(table):
    expected: Counter[tuple[int, int, int]] = Counter()
    for row in range(len(table)):
        ref, a, b = (int(column[row]) for column in (table.ref, table.a, table.b))
        expected[ref, a, b] += table.votes_a[row]
        expected[ref, b, a] += table.votes_b[row]
    pooled = judged_pairs(table).pool()
    assert len(pooled) == len({(ref, frozenset((a, b))) for ref, a, b in expected})
    for row in range(len(pooled)):
        ref, a, b = pooled.ids[pooled.images[row]].tolist()
        assert pooled.votes_a[row] == expected[ref, a, b]
        assert pooled.votes_b[row] == expected[ref, b, a]
        assert named(pooled, pooled.first[row]) == {ref, a}
        assert named(pooled, pooled.second[row]) == {ref, b}


def test_folds_are_of_equal_size_and_depend_on_the_seed():
    folds = image_folds(103, 5, seed=1)
    assert sorted(np.bincount(folds)) == [20, 20, 21, 21, 21]
    assert (folds == image_folds(103, 5, seed=1)).all()
    assert (folds != image_folds(103, 5, seed=2)).any()


def test_no_image_of_a_held_out_reference_is_trained_on(table):
    judged = judged_pairs(table)
    folds = image_folds(len(judged.ids), 4, seed=0)
    times = np.zeros(len(judged), int)
    for fold in range(4):
        trained, held_out = fold_masks(judged, folds, fold)
        references = set(judged.images[held_out, 0])
        assert not references & set(judged.images[trained].ravel())
        pairs_of = {pair for rows in (judged.first, judged.second) for pair in rows[held_out]}
        assert not pairs_of & {pair for rows in (judged.first, judged.second) for pair in rows[trained]}
        times += held_out
    assert (times == 1).all()
