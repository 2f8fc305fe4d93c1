"""A head from few judgements: a convex fit drawn to the base, with the accuracy to expect of it.

    answers, kept features --> differences of moments --> priors x strengths x folds --> the setting with the least
    held-out loss --> weights, accuracy to expect, learning curve, verdict

A strength counts as much as that many judgements, so the same strengths serve 10 judgements and 1,000. On a backbone
shared by 720 rankings, 30 is best from 10 judgements to 200; for people on the features of LPIPS it is 300 to 1,000.

Shapes: C channels of all taps, J judges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastdps.training.answers import Answers, find_contradictions
from fastdps.training.cross_validation import (
    Chosen,
    OwnHeads,
    Rounds,
    Setting,
    choose_setting,
    fit_own_heads,
    learning_curve,
    make_rounds,
)
from fastdps.training.differences import Differences, HeadPrior
from fastdps.training.dual_newton import Array
from fastdps.training.expected import CurvePoint, Expected, Forecast, expect, forecast
from fastdps.training.kept_features import KeptFeatures

Verdict = Literal["adapted", "kept", "contradictory", "too few"]

#: The strength with too few judgements to choose one.
DEFAULT_STRENGTH = 100.0
#: Fewest judgements with a majority from which a head is chosen.
LEAST = 8
#: Least gain of a fit that is used, in units of half its interval: about half a standard error. Judgements at random
#: rarely reach it, and a real gain of a few points seldom fails to.
EVIDENCE = 0.25
#: Share of contradicting judgements from which they are called contradictory, if the fit does not beat the base.
CONTRADICTORY = 0.2


@dataclass(frozen=True)
class FewShotFit:
    """Heads that were fitted to few judgements.

    Attributes:
        weights: Channel weights to use, float32 (1 + J, C), not negative: the pooled head, then one for each judge with
            `by_judge`. The sigmoid of d_a - d_b is the probability that b is closer. Where the base is kept, its
            weights at the scale of the judgements.
        fitted: The fitted weights, whatever the verdict.
        prior: Name of the prior.
        strength: Its strength in judgements; infinite is the prior itself.
        verdict: "adapted"; "kept", the base, because the fit does not beat it; "contradictory", likewise, as many
            judgements contradict each other; "too few", the base, as there are too few judgements to tell.
        judgements: Number of judgements.
        contradicting: Number of judgements that contradict others of the same judge.
        expected: Accuracy to expect on other images, None with too few judgements.
        curve: Learning curve, by cross-validation.
        forecast: What more judgements are likely to give, None with too few.
        judges: Names of the judges that have a head.
        judge_strength: The strength that draws the heads of judges to the pooled head; None without them.
        judge_expected: Accuracy to expect of each judge's head on the answers of that judge, by name.
    """

    weights: Tensor
    fitted: Tensor
    prior: str
    strength: float
    verdict: Verdict
    judgements: int
    contradicting: int
    expected: Expected | None = None
    curve: tuple[CurvePoint, ...] = ()
    forecast: Forecast | None = None
    judges: tuple[str, ...] = ()
    judge_strength: float | None = None
    judge_expected: Mapping[str, Expected] = field(default_factory=dict)

    @property
    def message(self) -> str:
        """What to expect, in a few sentences for users."""
        return " ".join(_sentences(self))

    def forced(self) -> FewShotFit:
        """Return the fit with the fitted weights in use, whatever the verdict."""
        return replace(self, weights=self.fitted)


def fit_answers(
    features: KeptFeatures, answers: Answers, priors: Sequence[HeadPrior], *, by_judge: bool = False, seed: int = 0
) -> FewShotFit:
    """Fit a head to judgements about kept images, and estimate its accuracy.

    Args:
        features: The features of the images.
        answers: The judgements.
        priors: Weights that the head may be drawn to, the base's first (see `priors_of`).
        by_judge: Also fit a head for each judge, drawn to the pooled head.
        seed: Seed of the folds.

    Returns:
        The heads.

    Example:
        >>> fit = fit_answers(features, answers, priors_of(features.metric))  # doctest: +SKIP
        >>> fit.expected.accuracy.value  # doctest: +SKIP
        0.83
    """
    return fit_differences(Differences.of(features, answers), priors, by_judge=by_judge, seed=seed)


def fit_weights(
    features: KeptFeatures, answers: Answers, prior: HeadPrior, strength: float = DEFAULT_STRENGTH
) -> Tensor:
    """Fit the pooled head alone, without cross-validation, in milliseconds: weights float32 (C,)."""
    return torch.from_numpy(_solve(Differences.of(features, answers), prior, strength)).float()


def fit_differences(
    data: Differences, priors: Sequence[HeadPrior], *, by_judge: bool = False, seed: int = 0
) -> FewShotFit:
    """As `fit_answers`, from the differences of the moments."""
    judged = data.judged
    answers = Answers(judged.images, judged.votes_a, judged.votes_b, judged.judge, judged.judges)
    contradicting = int(find_contradictions(answers).sum())
    base = _solve(data, priors[0], math.inf)
    rounds = make_rounds(judged, seed)
    if (judged.share != 0.5).sum() < LEAST or len(rounds.rounds) < 2:
        fitted = _solve(data, priors[0], DEFAULT_STRENGTH)
        fit = _fit(base, fitted, priors[0].name, DEFAULT_STRENGTH, "too few", len(judged), contradicting)
        return _with_judges(fit, data, rounds, None) if by_judge and judged.judges else fit
    chosen = choose_setting(data, rounds, priors)
    prior, strength = priors[chosen.setting.prior], chosen.setting.strength
    fitted = _solve(data, prior, strength)
    expected = expect(chosen.held_out, chosen.place, seed)
    verdict = _verdict(chosen, expected, contradicting / len(judged))
    used = fitted if verdict == "adapted" else base
    curve = learning_curve(data, rounds, prior, strength, seed)
    ahead = forecast(curve, expected.base.value, len(judged), float(chosen.held_out.votes.sum()))
    fit = _fit(used, fitted, prior.name, strength, verdict, len(judged), contradicting)
    fit = replace(fit, expected=expected, curve=curve, forecast=ahead)
    return _with_judges(fit, data, rounds, chosen) if by_judge and judged.judges else fit


def _fit(used: Array, fitted: Array, *rest: Any) -> FewShotFit:
    weights, own = (torch.from_numpy(one[None]).float() for one in (used, fitted))
    return FewShotFit(weights, own, *rest)


def _solve(data: Differences, prior: HeadPrior, strength: float) -> Array:
    """Return the head (C,) of all judgements."""
    everything = [np.ones(len(data.x), bool)]
    return np.asarray(data.solve(everything, data.scaled(everything, prior.array), [strength])[0, 0])


def _verdict(chosen: Chosen, expected: Expected, contradicting: float) -> Verdict:
    gain = expected.gain
    if chosen.setting != Setting(0, math.inf) and gain.value > EVIDENCE * (gain.high - gain.value):
        return "adapted"
    return "contradictory" if contradicting >= CONTRADICTORY else "kept"


def _with_judges(fit: FewShotFit, data: Differences, rounds: Rounds, chosen: Chosen | None) -> FewShotFit:
    """Return the fit with a head for each judge, which is the pooled head in use where that serves best."""
    own: OwnHeads = fit_own_heads(
        data, rounds, None if chosen is None else chosen.heads, fit.fitted[0].double().numpy()
    )
    heads, judges = torch.from_numpy(own.weights).float(), data.judged.judges
    is_own = chosen is not None and math.isfinite(own.strength)
    expected = {}
    if own.held_out is not None and chosen is not None:
        for number, name in enumerate(judges):
            mask = data.judged.judge == number
            held_out = replace(own.held_out, base=chosen.held_out.base, votes=own.held_out.votes * mask)
            if (held_out.votes > 0).sum() >= LEAST:
                expected[name] = expect(held_out, 0)
    return replace(
        fit,
        weights=torch.cat([fit.weights, heads if is_own else fit.weights.repeat(len(judges), 1)]),
        fitted=torch.cat([fit.fitted, heads]),
        judges=judges,
        judge_strength=own.strength,
        judge_expected=expected,
    )


def _sentences(fit: FewShotFit) -> list[str]:
    count = f"{fit.judgements:,} judgement{'s' if fit.judgements != 1 else ''}"
    said = []
    if fit.expected is None:
        said.append(
            f"{count}: too few to tell how good a metric they give; at least {LEAST} with a majority are needed."
        )
    else:
        own, base = fit.expected.accuracy, fit.expected.base
        interval = f"95 %: {own.low:.0%} to {own.high:.0%}"
        if fit.verdict == "adapted":
            said.append(
                f"{count}: expect the metric to agree with {own.value:.0%} of the votes on other images ({interval}), "
                f"where the base agrees with {base.value:.0%}."
            )
        else:
            said.append(
                f"{count}: the fit does not beat the base, which agrees with {base.value:.0%} of the votes on other "
                f"images (95 %: {base.low:.0%} to {base.high:.0%})."
            )
    if fit.contradicting:
        said.append(f"{fit.contradicting:,} of them contradict each other.")
    if fit.verdict == "contradictory":
        said.append("No metric can follow such judgements: look through them, or judge again.")
    if fit.forecast is not None:
        said.append(_ahead(fit.forecast))
    return said


def _ahead(forecast: Forecast) -> str:
    gain = forecast.gain
    if gain.value < 0.005:
        return f"{forecast.more:,} more would hardly change the accuracy."
    points = f"{100 * gain.low:.0f} to {100 * gain.high:.0f}"
    return f"{forecast.more:,} more would give about +{100 * gain.value:.0f} points ({points})."
