"""Backbones trained on judgement sets: gradients of the plain computation, resuming, and use of the result."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import fastdps
from fastdps.commands import cli
from fastdps.contexts.judgements import judged_pairs
from fastdps.loading.loader import open_shards
from fastdps.metric.backbones import Backbone
from fastdps.metric.distances import group_moments, moments, normalized_vectors
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.runtime.processes import join_processes
from fastdps.shards.judgements import read_judgements
from fastdps.training.judged_batches import JudgedBatches
from fastdps.training.judged_task import JudgedTask
from fastdps.training.kept_images import KeptImages
from fastdps.training.recipes import get_recipe
from fastdps.training.step import Stepper
from helpers.judged_images import packed_judged
from helpers.warm_python import launch_warm


@pytest.fixture(scope="module")
def judged_sets(tmp_path_factory):
    return packed_judged(tmp_path_factory.mktemp("judged"), rows=160, images=16, holdout=0.3)


@pytest.fixture
def _pretrained(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


@pytest.mark.parametrize("comparison", ["spatial", "spatial+mean"])
@pytest.mark.parametrize("pairs", [4, 60])
def test_moments_of_a_group_are_those_of_views(comparison, pairs):
    """Both ways of computing them: difference by difference, and from scalar products."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.rand(12, channels, 3, 3, generator=generator, requires_grad=True) for channels in (5, 8)]
    rng = np.random.default_rng(0)
    chosen = torch.from_numpy(np.stack([rng.choice(12, 2, replace=False) for _ in range(pairs)]))
    found = group_moments(normalized_vectors(features, comparison), *chosen.unbind(dim=1))
    expected = moments([feature[chosen.flatten()] for feature in features], 1, comparison)
    torch.testing.assert_close(found.mean[0], expected.mean[:, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.var[0], expected.var[:, 0], rtol=1e-3, atol=1e-6)
    weights = torch.rand(found.mean.shape[-1], generator=generator)
    gradients = [torch.autograd.grad((one.mean @ weights).sum(), features) for one in (found, expected)]
    for own, oracle in zip(*gradients, strict=True):
        torch.testing.assert_close(own, oracle, rtol=1e-3, atol=1e-5)


def test_a_step_has_the_gradients_of_the_plain_computation(judged_sets):
    """Triplet by triplet: d(ref, a), d(ref, b), cross-entropy, weighted by votes."""
    judged = judged_pairs(read_judgements(judged_sets / "train"))
    loader = open_shards(judged_sets / "train", batch_size=50, seed=None)
    config = get_recipe("judgements", {"variant": "tune", "dropout": 0.0, "batch_size": 8})
    batches = JudgedBatches(judged, KeptImages(loader, judged.ids), most_images=8, seed=0)
    with join_processes() as processes:
        metric = PerceptualMetric(Backbone("alexnet", pretrained=False, seed=0))
        stepper = Stepper(config, JudgedTask(), metric, processes)
        gradients = {}
        stepper.optimizer.step = lambda *_: gradients.update(
            {name: p.grad.clone() for name, p in stepper.model.named_parameters() if p.grad is not None}
        )
        batch = next(iter(batches.epoch(0)))
        stepper.step(batch, 0, 0)
    stepper.model.zero_grad()
    images = dict(zip(batch.ids.tolist(), batch.components["image"].permute(0, 3, 1, 2) / 255, strict=True))
    own = np.flatnonzero(np.isin(judged.ids[judged.images], batch.ids.numpy()).all(axis=1))
    assert 0 < len(batch.components["share"]) <= len(own)
    total = torch.zeros(())
    part = batch.components
    ends = torch.stack([part["first"], part["second"]], dim=1)
    for a, b, share, weight in zip(part["pair_a"], part["pair_b"], part["share"], part["weight"], strict=True):
        to_a, to_b = (set(batch.ids[ends[pair]].tolist()) for pair in (a, b))
        (ref,) = to_a & to_b
        views = torch.stack([images[ref], images[(to_a - {ref}).pop()], images[(to_b - {ref}).pop()]])[None]
        d = metric.moments(views).mean[0] @ stepper.model.heads.weights.T
        logit = stepper.model.judge(d[:1], d[1:])[0, 0]
        total = total + weight * F.binary_cross_entropy_with_logits(logit, share)
    (total / batch.loss_size).backward()
    assert len(gradients) > 10
    for name, parameter in stepper.model.named_parameters():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-4 * scale)


