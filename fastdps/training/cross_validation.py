"""Cross-validation of few judgements: folds of images, the choice of a prior and its strength, the learning curve.

Images that judgements connect, such as a picture and its distorted versions, stay in one fold where they form many
small groups. Where they form one large group, as triplets of a few images do, images are divided at random, and a round
leaves out the judgements between its parts (see `fold_masks`).

Shapes: R judgements, C channels, F rounds, M settings, J judges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastdps.contexts.judgements import JudgedPairs, fold_masks, image_folds
from fastdps.training.differences import Differences, HeadPrior, Mask
from fastdps.training.dual_newton import Array, cross_entropy
from fastdps.training.expected import CurvePoint, HeldOut

#: Strengths of the prior that are compared, in judgements; infinite is the prior itself.
STRENGTHS = (math.inf, 1000.0, 300.0, 100.0, 30.0, 10.0)
#: The same with fewer than `FEW` judgements, whose held-out loss is too noisy to choose between the extremes.
FEW_STRENGTHS, FEW = (300.0, 100.0, 30.0), 20
#: Strengths that draw the heads of judges to the pooled one.
JUDGE_STRENGTHS = (math.inf, 300.0, 100.0, 30.0)
#: Number of folds; with more than `MANY` judgements there are fewer, as each round costs more and loses less.
FOLDS, FEWER_FOLDS, MANY = 8, 4, 2000
#: Parts of the judgements of a round that the learning curve is measured with.
PARTS = (0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Setting:
    """A prior, by its number, and its strength."""

    prior: int
    strength: float


@dataclass(frozen=True)
class Round:
    """A round of cross-validation: masks (R,) of the judgements that are trained on, and of those held out."""

    trained: Mask
    held_out: Mask


@dataclass(frozen=True)
class Rounds:
    """The rounds of a cross-validation.

    Attributes:
        rounds: The rounds, in which each judgement is held out at most once.
        cluster: Judgements of a cluster depend on each other: connected images, or one reference; int64 (R,).
    """

    rounds: tuple[Round, ...]
    cluster: NDArray[np.int64]

    @property
    def trained(self) -> list[Mask]:
        """The judgements that each round trains on."""
        return [one.trained for one in self.rounds]


def make_rounds(judged: JudgedPairs, seed: int) -> Rounds:
    """Return the rounds of a cross-validation by image; those without judgements to train on are left out."""
    folds = FOLDS if len(judged) <= MANY else FEWER_FOLDS
    group = _connected(judged)
    of_row = group[judged.images[:, 0]]
    sizes = np.bincount(of_row, minlength=int(group.max(initial=-1)) + 1)
    if np.count_nonzero(sizes) >= folds and sizes.max() * folds <= 2 * len(judged):
        assigned, cluster = _balanced(sizes, folds, seed)[group], of_row
    else:
        assigned, cluster = image_folds(len(judged.ids), folds, seed), judged.images[:, 0]
    masks = [Round(*fold_masks(judged, assigned, fold)) for fold in range(folds)]
    decided = judged.share != 0.5
    useful = [one for one in masks if one.held_out.any() and (one.trained & decided).any()]
    return Rounds(tuple(useful), cluster)


def _connected(judged: JudgedPairs) -> NDArray[np.int64]:
    """Return the group of each image, which judgements connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ref, a, b = judged.images.T
    count = len(judged.ids)
    edges = (np.ones(2 * len(ref)), (np.concatenate([ref, ref]), np.concatenate([a, b])))
    _, group = connected_components(coo_array(edges, shape=(count, count)).tocsr(), directed=False)
    return np.asarray(group, np.int64)


