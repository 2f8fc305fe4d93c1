"""Philox against the known answers of its authors, and its use as a pure function."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdps.contexts.philox import philox, uniforms

# The published known-answer vectors of Random123 (Salmon et al. 2011) for philox4x32, 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    words = philox(tuple(torch.tensor([word]) for word in counter), tuple(key))
    assert [word.item() for word in words] == expected


def test_uniform_and_independent():
    values = uniforms(seed=7, epoch=3, ids=torch.arange(20_000), streams=6).reshape(20_000, 24)
    assert values.min() >= 0
    assert values.max() < 1
    # The standard error of a mean is 0.002 and of a correlation 0.007: five of them.
    assert (values.mean(0) - 0.5).abs().max() < 0.0102
    assert (values.var(0) - 1 / 12).abs().max() < 0.003
    correlation = torch.corrcoef(values.T) - torch.eye(24)
    assert correlation.abs().max() < 0.036


@pytest.mark.parametrize("change", [{"seed": 8}, {"seed": 7 + 2**32}, {"epoch": 4}])
def test_seed_and_epoch_matter(change):
    base = {"seed": 7, "epoch": 3, "ids": torch.arange(50), "streams": 2}
    assert not (uniforms(**base) == uniforms(**{**base, **change})).any()


def test_large_ids_differ():
    ids = torch.tensor([5, 5 + 2**32, 5 + 2**40])
    assert len(uniforms(0, 0, ids, 1)[:, 0, 0].unique()) == 3


def test_wrong_ids_are_rejected():
    with pytest.raises(ValueError, match="int64"):
        uniforms(0, 0, torch.zeros(3), 1)


def philox_by_hand(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 on Python's integers, as in section 3.3 of the paper."""
    for _ in range(10):
        (high0, low0), (high1, low1) = divmod(0xD2511F53 * counter[0], 2**32), divmod(0xCD9E8D57 * counter[2], 2**32)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


def test_the_reference_gives_the_known_answers():
    for counter, key, expected in KNOWN_ANSWERS:
        assert philox_by_hand(counter, key) == expected


@given(
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**32 - 1),
    ids=st.lists(st.integers(0, 2**63 - 1), max_size=4),
    streams=st.integers(1, 3),
    first_stream=st.integers(0, 9),
)
def test_each_word_has_its_place_in_counter_and_key(seed, epoch, ids, streams, first_stream):
    """The layout must never change: it would change the distortions of all seeds."""
    found = uniforms(seed, epoch, torch.tensor(ids, dtype=torch.int64), streams, first_stream=first_stream)
    expected = [
        [
            [word / 2**32 for word in philox_by_hand([i % 2**32, i >> 32, epoch, s], [seed % 2**32, seed >> 32])]
            for s in range(first_stream, first_stream + streams)
        ]
        for i in ids
    ]
    assert found.shape == (len(ids), streams, 4)
    assert found.tolist() == expected


def test_streams_are_given_by_number_or_one_by_one():
    ids = torch.tensor([3, 2**40])
    chosen = uniforms(7, 1, ids, [0, 1, 2, 1 << 15])
    assert torch.equal(chosen[:, :3], uniforms(7, 1, ids, 3))
    assert torch.equal(chosen[:, 3:], uniforms(7, 1, ids, 1, first_stream=1 << 15))