def train(sets, out, *options):
    argv = ["train", "--judgements", str(sets / "train"), "--out", str(out), "--variant", "tune", "--batch-size", "8"]
    return cli.main([*argv, *options])


@pytest.mark.usefixtures("_pretrained")
def test_a_tuned_run_is_scored_and_used(judged_sets, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(judged_sets, run, "--epochs", "2") == 0
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), "--judgements", str(judged_sets / "train")]) == 0
    votes = json.loads((run / "scores.json").read_text())["judgements"]["pooled"]["votes"]
    assert votes["after"]["value"] > votes["before"]["value"]
    metric = fastdps.load(run)
    assert metric.judge == "pooled"
    pretrained = fastdps.load("alexnet").metric.backbone.state_dict()
    assert any(not torch.equal(value, pretrained[name]) for name, value in metric.metric.backbone.state_dict().items())
    assert cli.main(["report", str(run)]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("_pretrained")
def test_a_run_that_is_cut_resumes_to_the_same_bits(judged_sets, tmp_path):
    assert train(judged_sets, tmp_path / "whole", "--epochs", "2", "--checkpoint-every", "3") == 0
    expected = load_file(tmp_path / "whole" / "metric.safetensors")
    run = tmp_path / "cut"
    assert train(judged_sets, run, "--epochs", "2", "--checkpoint-every", "3") == 0
    kept = sorted((run / "checkpoints").glob("*.safetensors"))
    for path in kept[1:]:
        path.unlink()
    (run / "metric.safetensors").unlink()
    assert train(judged_sets, run, "--epochs", "2", "--checkpoint-every", "3") == 0
    found = load_file(run / "metric.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.usefixtures("_pretrained")
def test_each_judge_gets_a_backbone_and_validation_chooses_the_epoch(judged_sets, tmp_path):
    run = tmp_path / "run"
    options = ("--epochs", "2", "--by", "judge", "--contexts", "bright,colour")
    assert train(judged_sets, run, *options, "--validation", str(judged_sets / "val")) == 0
    assert [path.name for path in sorted((run / "metrics").iterdir())] == [f"{n:03d}.safetensors" for n in range(3)]
    assert [fastdps.load(run, context=name).judge for name in ("pooled", "bright", "colour")] == [
        "pooled",
        "bright",
        "colour",
    ]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert sum(record["event"] == "validation" for record in log) == 6
    assert sum(record["event"] == "chosen" for record in log) == 3
    scores = fastdps.evaluate(run, judgements=judged_sets / "val")
    assert scores.judgements is not None
    assert set(scores.judgements.judges) == {"bright", "colour", "random"}


@pytest.mark.usefixtures("_pretrained")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--accumulate", "2"), "--accumulate divides the images of a step"),
        (("--recipe", "paper"), "which must be logistic"),
        (("--batch-size", "2"), "a judgement has 3 images"),
    ],
)
def test_what_cannot_be_trained_is_an_error(judged_sets, tmp_path, capsys, options, message):
    assert train(judged_sets, tmp_path / "run", *options) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("_pretrained")
def test_two_processes_give_the_metric_of_one(judged_sets, tmp_path):
    options = ["--judgements", str(judged_sets / "train"), "--variant", "tune", "--batch-size", "8", "--max-steps", "4"]
    assert cli.main(["train", *options, "--out", str(tmp_path / "one")]) == 0
    for result in launch_warm(2, "-m", "fastdps.train", *options, "--out", tmp_path / "two"):
        assert result.returncode == 0, result.stderr
    images = torch.rand(2, 6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, two = (fastdps.load(tmp_path / name)(*images) for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=2e-2, atol=1e-4)
