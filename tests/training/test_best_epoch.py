"""The best epoch is kept, not the last one, separately for each context."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fastdps.commands import cli
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import sample_rankings
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.training import best_epoch
from fastdps.training.best_epoch import BestEpoch
from helpers.shard_sets import raw_samples, write_set

RANKINGS = ";".join(",".join(ranking) for ranking in sample_rankings(2, NAMES, seed=3))


@pytest.fixture
def metric() -> PerceptualMetric:
    return PerceptualMetric(Backbone("alexnet", pretrained=False), torch.zeros(2, 1152))


def after_epochs(metric: PerceptualMetric, scores: list[list[float]], *, trains_backbone: bool = False) -> BestEpoch:
    """Record the scores of epochs, in each of which the tensors of the metric have the epoch's number as value."""
    best = BestEpoch(2, trains_backbone=trains_backbone)
    for epoch, found in enumerate(scores):
        metric.weights.fill_(epoch)
        for tensor in metric.backbone.state_dict().values():
            tensor.fill_(epoch)
        best.update(epoch, torch.tensor(found, dtype=torch.float64), metric)
    return best


def restored(best: BestEpoch, metric: PerceptualMetric) -> list[float]:
    best.restore(metric)
    assert (metric.weights == metric.weights[:, :1]).all()
    return metric.weights[:, 0].tolist()


@pytest.mark.parametrize(
    ("scores", "epochs"),
    [
        ([[0.6, 0.7], [0.5, 0.6], [0.4, 0.5]], [0, 0]),
        ([[0.5, 0.6], [0.7, 0.5], [0.6, 0.7]], [1, 2]),
        ([[0.5, 0.5], [0.6, 0.5], [0.6, 0.4]], [1, 0]),  # an equal score is not better
        ([[0.0, 0.0], [0.0, 0.0]], [0, 0]),
    ],
)
def test_each_context_has_its_best_epoch(metric, scores, epochs):
    best = after_epochs(metric, scores)
    assert best.epochs == epochs
    assert best.scores.tolist() == [scores[epoch][context] for context, epoch in enumerate(epochs)]
    assert restored(best, metric) == epochs


def test_a_trained_backbone_is_that_of_the_best_epoch(metric):
    best = after_epochs(metric, [[0.5, 0.5], [0.7, 0.7], [0.6, 0.6]], trains_backbone=True)
    assert restored(best, metric) == [1, 1]
    assert all((tensor == 1).all() for tensor in metric.backbone.state_dict().values())


def test_the_best_epoch_survives_a_resume(metric):
    best = after_epochs(metric, [[0.6, 0.5], [0.5, 0.6]])
    again = BestEpoch(2, trains_backbone=False)
    again.load({name: tensor.clone() for name, tensor in best.tensors().items()}, best.epochs, torch.device("cpu"))
    metric.weights.fill_(2)
    again.update(2, torch.tensor([0.55, 0.55]), metric)
    assert again.epochs == [0, 1]
    assert restored(again, metric) == [0, 1]


def test_a_training_ends_with_the_best_epoch(tmp_path, monkeypatch, weights_dir):
    """The scores of one context fall, those of the other rise."""
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    write_set(tmp_path / "set", raw_samples(8, 32, 32), [8], image_size=(32, 32))
    seen: list[torch.Tensor] = []

    def scores(task, metric, *_):
        seen.append(metric.weights.clone())
        return torch.tensor([0.9 - 0.1 * len(seen), 0.1 * len(seen)], dtype=torch.float64)

    monkeypatch.setattr(best_epoch, "validation_scores", scores)
    data = ["--shards", str(tmp_path / "set"), "--validation", str(tmp_path / "set"), "--out", str(tmp_path / "run")]
    assert cli.main(["train", *data, "--contexts", RANKINGS, "--batch-size", "4", "--epochs", "3"]) == 0
    assert len(seen) == 3
    assert not torch.equal(seen[0][0], seen[2][0])
    weights = load_file(tmp_path / "run" / "metric.safetensors")["weights"]
    assert torch.equal(weights, torch.stack([seen[0][0], seen[2][1]]))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert next(record["accuracies"] for record in log if record["event"] == "validation") == pytest.approx([0.8, 0.1])
