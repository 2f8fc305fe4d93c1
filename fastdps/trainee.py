"""What training changes: heads and judges as one Module, and the small functions a step is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fastdps.contexts import Ranking, labels, pairs
from fastdps.distortions import NAMES
from fastdps.heads import Heads, LogisticJudge, MLPJudge
from fastdps.objective import LOSSES, sync_loss
from fastdps.recipes import TrainConfig
from fastdps.scores import two_afc


class Trainee(nn.Module):
    """The heads of K contexts and their judges. Maps moments to loss and accuracy.

    It is one Module so that the gradients of all of it are averaged over processes.
    """

    votes: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, config: TrainConfig, rankings: Sequence[Ranking], channels: int) -> None:
        super().__init__()
        contexts = len(rankings)
        self.heads = Heads(contexts, channels, initial_weight=config.initial_weight, p=config.dropout)
        self.judge: nn.Module
        if config.judge == "logistic":
            self.judge = LogisticJudge(contexts, initial_temperature=config.initial_temperature)
        else:
            self.judge = MLPJudge(contexts, generator=torch.Generator().manual_seed(config.seed))
        self.loss = LOSSES[config.loss]
        self.sync_loss = config.sync_loss
        first, second = pairs(len(NAMES)).unbind(dim=1)
        self.register_buffer("first", first.clone(), persistent=False)
        self.register_buffer("second", second.clone(), persistent=False)
        self.register_buffer("votes", labels(rankings, NAMES), persistent=False)

    def forward(self, mean: Tensor, var: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Loss (n, K) and, without gradient, accuracy (n, K) on moments (n, D, C); both are means over the pairs."""
        distances = self.heads(mean, var, generator)
        d0, d1 = distances[:, self.first], distances[:, self.second]
        loss = self.loss(self.judge(d0, d1), self.votes)
        accuracy = two_afc(d0.detach(), d1.detach(), self.votes).mean(dim=1)
        if self.sync_loss:
            loss = loss + sync_loss(d0, d1, self.votes, accuracy.mean(dim=0))
        return loss, accuracy


def learning_rate_at(config: TrainConfig, step: int, steps: int) -> float:
    """Half a cosine from the configured rate to zero over the whole run."""
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))


def dropout_generator(seed: int, step: int, rank: int, device: torch.device) -> torch.Generator:
    """The noise of one step of one process, independent of all steps before it."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))
