"""Heads of people: a pooled one for all judges, one for each judge drawn to it, and strengths by cross-validation.

    1. pooled:  prior = the unadapted metric, scaled;  strength: the least held-out cross-entropy over folds of images
    2. judges:  prior = the pooled head of the same fold; one strength for all judges, "infinite" is the pooled head

A judge with N votes has the strength s / N relative to its mean loss, as one prior belief for all judges demands. So a
judge of few votes stays near the pooled head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdps.contexts.judgements import JudgedPairs, fold_masks
from fastdps.errors import TrainingError
from fastdps.runtime.processes import Processes
from fastdps.training.logistic import Judged, Uses, fit_heads, unadapted_scales

#: Strengths of the prior that cross-validation compares, the strongest first, which is where its path starts.
STRENGTHS = (math.inf, 100.0, 10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4)
#: The same for the heads of judges; infinite is the pooled head itself.
JUDGE_STRENGTHS = (math.inf, 10.0, 3.0, 1.0, 0.3, 0.1)
#: The strength where there are too few judgements to choose one.
DEFAULT_STRENGTH = 0.1
#: Iterations of the solver for each strength of a path, and for the result.
PATH_ITERATIONS, ITERATIONS = 40, 150
#: The same for the heads of judges, which start near their solution, the pooled head.
JUDGE_PATH_ITERATIONS, JUDGE_ITERATIONS = 10, 40
#: Rounds of cross-validation for the heads of judges: there are as many heads as rounds times judges.
JUDGE_ROUNDS = 2
#: Least number of judgements of a round to train on, and to compare strengths by.
LEAST_ROWS = 5

OnIteration = Callable[[str, int, float], None]


@dataclass(frozen=True)
class Choice:
    """A strength and how it was chosen.

    Attributes:
        strength: The strength of the prior.
        losses: Held-out cross-entropy of each strength that was compared; empty if it was given, or if there were too
            few judgements.
    """

    strength: float
    losses: dict[float, float]


@dataclass(frozen=True)
class JudgeHeads:
    """Fitted heads.

    Attributes:
        weights: Channel weights (1 + J, C): the pooled head, then one for each judge.
        pooled: The choice of the strength of the pooled head.
        judges: The choice of the strength that draws the judges' heads to the pooled one; None without judges.
        passes: Number of passes over the judgements.
    """

    weights: Tensor
    pooled: Choice
    judges: Choice | None
    passes: int


class _Fitter:
    """Fits the heads of one process's judgements, together with the other processes."""

    def __init__(
        self, judged: JudgedPairs, data: Judged, folds: NDArray[np.int64], processes: Processes, report: OnIteration
    ) -> None:
        self._judged, self._data, self._device, self._report = judged, data, processes.device, report
        self._processes = processes
        self._rounds = self._useful_rounds(folds)
        self.passes = 0

    def _useful_rounds(self, folds: NDArray[np.int64]) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
        """Return the rounds of cross-validation that have enough judgements over all processes."""
        rounds = [fold_masks(self._judged, folds, fold) for fold in range(int(folds.max(initial=-1)) + 1)]
        counts = torch.tensor([[int(part.sum()) for part in masks] for masks in rounds], dtype=torch.float64)
        counts = self._processes.reduce(counts.to(self._device), reduction="sum")
        return [masks for masks, least in zip(rounds, counts.amin(dim=1).tolist(), strict=True) if least >= LEAST_ROWS]

    def fit(self, what: str, uses: Uses, prior: Tensor, strengths: Tensor, iterations: int, start: Tensor) -> Tensor:
        """Fit heads, and count the passes over the data."""

        def on_iteration(number: int, objective: float) -> None:
            self._report(what, number, objective)

        found = fit_heads(
            self._data, uses, prior, strengths, iterations=iterations, start=start, on_iteration=on_iteration
        )
        self.passes += found.iterations
        return found.weights

    def pooled(self, strength: float | None) -> tuple[Tensor, Choice, list[Tensor]]:
        """Return the pooled head (1, C), its strength, and the pooled head of each round of cross-validation."""
        trained, held_out = ([masks[part] for masks in self._rounds] for part in (0, 1))
        choice, fold_heads = Choice(DEFAULT_STRENGTH if strength is None else strength, {}), []
        if strength is None and self._rounds:
            uses, other = Uses.of(trained, self._device), Uses.of(held_out, self._device)
            prior = self._prior(uses)
            losses, path = {}, {}
            weights = prior
            for candidate in STRENGTHS:
                if math.isfinite(candidate):
                    even = torch.full((uses.heads,), candidate, device=self._device)
                    weights = self.fit("cross-validation", uses, prior, even, PATH_ITERATIONS, weights)
                path[candidate] = weights
                losses[candidate] = float(self._data.losses(weights, other).mean())
            choice = Choice(min(losses, key=losses.__getitem__), losses)
            fold_heads = list(path[choice.strength])
        everything = Uses.of([np.ones(len(self._judged), bool)], self._device)
        prior = self._prior(everything)
        if math.isinf(choice.strength):
            return prior, choice, fold_heads
        strengths = torch.tensor([choice.strength], device=self._device)
        return self.fit("pooled head", everything, prior, strengths, ITERATIONS, prior), choice, fold_heads

    def judges(self, pooled: Tensor, fold_heads: list[Tensor]) -> tuple[Tensor, Choice]:
        """Return the heads of the judges (J, C), and the strength that draws them to the pooled head."""
        judges = [self._judged.judge == number for number in range(len(self._judged.judges))]
        choice = Choice(DEFAULT_STRENGTH, {})
        if fold_heads:
            trained, held_out = (
                Uses.of([masks[part] & own for masks in self._rounds[:JUDGE_ROUNDS] for own in judges], self._device)
                for part in (0, 1)
            )
            prior = torch.stack(fold_heads[:JUDGE_ROUNDS]).repeat_interleave(len(judges), dim=0)
            weights, losses = prior, {}
            for candidate in JUDGE_STRENGTHS:
                if math.isfinite(candidate):
                    strengths = candidate * self._relative(trained)
                    weights = self.fit("cross-validation", trained, prior, strengths, JUDGE_PATH_ITERATIONS, weights)
                losses[candidate] = float(self._data.losses(weights, held_out).nanmean())
            choice = Choice(min(losses, key=losses.__getitem__), losses)
        prior = pooled.repeat(len(judges), 1)
        if math.isinf(choice.strength):
            return prior, choice
        uses = Uses.of(judges, self._device)
        strengths = choice.strength * self._relative(uses)
        return self.fit("heads of judges", uses, prior, strengths, JUDGE_ITERATIONS, prior), choice

    def _prior(self, uses: Uses) -> Tensor:
        """Return the unadapted metric at the scale that explains the judgements best, (K, C)."""
        return unadapted_scales(self._data, uses)[:, None].repeat(1, self._data.moments.shape[1])

    def _relative(self, uses: Uses) -> Tensor:
        """Return the mean number of votes of a head, divided by the number of votes of each head, (K,)."""
        votes = torch.zeros(uses.heads, dtype=torch.float64, device=self._device)
        votes.index_add_(0, uses.head, self._data.votes[uses.row].double())
        votes = self._processes.reduce(votes, reduction="sum").clamp_min(1.0)
        return (votes.mean() / votes).float()


