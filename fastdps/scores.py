"""Scores: how well distances agree with labels or votes. One definition each."""

from __future__ import annotations

import torch
from torch import Tensor


def prefers_second(d0: Tensor, d1: Tensor) -> Tensor:
    """The metric's choice: 1 where 1 is closer to the reference, 0 where 0 is, 0.5 on a tie."""
    return 0.5 * (1 + torch.sign(d0 - d1))


def agreement(chosen: Tensor, votes: Tensor, *, of: int = 1) -> Tensor:
    """How many of `of` choices agree with the votes, in the mean: `chosen` counts those for 1, `votes` is a share.

    With labels 0 or 1 as votes, counts of choices and halves stay exact.
    """
    return chosen * votes + (of - chosen) * (1 - votes)


def two_afc(d0: Tensor, d1: Tensor, votes: Tensor) -> Tensor:
    """Two-alternative forced choice: the share of votes that agree with the metric, element by element.

    `votes` in [0, 1] is the share that finds 1 closer to the reference; the metric's choice is the smaller distance,
    and a tie counts 0.5. With labels 0 or 1 as votes this is the accuracy. The three broadcast.
    Source: Zhang et al. 2018, section 2.2 and its evaluation code.
    """
    return agreement(prefers_second(d0, d1), votes)


def improved(baseline: Tensor, adapted: Tensor) -> Tensor:
    """Whether a context is improved: its adapted accuracy is strictly above its baseline accuracy."""
    return adapted > baseline
