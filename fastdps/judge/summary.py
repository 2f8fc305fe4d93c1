"""Figures about answers: how well they were foreseen, how consistent each person is, and how much people agree.

Only decided answers count, not "cannot say". A person who is asked the same triplet twice counts once, with the first
answer, in everything but the consistency.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest

from fastdps.judge.answers import PageAnswer
from fastdps.metric.scores import two_afc

#: The confidence of intervals.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Rate:
    """A share of a number of cases.

    Attributes:
        hits: Number of hits; a tie counts 0.5.
        of: Number of cases.
    """

    hits: float
    of: int

    def to_dict(self) -> dict[str, Any] | None:
        """Return the share and its 95 % interval (Wilson 1927) as JSON types; None without cases."""
        if not self.of:
            return None
        low, high = binomtest(round(self.hits), self.of).proportion_ci(CONFIDENCE, method="wilson")
        return {"value": self.hits / self.of, "low": float(low), "high": float(high), "of": self.of}


def foreseen(answers: Iterable[PageAnswer], by: str = "predicted") -> Rate:
    """Return how many answers a metric foresaw before it was given them (prequential accuracy).

    Args:
        answers: Answers of any people. Repeats and those without a prediction do not count.
        by: "predicted" for the fitted metric, "baseline" for the base.

    Returns:
        The rate.
    """
    judged = [
        (getattr(answer, by), answer.judge)
        for answer in answers
        if answer.is_decided and answer.repeats is None and None not in (answer.predicted, answer.baseline)
    ]
    if not judged:
        return Rate(0, 0)
    probability, votes = torch.tensor(judged, dtype=torch.float64).unbind(dim=1)
    return Rate(float(two_afc(probability, 1 - probability, votes).sum()), len(judged))


def consistency(answers: Sequence[PageAnswer]) -> Rate:
    """Return how often a person chose the same image when a triplet was repeated."""
    by_id = {answer.answer: answer for answer in answers}
    both = [(by_id[answer.repeats], answer) for answer in answers if answer.repeats in by_id]
    decided = [(_chosen(one), _chosen(other)) for one, other in both if one.is_decided and other.is_decided]
    return Rate(sum(one == other for one, other in decided), len(decided))


def agreement(people: Mapping[str, Sequence[PageAnswer]]) -> list[dict[str, Any]]:
    """Return, for each two people, the triplets that both decided and how often they chose the same image."""
    chosen = {name: _choices(answers) for name, answers in people.items()}
    rows = []
    for one, other in itertools.combinations(chosen, 2):
        common = chosen[one].keys() & chosen[other].keys()
        rate = Rate(sum(chosen[one][key] == chosen[other][key] for key in common), len(common))
        rows.append({"people": [one, other], "agreement": rate.to_dict(), "triplets": len(common)})
    return rows


def sides(answers: Iterable[PageAnswer]) -> Rate:
    """Return how often the left image was chosen: far from a half, a person favours a side."""
    decided = [answer for answer in answers if answer.is_decided]
    return Rate(sum(answer.judge == 0 for answer in decided), len(decided))


def person_summary(answers: Sequence[PageAnswer]) -> dict[str, Any]:
    """Return the figures of one person as JSON types."""
    times = [answer.seconds for answer in answers if answer.seconds is not None]
    random = [answer for answer in answers if answer.asked in ("random", "given")]
    return {
        "answers": len(answers),
        "undecided": sum(not answer.is_decided for answer in answers),
        "repeats": sum(answer.repeats is not None for answer in answers),
        "median_s": statistics.median(times) if times else None,
        "last": answers[-1].time if answers else None,
        "left": sides(answers).to_dict(),
        "consistency": consistency(answers).to_dict(),
        "foreseen": foreseen(answers).to_dict(),
        "foreseen_by_base": foreseen(answers, "baseline").to_dict(),
        "foreseen_random": foreseen(random).to_dict(),
    }


def _choices(answers: Iterable[PageAnswer]) -> dict[tuple[str, str, str], str]:
    """Return the chosen image by triplet; of a triplet that was asked twice the first choice."""
    found: dict[tuple[str, str, str], str] = {}
    for answer in answers:
        if answer.is_decided:
            low, high = sorted((answer.p0, answer.p1))
            found.setdefault((answer.ref, low, high), _chosen(answer))
    return found


def _chosen(answer: PageAnswer) -> str:
    return answer.p1 if answer.judge > 0.5 else answer.p0
