"""Held-out distortions: their draws, and the counts of choices on them."""

import pytest
import torch

from fastdps.contexts.distortions import NAMES, draw_plan, make_views, to_float
from fastdps.contexts.rankings import labels, pairs, sample_rankings
from fastdps.evaluation.tally import EVALUATION_SEED, evaluation_views, tally_choices
from fastdps.loading.spec import Batch
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.runtime.processes import join_processes

CPU = torch.device("cpu")
DRAWS = 3


@pytest.fixture(scope="module")
def batch() -> Batch:
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch({"image": pixels}, torch.tensor([0, 1, 7, 1000]), 4)


def views_of_epoch(batch: Batch, epoch: int) -> torch.Tensor:
    return make_views(to_float(batch.images), draw_plan(batch.ids, seed=EVALUATION_SEED, epoch=epoch), "nearest")


def test_draws_are_the_epochs_of_the_seed(batch):
    for draw in range(DRAWS):
        assert torch.equal(evaluation_views(batch, draw, CPU, "nearest"), views_of_epoch(batch, draw))


def test_draws_of_an_image_differ(batch):
    """The references are equal, and all distortions of all images differ between any two draws."""
    drawn = [evaluation_views(batch, draw, CPU, "nearest") for draw in range(DRAWS)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        changed = (drawn[first] != drawn[second]).flatten(2).any(dim=2)
        assert not changed[:, 0].any()
        assert changed[:, 1:].all(dim=1).sum() >= 3  # a distortion can have the same discrete parameters twice
        assert changed[:, 1:].any(dim=1).all()


class Loader:
    """A loader of one batch."""

    steps = 1

    def __init__(self, batch: Batch) -> None:
        self.batch, self.samples = batch, len(batch.ids)

    def epoch(self, number: int):
        assert number == 0
        return iter([self.batch])


def test_counts_are_of_all_draws(batch):
    """The counts of n draws are the sums of the choices in epochs 0 to n - 1."""
    backbone = Backbone("alexnet", pretrained=False)
    rankings = sample_rankings(2, NAMES, seed=3)
    heads = torch.rand(2, 1152, generator=torch.Generator().manual_seed(1)).sub(0.9).clamp_min(0)
    metric, baseline = PerceptualMetric(backbone, heads, rankings), PerceptualMetric(backbone)
    tally = tally_choices(baseline, [metric], Loader(batch), join_processes(), draws=DRAWS)
    expected = torch.zeros(15, 2, dtype=torch.float64)
    per_draw = []
    for epoch in range(DRAWS):
        views = views_of_epoch(batch, epoch)
        distances = torch.stack([metric(views[:, 0], views[:, 1 + d]) for d in range(len(NAMES))], dim=1)
        first, second = pairs(len(NAMES)).unbind(dim=1)
        chosen = (distances[:, first] > distances[:, second]).double()  # (n, pairs, K)
        agreeing = (chosen == labels(rankings, NAMES)).sum(dim=0).double()
        per_draw.append(agreeing)
        expected += agreeing
    assert torch.equal(tally.adapted, expected)
    assert tally.judged == DRAWS * len(batch.ids)
    assert not torch.equal(per_draw[0], per_draw[1])  # so that a draw counted twice would be seen
