"""Confidence intervals of accuracies: held-out images are the sample, and contexts and distortions are fixed.

All choices of one image are one observation, whatever the number of draws. Shapes: n images, P pairs, K contexts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdps.metric.scores import Interval

CONFIDENCE = 0.95
#: What an interval is of, in the order of the rows of `ImageSpread.squares`.
_NAMES = ("baseline", "adapted", "change")


@dataclass(frozen=True)
class AccuracyIntervals:
    """95 % intervals of the accuracies of a context, or of their means over contexts.

    Attributes:
        baseline: The unadapted metric.
        adapted: The adapted metric.
        change: `adapted` minus `baseline`, on the same images and draws.
    """

    baseline: Interval
    adapted: Interval
    change: Interval

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> AccuracyIntervals:
        """Return the intervals of `dataclasses.asdict`."""
        return cls(**{name: Interval(**content[name]) for name in _NAMES})


@dataclass(frozen=True)
class ImageSpread:
    """How much agreeing choices differ from image to image.

    Attributes:
        images: Number of images.
        squares: Sums over images of the squared number of agreeing choices, float64 (3, K + 1): of the unadapted and of
            the adapted metric, and of their difference. The last column is of all contexts together. Sums of up to
            half a million images are exact, so they do not depend on the number of processes.
    """

    images: int
    squares: Tensor

    def intervals(self, baseline: Tensor, adapted: Tensor, choices: int) -> list[AccuracyIntervals] | None:
        """Return intervals by Student's distribution: of each context, and last of the mean over contexts.

        Args:
            baseline: Accuracy of the unadapted metric in each context, (K,).
            adapted: That of the adapted one.
            choices: Number of choices per image and context.

        Returns:
            K + 1 intervals; None with fewer than two images.
        """
        if self.images < 2:
            return None
        from scipy.stats import t

        means = torch.stack([baseline, adapted, adapted - baseline]).double()
        means = torch.cat([means, means.mean(dim=1, keepdim=True)], dim=1)
        scale = torch.full((means.shape[1],), float(choices), dtype=torch.float64)
        scale[-1] *= len(baseline)
        variance = (self.squares / scale**2 / self.images - means**2).clamp_min(0) / (self.images - 1)
        half = float(t.ppf((1 + CONFIDENCE) / 2, self.images - 1)) * variance.sqrt()
        lowest = torch.tensor([[0.0], [0.0], [-1.0]], dtype=torch.float64)
        low, high = torch.maximum(means - half, lowest), (means + half).clamp_max(1)
        ends = torch.stack([means, low, high], dim=2).transpose(0, 1).tolist()
        return [AccuracyIntervals(*(Interval(*of) for of in row)) for row in ends]


def agreeing_per_image(chosen: Tensor, votes: Tensor) -> Tensor:
    """Return the number of agreeing choices of each image in each context.

    Args:
        chosen: 1 where the second of a pair is chosen, 0.5 on a tie, (n, P, K) or (n, P, 1).
        votes: 1 where the second must be closer, else 0, (P, K).

    Returns:
        The numbers, float64 (n, K); exact.
    """
    sign = (2 * votes - 1).to(chosen.dtype)
    return (chosen * sign).sum(dim=1, dtype=torch.float64) + (1 - votes).sum(dim=0, dtype=torch.float64)


def squares_of(baseline: Tensor, adapted: Tensor) -> Tensor:
    """Return the sums of squares of `ImageSpread` over some images, from agreeing choices (n, K) each."""
    counts = torch.stack([baseline, adapted, adapted - baseline])
    return torch.cat([counts, counts.sum(dim=2, keepdim=True)], dim=2).square().sum(dim=1)
