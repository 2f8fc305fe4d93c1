"""What steps are made of: pairs as they are drawn, and the paper's training step written out literally."""

import dataclasses

import lpips
import pytest
import torch
from safetensors.torch import load_file

from fastdps.contexts.distortions import NAMES, apply_plan, draw_plan
from fastdps.contexts.rankings import all_rankings, pairs, sample_rankings
from fastdps.loading.spec import Batch
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric, frozen_moments
from fastdps.training.model import TrainedModel
from fastdps.training.recipes import fast, get_recipe, paper
from fastdps.training.tasks import JudgementTask, RankingTask
from helpers.lpips_oracle import lpips_oracle

CPU = torch.device("cpu")


def image_batch(n: int, *, first_id: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(first_id)
    images = torch.randint(0, 256, (n, 64, 64, 3), dtype=torch.uint8, generator=generator)
    return Batch({"image": images}, torch.arange(first_id, first_id + n), n)


def one_pair(rankings, seed: int = 0) -> RankingTask:
    return RankingTask(rankings, dataclasses.replace(paper(), seed=seed), CPU)


def test_all_pairs_are_those_of_contexts():
    task = RankingTask(all_rankings(NAMES), fast(), CPU)
    judgements = task.judgements(image_batch(2), 0)
    assert torch.equal(torch.stack([judgements.first, judgements.second], dim=1), pairs(6))
    assert task.judgements_per_image == 15


def test_one_pair_is_drawn_per_image_and_context():
    rankings = sample_rankings(40, NAMES, seed=0)
    batch = image_batch(50)
    judgements = one_pair(rankings).judgements(batch, 0)
    assert judgements.first.shape == judgements.second.shape == judgements.votes.shape == (50, 1, 40)
    for n in range(50):
        for k, ranking in enumerate(rankings):
            first, second = (NAMES[index[n, 0, k]] for index in (judgements.first, judgements.second))
            assert judgements.votes[n, 0, k] == float(ranking.index(second) < ranking.index(first))
    codes = judgements.first * 6 + judgements.second
    counts = torch.bincount(codes.flatten(), minlength=36)
    ordered = counts.view(6, 6)
    assert (ordered.diagonal() == 0).all()
    off_diagonal = ordered[~torch.eye(6, dtype=torch.bool)].float()
    # 2000 draws over 30 ordered pairs: 67 each, five standard errors are 40.
    assert ((off_diagonal - 2000 / 30).abs() < 40).all()


def test_a_drawn_pair_depends_on_seed_epoch_and_sample_alone():
    rankings = sample_rankings(40, NAMES, seed=0)

    def drawn(task, batch, epoch):
        judgements = task.judgements(batch, epoch)
        return torch.cat([judgements.first, judgements.second], dim=1)

    whole = drawn(one_pair(rankings), image_batch(20), 1)
    assert torch.equal(whole[7:9], drawn(one_pair(rankings), image_batch(2, first_id=7), 1))
    assert not torch.equal(whole, drawn(one_pair(rankings), image_batch(20), 2))
    assert not torch.equal(whole, drawn(one_pair(rankings, seed=1), image_batch(20), 1))


def test_pairs_and_distortions_are_drawn_independently():
    """They share a generator and must not share its numbers."""
    batch = image_batch(3000)
    judgements = one_pair(all_rankings(NAMES)[:6]).judgements(batch, 0)
    values = draw_plan(batch.ids, seed=0, epoch=0).values[:, :, 0]
    both = torch.cat([judgements.first[:, 0].float(), values], dim=1).T
    correlation = torch.corrcoef(both)[:6, 6:]
    assert correlation.abs().max() < 5 / 3000**0.5


def test_judgements_are_votes_for_the_second():
    n = 4
    images = {name: torch.randint(0, 256, (n, 64, 64, 3), dtype=torch.uint8) for name in ("ref", "p0", "p1")}
    batch = Batch({**images, "judge": torch.tensor([0.0, 0.25, 0.5, 1.0])}, torch.arange(n), n)
    task = JudgementTask(fast(), CPU)
    views = task.views(batch, 0)
    assert torch.equal((views * 255).round().to(torch.uint8)[:, 2], images["p1"].permute(0, 3, 1, 2))
    judgements = task.judgements(batch, 0)
    distances = torch.rand(n, 2, 1)
    d0, d1 = judgements.pick(distances)
    assert torch.equal(d0[:, 0, 0], distances[:, 0, 0])
    assert torch.equal(d1[:, 0, 0], distances[:, 1, 0])
    assert judgements.votes.flatten().tolist() == [0.0, 0.25, 0.5, 1.0]


@pytest.mark.parametrize("flipped", [False, True], ids=["sync loss as it falls", "sync loss on"])
def test_the_papers_step_written_out(monkeypatch, weights_dir, flipped):
    """One context, one pair per image, four passes through LPIPS, its ranking loss, the sync loss: same numbers.

    The other way is the `lpips` package's network and loss; dropout is off.
    """
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    config = dataclasses.replace(paper(), dropout=0.0, interpolation="bilinear")
    # The reverse of what the network finds by itself has an accuracy under one half, so that the sync loss acts.
    natural = ("color", "darken", "zoom_in", "blur", "rotate", "translate")
    ranking = natural[::-1] if flipped else natural
    task = RankingTask([ranking], config, CPU)
    batch = image_batch(6)
    metric = PerceptualMetric(Backbone("alexnet"), rankings=[ranking])
    trainee = TrainedModel(config, 1, metric.backbone.channels)
    trainee.heads.project_()
    judgements = task.judgements(batch, 0)
    loss, *_ = trainee(frozen_moments(metric, task.views(batch, 0)), judgements, torch.Generator())
    loss.mean().backward()

    network = lpips_oracle("alex", load_file(weights_dir / "alexnet_features.safetensors"))
    for lin, own in zip(network.lins, trainee.heads.weights.detach().split(metric.backbone.channels, 1), strict=True):
        lin.model[1].weight.data = own[0].view(1, -1, 1, 1).clone()
    ranking_loss = lpips.BCERankingLoss()
    convolutions = [layer for layer in ranking_loss.net.model if isinstance(layer, torch.nn.Conv2d)]
    for layer, kernel, bias in zip(convolutions, trainee.judge.kernels, trainee.judge.biases, strict=True):
        layer.weight.data = kernel.detach()[0].T[:, :, None, None].clone()
        layer.bias.data = bias.detach()[0, 0].clone()
    references = batch.images.permute(0, 3, 1, 2) / 255
    distorted = apply_plan(references, draw_plan(batch.ids, seed=config.seed, epoch=0), interpolation="bilinear")
    d0, d1, judge = [], [], []
    for n in range(6):
        i, j = judgements.first[n, 0, 0].item(), judgements.second[n, 0, 0].item()
        d0.append(network(references[n : n + 1], distorted[n : n + 1, i], normalize=True))
        d1.append(network(references[n : n + 1], distorted[n : n + 1, j], normalize=True))
        judge.append(1.0 if ranking.index(NAMES[j]) < ranking.index(NAMES[i]) else -1.0)
    d0, d1 = torch.cat(d0), torch.cat(d1)
    judge = torch.tensor(judge).view(-1, 1, 1, 1)
    expected = ranking_loss(d0, d1, judge)
    accuracy = ((d1 < d0) == (judge > 0)).float().mean()
    assert (accuracy <= 0.5) == flipped
    if accuracy <= 0.5:
        expected = expected + 10 * torch.nn.functional.binary_cross_entropy(torch.sigmoid(d0 - d1), (judge + 1) / 2)
    expected.backward()

    assert loss.mean().item() == pytest.approx(expected.item(), abs=1e-5)
    gradient = torch.cat([lin.model[1].weight.grad.flatten() for lin in network.lins])
    assert torch.allclose(trainee.heads.weights.grad[0], gradient, atol=1e-5)
    for layer, kernel, bias in zip(convolutions, trainee.judge.kernels, trainee.judge.biases, strict=True):
        assert torch.allclose(kernel.grad[0].T, layer.weight.grad[:, :, 0, 0], atol=1e-5)
        assert torch.allclose(bias.grad[0, 0], layer.bias.grad, atol=1e-5)


def test_lpips_initialisation_is_torchs():
    config = get_recipe("paper", {"seed": 3})
    heads = TrainedModel(config, 50, [64, 192]).heads.weights.detach()
    oracle = torch.nn.Conv2d(64, 1, 1, bias=False).weight.detach()
    bound = oracle.abs().max()
    own = heads[:, :64]
    assert own.abs().max() <= 1 / 8
    assert abs(own.std() - 1 / 8 / 3**0.5) < 0.003
    assert bound <= 1 / 8
    assert heads[:, 64:].abs().max() <= 192**-0.5
    assert torch.equal(heads, TrainedModel(config, 50, [64, 192]).heads.weights)