def _balanced(sizes: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Return a fold for each group, with about equal numbers of judgements: the largest first into the emptiest."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled, assigned = np.zeros(folds, np.int64), np.zeros(len(sizes), np.int64)
    for group in order:
        assigned[group] = filled.argmin()
        filled[assigned[group]] += sizes[group]
    return assigned


@dataclass(frozen=True)
class Chosen:
    """A setting and what all settings say about held-out judgements.

    Attributes:
        setting: The setting with the least held-out loss.
        place: Its place in `held_out`.
        held_out: Agreement and loss of all settings.
        heads: The heads of the chosen setting of each round, (F, C).
    """

    setting: Setting
    place: int
    held_out: HeldOut
    heads: Array


def choose_setting(data: Differences, rounds: Rounds, priors: Sequence[HeadPrior]) -> Chosen:
    """Compare all priors and strengths on held-out judgements."""
    strengths = STRENGTHS if (data.share != 0.5).sum() >= FEW else FEW_STRENGTHS
    settings = [Setting(prior, strength) for prior in range(len(priors)) for strength in strengths]
    weights = np.concatenate(
        [data.solve(rounds.trained, data.scaled(rounds.trained, prior.array), strengths) for prior in priors]
    )
    logits = held_out_logits(data, rounds, weights)
    held_out = describe_held_out(data, rounds, logits, data.x @ priors[0].array)
    place = int((held_out.votes @ held_out.loss).argmin())
    return Chosen(settings[place], place, held_out, weights[place])


def held_out_logits(data: Differences, rounds: Rounds, weights: Array) -> Array:
    """Return d_a - d_b of each judgement by the heads (M, F, C) of the round that holds it out, (R, M), else NaN."""
    logits = np.full((len(data.x), len(weights)), np.nan)
    for number, one in enumerate(rounds.rounds):
        logits[one.held_out] = data.x[one.held_out] @ weights[:, number].T
    return logits


def describe_held_out(data: Differences, rounds: Rounds, logits: Array, base: Array) -> HeldOut:
    """Return agreement and loss of held-out logits (R, M), and the agreement of the base's logits (R,)."""
    is_used = np.isfinite(logits).all(axis=1) & (data.share != 0.5)
    filled = np.where(np.isfinite(logits), logits, 0)
    share = data.share[:, None]
    return HeldOut(
        agreement(filled, share),
        cross_entropy(filled, share),
        agreement(base[:, None], share)[:, 0],
        np.where(is_used, data.votes, 0),
        rounds.cluster,
        data.judged.images,
    )


def agreement(logits: Array, share: Array) -> Array:
    """Return the share of the votes that agree with d_a - d_b; see `two_afc`, of which this is the form for arrays."""
    chosen = 0.5 * (1 + np.sign(logits))
    return np.asarray(chosen * share + (1 - chosen) * (1 - share))


def learning_curve(
    data: Differences, rounds: Rounds, prior: HeadPrior, strength: float, seed: int
) -> tuple[CurvePoint, ...]:
    """Return the held-out accuracy with parts of the judgements of each round."""
    random = np.random.Generator(np.random.Philox(seed))
    position = np.empty(len(data.x))
    position[random.permutation(len(data.x))] = (np.arange(len(data.x)) + 0.5) / len(data.x)
    points = []
    for part in PARTS:
        parts = [mask & (position < part) for mask in rounds.trained]
        count = float(np.mean([mask.sum() for mask in parts]))
        if count < 2:
            continue
        weights = data.solve(parts, data.scaled(parts, prior.array), [strength])
        held_out = describe_held_out(data, rounds, held_out_logits(data, rounds, weights), np.zeros(len(data.x)))
        share = held_out.votes @ held_out.agreement[:, 0] / max(held_out.votes.sum(), 1e-30)
        points.append(CurvePoint(count, float(share)))
    return tuple(points)


@dataclass(frozen=True)
class OwnHeads:
    """Heads of judges.

    Attributes:
        weights: The heads, (J, C).
        strength: The strength that draws them to the pooled head.
        held_out: Agreement and loss of each judgement by its judge's head, one setting; None without rounds.
    """

    weights: Array
    strength: float
    held_out: HeldOut | None


def fit_own_heads(data: Differences, rounds: Rounds, pooled_of_rounds: Array | None, pooled: Array) -> OwnHeads:
    """Fit a head for each judge, drawn to the pooled head (C,), or in a round to that of the round, (F, C)."""
    masks = [data.judged.judge == number for number in range(len(data.judged.judges))]
    strength, held_out = JUDGE_STRENGTHS[2], None
    if pooled_of_rounds is not None:
        seen = [own & mask for mask in rounds.trained for own in masks]
        weights = data.solve(seen, np.repeat(pooled_of_rounds, len(masks), axis=0), JUDGE_STRENGTHS)
        by_round = weights.reshape(len(weights), len(rounds.rounds), len(masks), -1)
        logits = np.full((len(data.x), len(weights)), np.nan)
        for number, own in enumerate(masks):
            logits[own] = held_out_logits(data, rounds, by_round[:, :, number])[own]
        everything = describe_held_out(data, rounds, logits, np.zeros(len(data.x)))
        place = int((everything.votes @ everything.loss).argmin())
        strength = JUDGE_STRENGTHS[place]
        held_out = describe_held_out(data, rounds, logits[:, [place]], np.zeros(len(data.x)))
    return OwnHeads(data.solve(masks, np.repeat(pooled[None], len(masks), axis=0), [strength])[0], strength, held_out)
