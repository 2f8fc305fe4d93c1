"""Steps on groups of judged images: votes, images once, processes, and the heads that training starts from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fastdps
from fastdps.commands import cli
from fastdps.contexts.distortions import to_float
from fastdps.contexts.judgements import JudgedPairs, judged_pairs
from fastdps.errors import FastDPSError
from fastdps.evaluation.evaluate import evaluate
from fastdps.loading.loader import open_shards
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.run_directory import RunDirectory
from fastdps.runtime.processes import join_processes
from fastdps.shards.judgements import read_judgements
from fastdps.training import trainings
from fastdps.training.judged_batches import JudgedBatches
from fastdps.training.judged_task import JudgedTask
from fastdps.training.kept_images import KeptImages
from fastdps.training.model import TrainedModel
from fastdps.training.pair_moments import PairMoments
from fastdps.training.prior import FLOOR
from fastdps.training.progress import Meter
from fastdps.training.recipes import get_recipe
from fastdps.training.step import Stepper
from helpers.judged_images import packed_judged
from helpers.warm_python import launch_warm, run_warm

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(autouse=True)
def _pretrained(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def judged_set(tmp_path_factory):
    return packed_judged(tmp_path_factory.mktemp("judged"), rows=90, images=14) / "train"


def tune(judged_set, out, *options):
    argv = ["train", "--judgements", str(judged_set), "--out", str(out), "--variant", "tune", "--batch-size", "7"]
    return cli.main([*argv, *options])


def gradients_of_epoch(judged: JudgedPairs, kept: KeptImages, most_images: int) -> tuple[dict[str, torch.Tensor], int]:
    """Return the sum of the gradients of the steps of an epoch, taken without changing the model, and their number."""
    config = get_recipe("judgements", {"variant": "tune", "dropout": 0.0})
    with join_processes() as processes:
        stepper = Stepper(config, JudgedTask(), PerceptualMetric(Backbone("alexnet", pretrained=False)), processes)
        total = {name: torch.zeros_like(value) for name, value in stepper.model.named_parameters()}

        def add(*_):
            for name, value in stepper.model.named_parameters():
                total[name] += value.grad

        stepper.optimizer.step = add
        batches = JudgedBatches(judged, kept, most_images=most_images, seed=0)
        for number, batch in enumerate(batches.epoch(0)):
            stepper.step(batch, 0, number)
    return {name: value / batches.steps for name, value in total.items()}, batches.steps


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, gradient in expected.items():
        scale = gradient.abs().max()
        assert scale > 0
        torch.testing.assert_close(found[name] / scale, gradient / scale, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def loaded(judged_set):
    judged = judged_pairs(read_judgements(judged_set))
    return judged, KeptImages(open_shards(judged_set, batch_size=50, seed=None), judged.ids)


def test_votes_count_as_repeated_judgements(loaded):
    judged, kept = loaded
    votes = judged.votes.astype(int)
    assert votes.max() > 1
    rows = np.repeat(np.arange(len(judged)), votes)
    repeated = judged.select(rows)
    single = dataclasses.replace(
        repeated, votes_a=repeated.votes_a / votes[rows], votes_b=repeated.votes_b / votes[rows]
    )
    by_votes, _ = gradients_of_epoch(judged, kept, 50)
    one_by_one, _ = gradients_of_epoch(single, kept, 50)
    assert_close(by_votes, one_by_one)
    ignored, _ = gradients_of_epoch(
        dataclasses.replace(judged, votes_a=1 - judged.share, votes_b=judged.share), kept, 50
    )
    with pytest.raises(AssertionError):
        assert_close(by_votes, ignored)


def test_the_division_into_groups_does_not_change_the_gradient_of_an_epoch(loaded):
    judged, kept = loaded
    whole, one = gradients_of_epoch(judged, kept, 50)
    parts, several = gradients_of_epoch(judged, kept, 6)
    assert one == 1
    assert several > 10
    assert_close(parts, whole)


def test_no_image_goes_through_the_backbone_twice_in_a_step(loaded):
    judged, kept = loaded
    config = get_recipe("judgements", {"variant": "tune"})
    batches = JudgedBatches(judged, kept, most_images=7, seed=0)
    with join_processes() as processes:
        metric = PerceptualMetric(Backbone("alexnet", pretrained=False))
        seen: list[torch.Tensor] = []
        metric.backbone.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach().clone()))
        stepper = Stepper(config, JudgedTask(), metric, processes)
        for number, batch in enumerate(batches.epoch(0)):
            seen.clear()
            stepper.step(batch, 0, number)
            images = torch.cat(seen)
            assert len(images) == len(batch.ids) <= 7
            assert len(images.flatten(1).unique(dim=0)) == len(images)


def test_a_calibrated_start_is_kept_until_training_changes_it():
    model = TrainedModel(get_recipe("judgements", {"variant": "tune"}), 1, (3, 5))
    weights = torch.rand(1, 8, generator=torch.Generator().manual_seed(0)) * 40
    before = model.heads.weights.mean().item()
    model.start_from(weights)
    torch.testing.assert_close(model.calibrated_weights(), weights)
    assert model.heads.weights.mean().item() == pytest.approx(before)


@pytest.mark.parametrize("variant", ["tune", "scratch"])
def test_training_starts_from_the_fitted_heads(judged_set, tmp_path, variant):
    """With rates that change nothing the metric is that of the fit, in its scale."""
    rates = ("--learning-rate", "1e-12", "--backbone-learning-rate", "1e-12", "--max-steps", "1")
    assert tune(judged_set, tmp_path / "run", *rates, "--variant", variant) == 0
    found = load_file(tmp_path / "run" / "metric.safetensors")["weights"]
    assert found.std() > 0
    if variant == "tune":
        assert cli.main(["train", "--judgements", str(judged_set), "--out", str(tmp_path / "fit")]) == 0
        fitted = load_file(tmp_path / "fit" / "metric.safetensors")["weights"]
        torch.testing.assert_close(found, fitted, rtol=1e-4, atol=1e-6 * fitted.max().item())


class CrashError(Exception):
    """What interrupts a training in these tests."""


@pytest.mark.parametrize("number", [5, pytest.param(14, marks=pytest.mark.slow)])
def test_a_run_that_crashes_in_mid_epoch_resumes_to_the_same_bits(judged_set, tmp_path, monkeypatch, number):
    options = ("--epochs", "2", "--checkpoint-every", "3")
    assert tune(judged_set, tmp_path / "whole", *options) == 0
    taken = 0
    original = Stepper.step

    def step(self, *arguments):
        nonlocal taken
        taken += 1
        if taken == number:
            raise CrashError
        return original(self, *arguments)

    monkeypatch.setattr(Stepper, "step", step)
    run = tmp_path / "crashed"
    with pytest.raises(CrashError):
        tune(judged_set, run, *options)
    assert tune(judged_set, run, *options) == 0
    log = RunDirectory(run).read_log()
    (total,) = (record["step"] for record in log if record["event"] == "end")
    (resumed,) = (record["step"] for record in log if record["event"] == "resume")
    assert resumed % (total // 2)  # in mid-epoch
    assert taken == number + total - resumed
    found, expected = (load_file(path / "metric.safetensors") for path in (run, tmp_path / "whole"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_run_whose_judges_are_not_all_trained_says_so(judged_set, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def stop(metric, path, **options):
        if Path(path).stem == "001":
            raise CrashError
        return save(metric, path, **options)

    save = PerceptualMetric.save
    monkeypatch.setattr(trainings.PerceptualMetric, "save", stop)
    with pytest.raises(CrashError):
        tune(judged_set, run, "--max-steps", "1", "--by", "judge")
    monkeypatch.setattr(trainings.PerceptualMetric, "save", save)
    with pytest.raises(FastDPSError, match="metrics of 1 of its 4 contexts: its training has not ended"):
        evaluate(run, judgements=judged_set)
    first = load_file(run / "metrics" / "000.safetensors")
    assert tune(judged_set, run, "--max-steps", "1", "--by", "judge") == 0
    assert all(
        torch.equal(value, first[name]) for name, value in load_file(run / "metrics" / "000.safetensors").items()
    )
    assert set(evaluate(run, judgements=judged_set).judgements.judges) == {"bright", "colour", "random"}


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(judged_set, tmp_path):
    script = [HELPERS / "judged_gradients_of_ranks.py", judged_set, tmp_path]
    for result in (run_warm(*script), *launch_warm(2, *script), *launch_warm(3, *script)):
        assert result.returncode == 0, result.stderr
    for dropout in (0.0, 0.5):
        names = ["1-0", "2-0", "2-1", "3-0", "3-1", "3-2"]
        one, *ranks = (torch.load(tmp_path / f"{dropout}-{name}.pt") for name in names)
        assert len(one) > 5
        for rank in ranks:
            assert_close(rank, one)


@pytest.mark.slow
def test_a_run_resumes_in_mid_epoch_with_another_number_of_processes(judged_set, tmp_path):
    """And judges can be divided among processes."""
    options = ["--epochs", "2", "--checkpoint-every", "6"]
    assert tune(judged_set, tmp_path / "one", *options) == 0
    argv = ["-m", "fastdps.train", "--judgements", str(judged_set), "--variant", "tune", "--batch-size", "7"]

    def with_two(*more: str) -> None:
        for result in launch_warm(2, *argv, *more):
            assert result.returncode == 0, result.stderr

    run = tmp_path / "two"
    with_two(*options, "--out", str(run))
    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    for path in checkpoints[1:]:
        path.unlink()
    (run / "metric.safetensors").unlink()
    assert tune(judged_set, run, *options) == 0
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    resumed = next(record["step"] for record in log if record["event"] == "resume")
    total = next(record["step"] for record in log if record["event"] == "end")
    assert resumed % (total // 2)
    # The fit that training starts from moves single weights, but hardly any distance.
    images = torch.rand(2, 6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, two = (fastdps.load(path)(*images) for path in (tmp_path / "one", run))
    torch.testing.assert_close(two, one, rtol=2e-2, atol=1e-4)

    with_two("--max-steps", "2", "--by", "judge", "--parallel", "contexts", "--out", str(tmp_path / "judges"))
    assert len(RunDirectory(tmp_path / "judges").metrics()) == 4


def test_a_shared_backbone_counts_each_judge_the_same(loaded):
    """The heads of a shared backbone have the gradients of the judges' own trainings, in one scale each."""
    judged, kept = loaded
    votes = np.bincount(judged.judge, weights=judged.votes)
    task = JudgedTask(torch.from_numpy(votes / votes.sum()).float())
    batches = JudgedBatches(judged, kept, most_images=50, seed=0)
    (batch,) = batches.epoch(0)  # all images in one step
    weights = task.judgements(batch, 0).weights
    assert weights.shape == (len(judged), 1 + len(judged.judges)) == (len(judged), 1 + task._shares.numel())
    torch.testing.assert_close(weights.sum(dim=0), torch.full((task.contexts,), float(len(judged))))
    for number in range(len(judged.judges)):
        assert torch.equal(weights[:, 1 + number] > 0, batch.components["judge"] == number)


