"""Choose the triplet to judge next: at random, by uncertainty, or by expected information.

    candidates --moments, once--> x = m_a - m_b (M, C)      answers --fit, Laplace--> W ~ Normal(W, Sigma)
    information of a candidate = H(mean probability) - mean H(probability), from W . x and x^T Sigma x

Sigma = (s k I + X^T L X)^-1 has rank C, but by the identity of Woodbury x^T Sigma x needs the products of a candidate
with the R answered ones only. These are kept, so an answer costs one product of (M, C) with a vector.

Source of the closed form: Houlsby et al. 2011, "Bayesian active learning for classification and preference learning".
Shapes: M candidates, R answers, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdps.errors import ConfigError
from fastdps.training.answers import Answers
from fastdps.training.dual_newton import Array, sigmoid
from fastdps.training.kept_features import KeptFeatures

Strategy = Literal["random", "uncertainty", "information"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
#: The strategy that agrees best with held-out answers; see docs/choosing.md.
DEFAULT_STRATEGY: Strategy = "random"
#: Share of random triplets among those that are chosen, for a score without bias.
RANDOM_SHARE = 0.25
#: Candidates whose moments are computed at a time.
BATCH = 256
#: The square of the factor on a logit with which the normal integral is close to the logistic function.
_PROBIT = math.pi / 8

TripletKey = tuple[int, int, int]


def triplet_key(triplet: NDArray[np.int64] | tuple[int, int, int]) -> TripletKey:
    """Return (ref, lower, higher): the triplet whatever the sides of its candidates."""
    ref, a, b = (int(image) for image in triplet)
    return ref, min(a, b), max(a, b)


@dataclass(frozen=True)
class Proposal:
    """A triplet to judge.

    Attributes:
        triplet: Indices of ref, a and b; the sides are random.
        is_random: It was drawn at random, and not chosen by the strategy.
    """

    triplet: tuple[int, int, int]
    is_random: bool


class TripletChooser:
    """Chooses among candidate triplets of kept images.

    Args:
        features: The features of the images.
        candidates: Indices of ref, a and b, int64 (M, 3).
        strategy: One of `STRATEGIES`.
        seed: Seed of random choices.
        random_share: Share of random triplets among those of the other strategies.

    Raises:
        ConfigError: There are no candidates, or the strategy is unknown.

    Example:
        >>> chooser = TripletChooser(features, random_triplets(len(features), 2000, seed=0))  # doctest: +SKIP
        >>> chooser.next(fit.weights[0], answers, fit.strength).triplet  # doctest: +SKIP
        (17, 803, 4)
    """

    def __init__(
        self,
        features: KeptFeatures,
        candidates: NDArray[np.int64],
        *,
        strategy: Strategy = DEFAULT_STRATEGY,
        seed: int = 0,
        random_share: float = RANDOM_SHARE,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ConfigError(f"the strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}.")
        if not len(candidates):
            raise ConfigError("there are no candidate triplets to choose from.")
        self.strategy, self.random_share = strategy, random_share
        self._features, self._triplets = features, np.asarray(candidates, np.int64)
        self._random = np.random.default_rng(seed)
        self._keys = [triplet_key(row) for row in self._triplets]
        self._x = self._differences(self._triplets) if strategy != "random" else torch.empty(0, features.channels)
        self._squares = self._x.square().sum(dim=1).double().numpy()
        self._products: dict[TripletKey, Array] = {}

    def next(
        self, weights: Tensor, answers: Answers, strength: float, *, asked: Collection[TripletKey] = ()
    ) -> Proposal | None:
        """Return the triplet to judge next, None if all candidates were asked.

        Args:
            weights: The present head (C,).
            answers: The answers so far.
            strength: Strength of its prior in judgements; infinite counts as 1,000.
            asked: Triplets not to ask again, see `triplet_key`.
        """
        left = np.array([number for number, key in enumerate(self._keys) if key not in asked], np.int64)
        if not len(left):
            return None
        is_random = self.strategy == "random" or not len(answers) or self._random.random() < self.random_share
        if is_random:
            chosen = int(self._random.choice(left))
        else:
            scores = _SCORES[self.strategy](self, weights, answers, min(strength, 1000.0))[left]
            chosen = int(left[scores.argmax()])
        ref, a, b = (int(image) for image in self._triplets[chosen])
        if self._random.random() < 0.5:
            a, b = b, a
        return Proposal((ref, a, b), is_random)

    def _logits(self, weights: Tensor) -> Array:
        return np.asarray((self._x @ weights.to(self._x)).double().numpy())

    def _uncertainty(self, weights: Tensor, answers: Answers, strength: float) -> Array:  # noqa: ARG002
        """Return how near the probability of each candidate is to one half."""
        return -np.abs(self._logits(weights))

    def _information(self, weights: Tensor, answers: Answers, strength: float) -> Array:
        """Return the expected information of an answer to each candidate, in nats."""
        answered = self._answered(answers)
        penalty = max(strength, 1e-3) * max(float(answered.square().mean()), 1e-30)
        gram = (answered @ answered.T).double().numpy()
        p = sigmoid((answered @ weights.to(answered)).double().numpy())
        information = (answers.votes_a + answers.votes_b) * p * (1 - p)
        keys = [tuple(row) for row in answers.triplets.tolist()]
        for row, key in zip(answered, keys, strict=True):
            if key not in self._products:
                self._products[key] = np.asarray((self._x @ row).double().numpy())
        products = np.stack([self._products[key] for key in keys], axis=1)
        inner = np.diag(penalty / np.maximum(information, 1e-9)) + gram
        explained = (products * np.linalg.solve(inner, products.T).T).sum(axis=1)
        variance = np.maximum(self._squares - explained, 0) / penalty
        return mutual_information(self._logits(weights), variance)

    def _answered(self, answers: Answers) -> Tensor:
        """Return the differences of the answered triplets, (R, C)."""
        return self._differences(answers.triplets)

    def _differences(self, triplets: NDArray[np.int64]) -> Tensor:
        """Return m_a - m_b of triplets, (n, C) float32."""
        parts = []
        for start in range(0, len(triplets), BATCH):
            ref, a, b = triplets[start : start + BATCH].T
            parts.append((self._features.moments(ref, a) - self._features.moments(ref, b)).cpu())
        return torch.cat(parts) if parts else torch.empty(0, self._features.channels)


_SCORES: Mapping[str, Callable[[TripletChooser, Tensor, Answers, float], Array]] = {
    "uncertainty": TripletChooser._uncertainty,
    "information": TripletChooser._information,
}


def mutual_information(mean: Array, variance: Array) -> Array:
    """Return the mutual information of an answer and the weights, in nats, for logits ~ Normal(mean, variance).

    The logistic function is approximated by the normal integral of the same slope at zero.
    """
    scaled, spread = math.sqrt(_PROBIT) * mean, _PROBIT * variance
    p = _normal_integral(scaled / np.sqrt(1 + spread))
    total = -(p * np.log(np.maximum(p, 1e-300)) + (1 - p) * np.log(np.maximum(1 - p, 1e-300)))
    c2 = math.pi * math.log(2) / 2
    expected = math.log(2) * math.sqrt(c2) / np.sqrt(spread + c2) * np.exp(-(scaled**2) / (2 * (spread + c2)))
    return np.asarray(total - expected)


def _normal_integral(x: Array) -> Array:
    from scipy.special import ndtr

    return np.asarray(ndtr(x))


def random_triplets(images: int, count: int, seed: int) -> NDArray[np.int64]:
    """Draw different triplets of different images, int64 (M, 3); all of them if there are fewer than `count`.

    Raises:
        ConfigError: There are fewer than three images.
    """
    if images < 3:
        raise ConfigError(f"a triplet needs three images, and there are {images}.")
    total = images * (images - 1) * (images - 2) // 2
    random = np.random.default_rng(seed)
    numbers = random.permutation(total) if total <= 4 * count else random.integers(total, size=2 * count)
    numbers = numbers[np.sort(np.unique(numbers, return_index=True)[1])][:count]
    ref, pair = np.divmod(numbers, (images - 1) * (images - 2) // 2)
    low = ((np.sqrt(8 * pair + 1) + 1) // 2).astype(np.int64)  # the larger of the two, from their number
    low -= low * (low - 1) // 2 > pair
    low += (low + 1) * low // 2 <= pair
    high = pair - low * (low - 1) // 2
    others = np.stack([high, low], axis=1)
    return np.concatenate([ref[:, None], others + (others >= ref[:, None])], axis=1)
