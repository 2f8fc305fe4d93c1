"""Heads of people from their answers, what is told about them, and the run that holds them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdps.judge.answers import STATE_DIRECTORY
from fastdps.judge.triplets import Triplet
from fastdps.runtime.files import write_errors
from fastdps.training.adapted_run import AdaptedTo, save_adapted
from fastdps.training.answers import Answers
from fastdps.training.bases import Base
from fastdps.training.few_shot import LEAST, FewShotFit, fit_answers
from fastdps.training.kept_features import KeptFeatures

#: The answers of each person: triplets with their judgements (0 for the first candidate, 1 for the second, or 0.5).
Judged = Mapping[str, Sequence[tuple[Triplet, float]]]


@dataclass(frozen=True)
class LearnedHeads:
    """What was learned from the answers of all people.

    Attributes:
        fit: The fit; with several people each has a head, drawn to that of all together.
        answers: Number of answers by person.
    """

    fit: FewShotFit
    answers: Mapping[str, int]

    def weights_of(self, person: str) -> Tensor:
        """Return the channel weights (C,) of a person's head; of one without answers those of all together."""
        place = 1 + self.fit.judges.index(person) if person in self.fit.judges else 0
        return self.fit.weights[place]

    def expected_of(self, person: str) -> dict[str, Any] | None:
        """Return the accuracy to expect for a person as JSON types, None with too few answers."""
        found = self.fit.judge_expected.get(person, self.fit.expected)
        if found is None:
            return None
        return {
            name: {"value": one.value, "low": one.low, "high": one.high}
            for name, one in (("accuracy", found.accuracy), ("base", found.base))
        }

    def text_for(self, person: str) -> str:
        """Return what a person is told at the page."""
        fit, given = self.fit, self.answers.get(person, 0)
        missing = LEAST - given
        if fit.expected is None:
            return f"It begins to learn in {missing} answers." if missing > 0 else "It begins to learn."
        said = []
        if fit.verdict == "adapted":
            found = fit.judge_expected.get(person, fit.expected)
            said.append(f"It should agree with you in {100 * found.accuracy.value:.0f} % of new cases.")
        elif fit.verdict == "contradictory":
            said.append(f"{fit.contradicting:,} answers contradict others, so it cannot follow them yet.")
        else:
            said.append("It does not beat the metric that it began with yet.")
        if fit.forecast is not None:
            gain = 100 * fit.forecast.gain.value
            more = f"{fit.forecast.more:,} more answers"
            points = "point" if gain < 1.5 else "points"
            said.append(f"{more} may give +{gain:.0f} {points}." if gain >= 0.5 else f"{more} would hardly change it.")
        return " ".join(said)


def fit_people(features: KeptFeatures, judged: Judged, base: Base, seed: int = 0) -> LearnedHeads:
    """Fit the heads of all people to their answers, of which there is at least one."""
    fit = fit_answers(features, answers_of(judged), base.priors, by_judge=len(judged) > 1, seed=seed)
    return LearnedHeads(fit, {person: len(given) for person, given in judged.items()})


def answers_of(judged: Judged) -> Answers:
    """Return answers with the names of the people; there is at least one."""
    rows = [(triplet, judge, person) for person, given in judged.items() for triplet, judge in given]
    triplets, share, judges = zip(*rows, strict=True)
    return Answers.of(triplets, share, judges=judges)


def save_run(run: Path, heads: LearnedHeads, base: Base, data: AdaptedTo) -> None:
    """Write a run with a head for all people together, and with several people one for each.

    It is written beside the state of the page and moved to its place, so that there is always a complete run.

    Raises:
        FastDPSError: It cannot be written.
    """
    new, old = (run.parent / STATE_DIRECTORY / name for name in ("run", "run.old"))
    with write_errors(run):
        for left in (new, old):
            if left.exists():
                shutil.rmtree(left)
    save_adapted(new, base, heads.fit, data)
    with write_errors(run):
        if run.exists():
            run.rename(old)
        new.rename(run)
        shutil.rmtree(old, ignore_errors=True)
