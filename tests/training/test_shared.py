"""Variant `shared`: one backbone with the heads of all contexts, that keeps its unadapted metric."""

import json

import pytest
import torch
from safetensors.torch import load_file

import fastdps
from fastdps.commands import cli
from fastdps.contexts.crops import crop, draw_crops
from fastdps.contexts.distortions import NAMES, to_float
from fastdps.contexts.rankings import all_rankings, sample_rankings
from fastdps.errors import ConfigError
from fastdps.loading.spec import Batch
from fastdps.metric.backbones import Backbone
from fastdps.metric.image_metric import ImageMetric
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.weights import DIGESTS, tensors_sha256
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.runtime.processes import join_processes
from fastdps.training.best_epoch import BestEpoch
from fastdps.training.loop import build_metric
from fastdps.training.prior import FLOOR, Prior, held_views
from fastdps.training.recipes import get_recipe
from fastdps.training.step import Stepper
from fastdps.training.tasks import JudgementTask, RankingTask

RANKINGS = sample_rankings(3, NAMES, seed=3)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _pretrained(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


@pytest.fixture(scope="module")
def leaves(tmp_path_factory):
    out = tmp_path_factory.mktemp("leaves")
    pack(DeadLeaves(60, 48, seed=1), out, PackOptions(size=48, holdout=0.2), workers=1)
    return out


def images_of(n: int, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


@pytest.fixture(scope="module")
def run(leaves, tmp_path_factory, weights_dir):
    out = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        shards = ["--shards", str(leaves / "train"), "--validation", str(leaves / "val")]
        options = ["--variant", "shared", "--crop-size", "32", "--epochs", "2", "--batch-size", "12"]
        assert cli.main(["train", *shards, *options, "--contexts", "all", "--out", str(out)]) == 0
        assert cli.main(["evaluate", str(out), "--shards", str(leaves / "val"), "--size", "32", "--draws", "2"]) == 0
    return out


def test_one_metric_file_has_all_contexts_and_its_backbone(run):
    config = json.loads((run / "config.json").read_text())["config"]
    assert (config["recipe"], config["variant"], config["augment"]) == ("shared", "shared", "crop")
    metric = PerceptualMetric.load(run / "metric.safetensors")
    assert metric.rankings == tuple(all_rankings(NAMES))
    assert tensors_sha256(metric.backbone.state_dict()) != DIGESTS["alexnet"]
    one = fastdps.load(run, metric.rankings[17])
    x, y = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one(x, y), metric(x, y)[:, 17])


def test_scores_are_against_the_pretrained_metric(run):
    scores = json.loads((run / "scores.json").read_text())
    assert scores["summary"]["contexts"] == 720
    assert scores["summary"]["baseline_accuracy"] == pytest.approx(0.5, abs=1e-6)  # by symmetry over all contexts
    assert scores["summary"]["adapted_accuracy"] > 0.6
    assert json.loads((run / "details.json").read_text())["held_out"]["interpolation"] == "nearest"
    steps = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    chosen = next(record for record in steps if record["event"] == "chosen")
    assert len(set(chosen["epochs"])) == 1  # one backbone has one best epoch


def test_all_contexts_end_with_the_epoch_of_the_best_mean():
    metric = PerceptualMetric(Backbone("alexnet", pretrained=False), torch.ones(2, 1152), RANKINGS[:2])
    best = BestEpoch(2, trains_backbone=True)
    for epoch, scores in enumerate(([0.6, 0.5], [0.9, 0.1], [0.5, 0.7]), start=1):
        metric.weights.fill_(epoch)
        best.update(epoch, torch.tensor(scores, dtype=torch.float64), metric)
    best.restore(metric)
    assert best.epochs == [3, 3]
    assert best.scores.tolist() == [0.5, 0.7]
    assert (metric.weights == 3).all()


def gradients(rankings, **settings) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the gradients of the backbone, and the heads after a step."""
    config = get_recipe("shared", {"dropout": 0.0, "augment": "none", "keep": 0.0, **settings})
    task = RankingTask(rankings, config, CPU)
    metric = build_metric(config, rankings, CPU)
    stepper = Stepper(config, task, metric, join_processes(stall_timeout_s=60.0))
    found = []
    stepper.optimizer.register_step_pre_hook(
        lambda optimizer, *_: found.extend(p.grad.clone() for p in optimizer.param_groups[1]["params"])
    )
    stepper.step(Batch({"image": images_of(6)}, torch.arange(6), 6), 0, 0)
    return found, stepper.model.heads.weights.detach()


def test_the_backbone_learns_from_the_mean_over_contexts_and_heads_as_if_alone():
    together, heads = gradients(RANKINGS)
    alone = [gradients([ranking]) for ranking in RANKINGS]
    for number, gradient in enumerate(together):
        mean = torch.stack([found[number] for found, _ in alone]).mean(dim=0)
        torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())
    torch.testing.assert_close(heads, torch.cat([own for _, own in alone]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("comparison", ["spatial", "spatial+mean", "sort"])
def test_the_prior_compares_old_and_new_distances_of_the_held_views(comparison):
    before, after = (PerceptualMetric(Backbone("alexnet"), comparison=comparison) for _ in range(2))
    with torch.no_grad():
        next(after.backbone.parameters()).mul_(3)
    views = to_float(images_of(21)).unflatten(0, (3, 7))
    held = held_views(torch.arange(3), 6, seed=0, epoch=4)
    prior = Prior(before.backbone, comparison)
    with torch.inference_mode():
        same, changed = (prior.term(one.moments(views), views, held) for one in (before, after))
    assert same.abs().max() < 1e-8
    for own, chosen, image in zip(changed, held, views, strict=True):
        reference, others = image[:1].expand(len(chosen) - 1, -1, -1, -1), image[chosen[1:]]
        logs = [(one(reference, others)[:, 0] + FLOOR).log() for one in (before, after)]
        assert own.item() == pytest.approx((logs[0] - logs[1]).square().mean().item(), rel=1e-3)


def test_held_views_are_drawn_by_counter():
    ids = torch.arange(3000)
    held = held_views(ids, 6, seed=0, epoch=0)
    assert held.shape == (3000, 3)
    assert (held[:, 0] == 0).all()
    assert all(len(set(row)) == 3 for row in held.tolist())
    assert (held[:, 1:].flatten().bincount(minlength=7)[1:] / 3000 - 1 / 3).abs().max() < 0.05
    assert torch.equal(held_views(ids[7:9], 6, seed=0, epoch=0), held[7:9])
    assert not torch.equal(held_views(ids, 6, seed=0, epoch=1), held)
    assert held_views(ids[:1], 2, seed=0, epoch=0).shape == (1, 3)  # fewer versions than are held


@pytest.mark.slow
def test_keep_holds_the_unadapted_metric(leaves, tmp_path):
    logs = {}
    for keep in ("0", "5"):
        argv = ["train", "--shards", str(leaves / "train"), "--variant", "shared", "--contexts", "2", "--keep", keep]
        argv += ["--epochs", "2", "--batch-size", "12", "--augment", "none", "--backbone-learning-rate", "1e-3"]
        assert cli.main([*argv, "--out", str(tmp_path / keep)]) == 0
        state = load_file(tmp_path / keep / "metric.safetensors")
        state = {name.removeprefix("backbone."): value for name, value in state.items() if name != "weights"}
        metrics = [PerceptualMetric(backbone) for backbone in (Backbone("alexnet"), Backbone("alexnet", state=state))]
        images = to_float(images_of(12, 48))
        first, second = torch.triu_indices(12, 12, 1)
        before, after = (ImageMetric(metric).matrix(images)[first, second].log() for metric in metrics)
        logs[keep] = (before - after).square().mean().item()
    assert logs["5"] < logs["0"] / 2
    line = json.loads((tmp_path / "5" / "log.jsonl").read_text().splitlines()[0])
    assert 0 < line["prior"] < 1


def test_training_sees_crops_of_the_images():
    config = get_recipe("shared", {"crop_size": 24})
    batch = Batch({"image": images_of(4, 48)}, torch.tensor([9, 1, 4, 7]), 4)
    views = RankingTask(RANKINGS, config, CPU).views(batch, 3)
    assert views.shape == (4, 7, 3, 24, 24)
    wanted = crop(to_float(batch.images), draw_crops(batch.ids, seed=config.seed, epoch=3), 24)
    assert torch.equal(views[:, 0], wanted)


def test_the_images_of_a_triplet_are_cropped_alike():
    config = get_recipe("shared", {"crop_size": 24})
    same = images_of(4, 48)
    batch = Batch(dict.fromkeys(("ref", "p0", "p1"), same) | {"judge": torch.zeros(4)}, torch.arange(4), 4)
    views = JudgementTask(config, CPU).views(batch, 0)
    assert views.shape == (4, 3, 3, 24, 24)
    assert torch.equal(views[:, 0], views[:, 2])
    assert not torch.equal(views, JudgementTask(config, CPU).views(batch, 1))


def test_the_recipe_holds_nothing_where_nothing_can_be_held():
    assert get_recipe("shared", {}).keep > 0
    assert get_recipe("shared", {"variant": "lin"}).keep == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_size": 32, "augment": "none"}, "crop_size is 32"),
        ({"crop_size": 0}, "crop_size is 0"),
        ({"keep": -1.0}, "keep must be"),
        ({"keep": 1.0, "variant": "lin"}, "does not train a pretrained backbone"),
        ({"keep": 1.0, "variant": "scratch"}, "does not train a pretrained backbone"),
        ({"augment": "flip"}, "augment must be one of none, crop"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        get_recipe("shared", settings)
