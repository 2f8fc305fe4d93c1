"""Contexts: rankings of the distortions, their pairs, and which of a pair must be closer to the reference.

A ranking is a tuple of all distortion names, the least disruptive first. D distortions give D (D - 1) / 2 pairs
(i, j), i < j, in the order of `pairs`, and D! contexts. Source: Pihlgren et al. 2023, section 3.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdps.errors import ConfigError, did_you_mean

Ranking = tuple[str, ...]

#: Of more contexts than six distortions have, "all" are not enumerated but so many drawn.
MOST = math.factorial(6)


def parse_ranking(text: str, names: Sequence[str]) -> Ranking:
    """Read "a,b,c,d,e,f", least disruptive first.

    Raises `ConfigError` that says which names are unknown (with the nearest known one), missing or repeated.
    """
    ranking = tuple(part.strip() for part in text.split(","))
    for name in ranking:
        if name not in names:
            hint = did_you_mean(name, names)
            raise ConfigError(f"Unknown distortion {name!r} in the ranking {text!r}.{hint} Known: {', '.join(names)}.")
    if repeated := sorted({name for name in ranking if ranking.count(name) > 1}):
        raise ConfigError(f"The ranking {text!r} names {', '.join(repeated)} more than once.")
    if missing := [name for name in names if name not in ranking]:
        raise ConfigError(
            f"The ranking {text!r} lacks {', '.join(missing)}: it must name all {len(names)} distortions."
        )
    return ranking


def all_rankings(names: Sequence[str]) -> list[Ranking]:
    """All D! rankings, in lexicographic order of the positions in `names`."""
    return list(itertools.permutations(names))


def sample_rankings(count: int, names: Sequence[str], seed: int) -> list[Ranking]:
    """`count` different rankings, drawn with a seed of their own; never enumerates all D!.

    Raises `ConfigError` if there are not as many.
    """
    total = math.factorial(len(names))
    if not 1 <= count <= total:
        raise ConfigError(f"{count} contexts asked for; {len(names)} distortions have 1 to {total}.")
    return [_ranking_number(n, names) for n in random.Random(seed).sample(range(total), count)]


def _ranking_number(number: int, names: Sequence[str]) -> Ranking:
    """The ranking at a position of `all_rankings`, from the factorial digits of the position."""
    left, ranking = list(names), []
    for remaining in range(len(names) - 1, -1, -1):
        index, number = divmod(number, math.factorial(remaining))
        ranking.append(left.pop(index))
    return tuple(ranking)


def select_rankings(text: str, names: Sequence[str], seed: int) -> list[Ranking]:
    """What `--contexts` means: "all", a number of contexts to draw, or rankings separated by ";".

    Where there are more than `MOST` contexts, "all" draws as many.
    """
    text = text.strip()
    if text == "all":
        return all_rankings(names) if math.factorial(len(names)) <= MOST else sample_rankings(MOST, names, seed)
    if text.lstrip("-").isdigit():
        return sample_rankings(int(text), names, seed)
    rankings = [parse_ranking(part, names) for part in text.split(";")]
    if len(set(rankings)) < len(rankings):
        raise ConfigError(f"The same ranking is given more than once in {text!r}.")
    return rankings


def pairs(count: int) -> Tensor:
    """All pairs (i, j), i < j, of `count` distortions: (pairs, 2) int64, in lexicographic order."""
    return torch.combinations(torch.arange(count), r=2)


def labels(rankings: Sequence[Ranking], names: Sequence[str]) -> Tensor:
    """For each pair and context, 1 where the second of the pair must be closer to the reference, else 0.

    Returns (pairs, K) float32, as the probability that a judge is asked for.
    """
    ranks = torch.tensor([[ranking.index(name) for name in names] for ranking in rankings])
    first, second = pairs(len(names)).unbind(dim=1)
    return (ranks[:, second] < ranks[:, first]).T.to(torch.float32)
