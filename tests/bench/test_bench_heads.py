"""The baselines of the heads, against the heads of the package."""

from __future__ import annotations

import torch

from bench.harness.head_loops import module_dict_step, vmap_step
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import sample_rankings
from fastdps.loading.spec import Batch
from fastdps.metric.distances import Moments
from fastdps.training.model import TrainedModel
from fastdps.training.recipes import fast
from fastdps.training.tasks import RankingTask

CPU = torch.device("cpu")


def test_the_usual_heads_take_the_same_step():
    """Expected error and Adam on roots: the baselines end with the weights of the product."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.rand(8, len(NAMES), 12, generator=generator)
    rankings = sample_rankings(3, NAMES, seed=0)
    task = RankingTask(rankings, fast(), CPU)
    model = TrainedModel(fast(), 3, [12])
    optimizer = torch.optim.Adam(model.parameters(), lr=fast().learning_rate, betas=fast().adam_betas)
    steps = {"vmap": vmap_step(mean, rankings), "modules": module_dict_step(mean, rankings)}
    for _ in range(5):
        batch = Batch({}, torch.arange(8), 8)
        (model(Moments(mean, mean), task.judgements(batch, 0), generator).loss.sum() / 8).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.heads.project_()
        found = {name: step() for name, step in steps.items()}
    for weights in found.values():
        torch.testing.assert_close(weights, model.heads.weights.detach(), rtol=1e-3, atol=1e-5)