def test_a_shared_backbone_has_a_head_for_each_judge(judged_set, tmp_path, capsys):
    run = tmp_path / "run"
    argv = ["train", "--judgements", str(judged_set), "--out", str(run), "--variant", "shared", "--by", "person"]
    argv += ["--epochs", "2", "--batch-size", "10", "--keep", "0.1", "--validation", str(judged_set)]
    assert cli.main(argv) == 0
    metric = PerceptualMetric.load(run / "metric.safetensors")
    assert metric.judges == ("pooled", "bright", "colour", "random")
    assert not torch.equal(metric.backbone.features[0].weight, Backbone("alexnet").features[0].weight)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    chosen = next(record for record in log if record["event"] == "chosen")
    assert len(chosen["accuracies"]) == 4
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), "--judgements", str(judged_set)]) == 0
    shown = capsys.readouterr().out
    scores = json.loads((run / "scores.json").read_text())["judgements"]
    for judge, accuracy in zip(metric.judges, chosen["accuracies"], strict=True):
        scored = scores["pooled"] if judge == "pooled" else scores["judges"][judge]
        assert scored["votes"]["after"]["value"] == pytest.approx(accuracy, abs=1e-6)
    unadapted = PerceptualMetric(metric.backbone)
    table = judged_pairs(read_judgements(judged_set))
    moments = PairMoments(unadapted, open_shards(judged_set, batch_size=50, seed=None), table.ids, table.pairs)
    d = moments.distances(unadapted.weights)[:, 0].numpy()
    agreed = np.where(d[table.first] < d[table.second], table.votes_a, table.votes_b).sum() / table.votes.sum()
    pooled = scores["pooled"]
    part = pooled["majority"] or pooled["votes"]
    assert f"trained backbone {part['unadapted']['value']:.3f}" in shown
    assert pooled["votes"]["unadapted"]["value"] == pytest.approx(agreed, abs=0.01)