def fit_judge_heads(
    judged: JudgedPairs,
    data: Judged,
    folds: NDArray[np.int64],
    processes: Processes,
    *,
    strength: float | None = None,
    by_judge: bool = False,
    report: OnIteration = lambda *_: None,
) -> JudgeHeads:
    """Fit the pooled head and, if wanted, one head for each judge.

    All processes call this together, each with judgements of its own, and get the same heads.

    Args:
        judged: The judgements of this process.
        data: The same with the moments of their pairs.
        folds: The fold of each image for cross-validation, the same on all processes (see `image_folds`).
        processes: The processes.
        strength: Strength of the prior of the pooled head; None to choose it by cross-validation.
        by_judge: Also fit a head for each judge.
        report: Called after each iteration of the solver with what is fitted, its number, and the objective.

    Returns:
        The heads.

    Raises:
        TrainingError: The heads are NaN or infinite.
    """
    fitter = _Fitter(judged, data, folds, processes, report)
    pooled, choice, fold_heads = fitter.pooled(strength)
    heads, judges = [pooled], None
    if by_judge:
        own, judges = fitter.judges(pooled, fold_heads)
        heads.append(own)
    weights = torch.cat(heads)
    if not weights.isfinite().all():
        raise TrainingError(
            "the fitted weights are not finite. Check the judgements and their images with `fastdps check`.",
            everywhere=True,
        )
    return JudgeHeads(weights, choice, judges, fitter.passes)
