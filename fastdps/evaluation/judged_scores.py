"""Agreement with the judges of a judgement set, as objects, and as `scores.json["judgements"]` holds them.

{"set": {"path", "sha256", "triplets", "images"},
 "pooled": {"triplets", "images", "ties", "human",
            "votes": {"before", "after", "change", "pooled", "unadapted", "ceiling"}, "majority": the same, or null},
 "judges": {name: as "pooled"},
 "calibration": [{"predicted", "observed", "votes"}]}

"before", "after", "change", "pooled" and "unadapted" are {"value", "low", "high"}: a share and its 95 % interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fastdps.metric.scores import Interval


@dataclass(frozen=True)
class VoteAgreement:
    """Agreement with votes, or with majorities; shares in [0, 1].

    Attributes:
        before: The unadapted metric of the pretrained backbone.
        after: The adapted metric: the judge's own head where it has one, the pooled head otherwise; for a run without
            judges the mean over its contexts.
        change: `after` minus `before`, on the same resamples.
        pooled: The pooled head; None for the pooled judge itself, and for runs without judges.
        ceiling: The largest agreement that any metric can reach.
        unadapted: The run's trained backbone with equal weights; None for a frozen backbone, where that is `before`,
            and for a backbone per context.
    """

    before: Interval
    after: Interval
    change: Interval
    pooled: Interval | None
    ceiling: float
    unadapted: Interval | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> VoteAgreement:
        """Return the agreement of `to_dict`."""
        names = ("before", "after", "change", "pooled", "unadapted")
        intervals: dict[str, Any] = {name: content.get(name) and Interval(**content[name]) for name in names}
        return cls(**intervals, ceiling=content["ceiling"])


@dataclass(frozen=True)
class JudgeScores:
    """Scores on the judgements of one judge, or of all together.

    Attributes:
        triplets: Number of judged triplets.
        images: Number of images in them.
        ties: Number of triplets without a majority, which `majority` leaves out.
        human: Share of the votes that agree with the majority of their triplet, where there is one; None with one vote
            per triplet.
        votes: Agreement with votes, each counted once.
        majority: Agreement with majorities, each triplet counted once; None with one vote per triplet, where it is
            the same.
    """

    triplets: int
    images: int
    ties: int
    human: float | None
    votes: VoteAgreement
    majority: VoteAgreement | None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> JudgeScores:
        """Return the scores of `to_dict`."""
        parts = {name: content[name] and VoteAgreement.from_dict(content[name]) for name in ("votes", "majority")}
        return cls(**{**content, **parts})


@dataclass(frozen=True)
class CalibrationBin:
    """Choices of about the same confidence.

    Attributes:
        predicted: Mean probability that the metric gives to its choices, in [0.5, 1].
        observed: Share of votes that agree with them.
        votes: Number of votes.
    """

    predicted: float
    observed: float
    votes: float


@dataclass(frozen=True)
class JudgementScores:
    """Scores of a run on a judgement set.

    Attributes:
        set: Path, sha256, number of triplets and number of images of the set.
        pooled: Scores on the judgements of all judges together.
        judges: Scores on those of each judge, by name.
        calibration: Calibration of the pooled head's probabilities; empty for runs that were not adapted to judgements.
    """

    set: dict[str, Any]
    pooled: JudgeScores
    judges: dict[str, JudgeScores]
    calibration: tuple[CalibrationBin, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON types."""
        return {**asdict(self), "calibration": [asdict(one) for one in self.calibration]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> JudgementScores:
        """Return the scores of `to_dict`."""
        return cls(
            content["set"],
            JudgeScores.from_dict(content["pooled"]),
            {name: JudgeScores.from_dict(scores) for name, scores in content["judges"].items()},
            tuple(CalibrationBin(**one) for one in content["calibration"]),
        )