def test_judgements_are_about_whole_images(judged_set, tmp_path, capsys):
    argv = ["train", "--judgements", str(judged_set), "--out", str(tmp_path / "run"), "--variant", "shared"]
    assert cli.main([*argv, "--augment", "crop"]) == 1
    assert "a judgement is about whole images" in capsys.readouterr().err


def test_the_logged_prior_of_a_group_is_its_mean_over_pairs(loaded):
    judged, kept = loaded
    (batch,) = JudgedBatches(judged, kept, most_images=50, seed=0).epoch(0)  # all images in one step
    config = get_recipe("judgements", {"variant": "tune", "keep": 0.5, "dropout": 0.0})
    with join_processes() as processes:
        before, metric = (PerceptualMetric(Backbone("alexnet")) for _ in range(2))
        stepper = Stepper(config, JudgedTask(), metric, processes)
        with torch.no_grad():
            next(metric.backbone.parameters()).mul_(3)
        images = to_float(batch.components["image"])
        x, y = (images[batch.components[name]] for name in ("first", "second"))
        with torch.inference_mode():
            old, new = (one(x, y)[:, 0] for one in (before, metric))
        meter = Meter.start(processes.device, triplets_per_sample=1)
        meter.add(*stepper.step(batch, 0, 0), batch, 0.0, stepper.prior)
        logged = meter.read(processes)["prior"]
    expected = ((new + FLOOR).log() - (old + FLOOR).log()).square().mean().item()
    assert expected > 1e-4
    assert logged == pytest.approx(expected, rel=1e-3)
