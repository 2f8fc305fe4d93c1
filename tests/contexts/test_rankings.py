"""Rankings, pairs and labels against brute force."""

import itertools

import pytest
import torch

from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import all_rankings, labels, pairs, parse_ranking, sample_rankings, select_rankings
from fastdps.errors import ConfigError


def test_all_contexts():
    rankings = all_rankings(NAMES)
    assert len(rankings) == len(set(rankings)) == 720
    assert all(sorted(ranking) == sorted(NAMES) for ranking in rankings)


def test_pairs_against_brute_force():
    assert [tuple(pair) for pair in pairs(6).tolist()] == [(i, j) for i in range(6) for j in range(i + 1, 6)]


def test_labels_against_brute_force():
    rankings = all_rankings(NAMES)
    expected = [
        [float(ranking.index(second) < ranking.index(first)) for ranking in rankings]
        for first, second in itertools.combinations(NAMES, 2)
    ]
    assert torch.equal(labels(rankings, NAMES), torch.tensor(expected))


def test_reversed_ranking_has_opposite_labels():
    ranking = all_rankings(NAMES)[123]
    assert torch.equal(labels([ranking], NAMES), 1 - labels([ranking[::-1]], NAMES))


def test_parse():
    text = "color, blur,darken,zoom_in,translate,rotate"
    assert parse_ranking(text, NAMES) == ("color", "blur", "darken", "zoom_in", "translate", "rotate")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour,blur,darken,zoom_in,translate,rotate", "Did you mean 'color'"),
        ("color,blur,darken,zoom_in,translate", "lacks rotate"),
        ("color,color,darken,zoom_in,translate,rotate", "color more than once"),
        ("", "Unknown distortion ''"),
    ],
)
def test_parse_errors(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_ranking(text, NAMES)


def test_sampling_is_seeded_and_without_repeats():
    drawn = sample_rankings(24, NAMES, seed=1)
    assert drawn == sample_rankings(24, NAMES, seed=1)
    assert drawn != sample_rankings(24, NAMES, seed=2)
    assert len(set(drawn)) == 24
    assert set(sample_rankings(720, NAMES, seed=0)) == set(all_rankings(NAMES))


def test_sampling_does_not_enumerate():
    many = [f"d{i}" for i in range(20)]
    assert all(sorted(ranking) == sorted(many) for ranking in sample_rankings(5, many, seed=0))


def test_select():
    assert select_rankings("all", NAMES, seed=0) == all_rankings(NAMES)
    assert select_rankings("1", NAMES, seed=5) == sample_rankings(1, NAMES, seed=5)
    assert select_rankings("3", NAMES, seed=5) == sample_rankings(3, NAMES, seed=5)
    seven = [*NAMES, "seventh"]
    assert select_rankings("all", seven, seed=5) == sample_rankings(720, seven, seed=5)
    one, two = all_rankings(NAMES)[:2]
    assert select_rankings(f"{','.join(one)};{','.join(two)}", NAMES, seed=0) == [one, two]


@pytest.mark.parametrize("text", ["0", "721", "-1"])
def test_impossible_counts(text):
    with pytest.raises(ConfigError, match="1 to 720"):
        select_rankings(text, NAMES, seed=0)


@pytest.mark.parametrize("text", ["--3", "X3", "²", "٣", "3.0", "9" * 5000, "-", "all;", ";"])
def test_what_is_not_a_number_is_read_as_a_ranking(text):
    with pytest.raises(ConfigError, match="Unknown distortion"):
        select_rankings(text, NAMES, seed=0)


def test_repeated_ranking():
    ranking = ",".join(NAMES)
    with pytest.raises(ConfigError, match="more than once"):
        select_rankings(f"{ranking};{ranking}", NAMES, seed=0)
