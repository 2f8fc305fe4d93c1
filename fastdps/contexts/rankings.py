"""Contexts as rankings of the distortions: parse, enumerate and sample them, and label pairs of distortions.

A ranking is a tuple of all distortion names, the least disruptive first. D distortions give D (D - 1) / 2 pairs
(i, j), i < j, in the order of `pairs`, and D! contexts. Source: Pihlgren et al. 2023, section 3.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdps.errors import ConfigError, did_you_mean

Ranking = tuple[str, ...]

#: Number of contexts up to which "all" enumerates them; if there are more, "all" samples this many.
MAX_CONTEXTS = math.factorial(6)


def parse_ranking(text: str, names: Sequence[str]) -> Ranking:
    """Parse a ranking such as "a,b,c,d,e,f", least disruptive first.

    Args:
        text: Names separated by commas.
        names: The names of all distortions.

    Raises:
        ConfigError: Names are unknown (the message suggests the most similar one), missing or repeated.

    Example:
        >>> parse_ranking("blur, rotate", ["rotate", "blur"])
        ('blur', 'rotate')
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
    """Return all D! rankings, in lexicographic order of the positions in `names`."""
    return list(itertools.permutations(names))


def sample_rankings(count: int, names: Sequence[str], seed: int) -> list[Ranking]:
    """Draw `count` different rankings without enumerating all D!.

    Raises:
        ConfigError: There are fewer than `count` rankings, or `count` is below 1.
    """
    total = math.factorial(len(names))
    if not 1 <= count <= total:
        raise ConfigError(f"Cannot draw {count} contexts: {len(names)} distortions have 1 to {total}.")
    return [_ranking_number(n, names) for n in random.Random(seed).sample(range(total), count)]


def _ranking_number(number: int, names: Sequence[str]) -> Ranking:
    """Return the ranking at a position of `all_rankings`, from the factorial digits of the position."""
    left, ranking = list(names), []
    for remaining in range(len(names) - 1, -1, -1):
        index, number = divmod(number, math.factorial(remaining))
        ranking.append(left.pop(index))
    return tuple(ranking)


def select_rankings(text: str, names: Sequence[str], seed: int) -> list[Ranking]:
    """Return the rankings that `--contexts` selects.

    Args:
        text: "all", a number of contexts to draw, or rankings separated by ";". If there are more than `MAX_CONTEXTS`
            contexts, "all" draws `MAX_CONTEXTS` of them.
        names: The names of all distortions.
        seed: The seed of drawn contexts.

    Raises:
        ConfigError: A ranking is invalid or repeated, or the number is out of range.

    Example:
        >>> select_rankings("blur,rotate; rotate,blur", ["rotate", "blur"], seed=0)
        [('blur', 'rotate'), ('rotate', 'blur')]
    """
    text = text.strip()
    if text == "all":
        few = math.factorial(len(names)) <= MAX_CONTEXTS
        return all_rankings(names) if few else sample_rankings(MAX_CONTEXTS, names, seed)
    if re.fullmatch("-?[0-9]{1,18}", text):
        return sample_rankings(int(text), names, seed)
    rankings = [parse_ranking(part, names) for part in text.split(";")]
    if len(set(rankings)) < len(rankings):
        raise ConfigError(f"The same ranking is given more than once in {text!r}.")
    return rankings


def pairs(count: int) -> Tensor:
    """Return all pairs (i, j), i < j, of `count` distortions: (pairs, 2) int64, in lexicographic order."""
    return torch.combinations(torch.arange(count), r=2)


def labels(rankings: Sequence[Ranking], names: Sequence[str]) -> Tensor:
    """Label each pair in each context: 1 where the second of the pair must be closer to the reference, else 0.

    Returns:
        (pairs, K) float32, the target probability of a judge.
    """
    ranks = torch.tensor([[ranking.index(name) for name in names] for ranking in rankings])
    first, second = pairs(len(names)).unbind(dim=1)
    return (ranks[:, second] < ranks[:, first]).T.to(torch.float32)
