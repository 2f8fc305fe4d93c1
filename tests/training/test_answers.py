"""Answers: what is rejected, and which contradict each other, compared with a plain search for cycles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastdps.errors import ConfigError
from fastdps.training.answers import Answers, find_contradictions


def test_names_of_judges_are_sorted_and_votes_divided():
    answers = Answers.of([(0, 1, 2), (1, 0, 2)], [0.25, 1], [4, 1], ["zoe", None])
    np.testing.assert_array_equal(answers.votes_a, [3, 0])
    np.testing.assert_array_equal(answers.votes_b, [1, 1])
    assert (answers.judges, answers.judge.tolist()) == (("zoe",), [0, -1])
    assert answers.judged().share.tolist() == [0.25, 1]


@pytest.mark.parametrize(
    ("triplets", "share", "message"),
    [
        ([(0, 1, 1)], [0], "judgement 1 names an image twice"),
        ([(0, 1, 2), (0, 1, 2)], [0, float("nan")], "judgement 2 has votes that are negative, NaN"),
        ([(0, 1, 2)], [0, 1], "1 triplets do not match 2 shares"),
    ],
)
def test_what_is_no_judgement_is_rejected(triplets, share, message):
    with pytest.raises(ConfigError, match=message):
        Answers.of(triplets, share)


def on_a_cycle(edges: list[tuple[int, int]]) -> list[bool]:
    """Whether each edge lies on a cycle, by following all paths from its end."""
    found = []
    for start, end in edges:
        reached, todo = set(), [end]
        while todo:
            node = todo.pop()
            if node not in reached:
                reached.add(node)
                todo += [b for a, b in edges if a == node]
        found.append(start in reached)
    return found


def test_contradictions_are_the_edges_on_cycles():
    rng = np.random.default_rng(0)
    for _ in range(20):
        pairs = [tuple(int(i) for i in rng.permutation(6)[:2]) for _ in range(rng.integers(2, 14))]
        answers = Answers.of([(6, a, b) for a, b in pairs], [0] * len(pairs))
        assert find_contradictions(answers).tolist() == on_a_cycle(pairs)


def test_only_answers_of_one_judge_about_one_reference_contradict():
    opposite = [((0, 1, 2), 0), ((0, 2, 1), 0)]
    for refs, judges in itertools.product([(0, 0), (0, 3)], [("ann", "ann"), ("ann", "bob")]):
        triplets = [(ref, a, b) for ref, ((_, a, b), _) in zip(refs, opposite, strict=True)]
        answers = Answers.of(triplets, [0, 0], None, judges)
        same = len(set(refs)) == len(set(judges)) == 1
        assert find_contradictions(answers).tolist() == [same, same]
    assert not find_contradictions(Answers.of([(0, 1, 2), (0, 2, 1)], [0.5, 0])).any()  # cannot say
    assert not find_contradictions(Answers.of(np.zeros((0, 3), int), [])).any()
