"""Variants, recipes, judgements and sweeps: what `fastdps train` does beside training heads on contexts."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastdps.commands import cli
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import sample_rankings
from fastdps.errors import ConfigError
from fastdps.evaluation.sweep import Grid, bootstrap, read_grid, sweep
from fastdps.metric.lpips_format import heads_to_lpips
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.weights import DIGESTS, tensors_sha256
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.training.recipes import RECIPES, config_from_json
from helpers.judged_sets import noise_set, write_judged
from helpers.lpips_oracle import lpips_oracle

RANKINGS = [",".join(ranking) for ranking in sample_rankings(2, NAMES, seed=3)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("leaves")
    pack(DeadLeaves(48, 32, seed=1), out, PackOptions(size=32, holdout=0.25, samples_per_shard=25), workers=1)
    return out


@pytest.fixture
def leaves(packed, monkeypatch, weights_dir) -> Path:
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    return packed


def train(leaves: Path, out: Path, *options: str) -> list[PerceptualMetric]:
    argv = ["train", "--shards", str(leaves / "train"), "--out", str(out), "--epochs", "1", *options]
    assert cli.main(argv) == 0
    files = sorted((out / "metrics").glob("*.safetensors")) or [out / "metric.safetensors"]
    return [PerceptualMetric.load(path) for path in files]


def evaluate(run: Path, *options: str) -> dict:
    assert cli.main(["evaluate", str(run), *options]) == 0
    return json.loads((run / "scores.json").read_text())


def backbone_hash(metric: PerceptualMetric) -> str:
    return tensors_sha256(metric.backbone.state_dict())


@pytest.mark.parametrize("variant", ["tune", "scratch"])
def test_a_backbone_per_context(leaves, tmp_path, variant):
    metrics = train(leaves, tmp_path / "run", "--variant", variant, "--contexts", ";".join(RANKINGS))
    assert [",".join(metric.rankings[0]) for metric in metrics] == RANKINGS
    hashes = {backbone_hash(metric) for metric in metrics}
    assert len(hashes | {DIGESTS["alexnet"]}) == 3
    scores = evaluate(tmp_path / "run", "--shards", str(leaves / "val"))
    assert [",".join(context["ranking"]) for context in scores["contexts"]] == RANKINGS
    assert scores["variant"] == variant
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {record["context"] for record in log} == {0, 1}


def test_the_baseline_of_a_tuned_run_is_the_pretrained_metric(leaves, tmp_path):
    train(leaves, tmp_path / "lin", "--contexts", RANKINGS[0])
    train(leaves, tmp_path / "tune", "--contexts", RANKINGS[0], "--variant", "tune")
    lin, tuned = (evaluate(tmp_path / name, "--shards", str(leaves / "val")) for name in ("lin", "tune"))
    assert lin["contexts"][0]["baseline_accuracy"] == tuned["contexts"][0]["baseline_accuracy"]


def test_validation_chooses_the_best_epoch_of_each_context(leaves, tmp_path):
    options = ["--contexts", ";".join(RANKINGS), "--epochs", "4", "--learning-rate", "0.3"]
    train(leaves, tmp_path / "run", *options, "--validation", str(leaves / "val"))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    by_epoch = [record for record in log if record["event"] == "validation"]
    assert [record["epoch"] for record in by_epoch] == [1, 2, 3, 4]
    chosen = [record for record in log if record["event"] == "chosen"]
    assert len(chosen) == 1
    best = [max(record["accuracies"][k] for record in by_epoch) for k in range(2)]
    assert chosen[0]["accuracies"] == best
    assert all(by_epoch[epoch - 1]["accuracies"][k] == best[k] for k, epoch in enumerate(chosen[0]["epochs"]))


@pytest.mark.parametrize("recipe", RECIPES)
def test_print_config(recipe, capsys):
    assert cli.main(["train", "--recipe", recipe, "--epochs", "3", "--print-config"]) == 0
    config = config_from_json(json.loads(capsys.readouterr().out))
    assert config.recipe == recipe
    assert config.epochs == 3


def test_published_details_of_recipes():
    paper = RECIPES["paper"]()
    assert (paper.judge, paper.pairs, paper.sync_loss, paper.head_init) == ("mlp", "one", True, "lpips")
    assert (paper.learning_rate, paper.adam_betas, paper.epochs, paper.batch_size) == (1e-3, (0.5, 0.999), 10, 1024)
    lpips = RECIPES["lpips"]()
    assert (lpips.judge, lpips.loss, lpips.sync_loss, lpips.dropout) == ("mlp", "cross_entropy", False, 0.5)
    assert (lpips.learning_rate, lpips.adam_betas, lpips.epochs, lpips.batch_size) == (1e-4, (0.5, 0.999), 10, 50)


def test_paper_recipe_trains(leaves, tmp_path):
    metrics = train(leaves, tmp_path / "run", "--recipe", "paper", "--contexts", "24", "--batch-size", "12")
    assert metrics[0].weights.shape == (24, 1152)
    assert metrics[0].weights.min() == 0


def test_training_on_judgements(leaves, tmp_path, capsys):
    judged = noise_set(tmp_path / "2afc" / "val" / "noise", "triplets", 20, pixels=64)
    argv = ["train", "--triplets", str(judged), "--out", str(tmp_path / "run"), "--recipe", "lpips"]
    assert cli.main([*argv, "--validation", str(judged)]) == 0
    metric = PerceptualMetric.load(tmp_path / "run" / "metric.safetensors")
    assert metric.rankings == ()
    assert metric.weights.shape == (1, 1152)
    assert metric.weights.min() == 0

    scores = evaluate(tmp_path / "run", "--bapps", str(tmp_path))
    assert scores["contexts"] == []
    assert scores["bapps"]["2afc"]["noise"]["samples"] == 20
    assert cli.main(["evaluate", str(tmp_path / "run"), "--shards", str(leaves / "val")]) == 1
    assert "score it with --bapps" in capsys.readouterr().err


def test_heads_trained_on_judgements_load_into_lpips(leaves, tmp_path, weights_dir):
    judged = noise_set(tmp_path / "judged", "triplets", 20, pixels=64)
    argv = ["train", "--triplets", str(judged), "--out", str(tmp_path / "run"), "--recipe", "lpips", "--epochs", "1"]
    assert cli.main(argv) == 0
    metric = PerceptualMetric.load(tmp_path / "run" / "metric.safetensors")
    torch.save(heads_to_lpips(metric.weights[0], metric.channels), tmp_path / "heads.pth")
    weights = load_file(weights_dir / "alexnet_features.safetensors")
    theirs = lpips_oracle("alex", weights, model_path=str(tmp_path / "heads.pth"))
    loaded = torch.cat([lin.model[1].weight.flatten() for lin in theirs.lins])
    assert torch.equal(loaded, metric.weights[0])
    x, y = torch.rand(2, 4, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(theirs(x, y, normalize=True).flatten(), metric(x, y)[:, 0], atol=1e-5)


def test_judgements_are_learned(leaves, tmp_path):
    """Votes that go by the amount of noise are learned far better than the votes of chance."""
    rng = np.random.default_rng(0)
    references = rng.integers(0, 256, (60, 1, 8, 8, 3)).repeat(8, axis=2).repeat(8, axis=3)
    noise = rng.normal(0, 1, (60, 2, 64, 64, 3)) * rng.uniform(1, 60, (60, 2, 1, 1, 1))
    images = np.concatenate([references, references + noise], axis=1).clip(0, 255).astype(np.uint8)
    votes = (np.abs(noise).mean(axis=(2, 3, 4)) @ [1, -1] > 0).astype(float)
    judged = write_judged(tmp_path / "judged", "triplets", images, votes)
    argv = ["train", "--triplets", str(judged), "--out", str(tmp_path / "run"), "--epochs", "10"]
    assert cli.main(argv) == 0
    scores = evaluate(tmp_path / "run", "--bapps", str(judged))["bapps"]["2afc"]["judged"]
    assert scores["adapted"] > 0.9
    assert scores["adapted"] >= scores["baseline"]


def test_scores_of_two_calls_are_kept_together(leaves, tmp_path):
    judged = noise_set(tmp_path / "judged", "triplets", 9, pixels=64)
    train(leaves, tmp_path / "run", "--contexts", RANKINGS[0])
    first = evaluate(tmp_path / "run", "--shards", str(leaves / "val"))
    second = evaluate(tmp_path / "run", "--bapps", str(judged))
    assert second["contexts"] == first["contexts"]
    assert len(second["bapps"]["2afc"]["judged"]["contexts"]) == 1


def test_a_set_of_the_wrong_kind_is_refused(leaves, tmp_path, capsys):
    argv = ["train", "--triplets", str(leaves / "train"), "--out", str(tmp_path / "run")]
    assert cli.main(argv) == 1
    assert "is a set of images; what is asked for needs triplets" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--out", "x"], "one of --shards, --judgements and --triplets"),
        (["train", "--shards", "x", "--out", "x", "--parallel", "contexts"], "for --variant tune and scratch"),
        (["evaluate", "x"], "nothing to score on"),
    ],
)
def test_impossible_options(argv, message, capsys):
    assert cli.main(argv) == 1
    assert message in capsys.readouterr().err


def grid_file(leaves: Path, path: Path, **changes) -> Path:
    content = {
        "shards": str(leaves / "train"),
        "held_out": str(leaves / "val"),
        "contexts": "2",
        "settings": {"epochs": 1},
        "grid": {"comparison": ["spatial", "mean"], "seed": [0, 1]},
    }
    path.write_text(json.dumps(content | changes))
    return path


def test_a_sweep_runs_every_case_once_and_goes_on(leaves, tmp_path, capsys):
    grid = grid_file(leaves, tmp_path / "grid.json")
    out = tmp_path / "sweep"
    assert cli.main(["sweep", "--grid", str(grid), "--out", str(out)]) == 0
    with (out / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert {row["case"] for row in rows} == {
        f"comparison={comparison},seed={seed}" for comparison in ("spatial", "mean") for seed in (0, 1)
    }
    assert len({row["ranking"] for row in rows}) == 2
    summary = json.loads((out / "sweep.json").read_text())["summary"]
    assert summary["improved_fraction"]["mean"] == sum(row["improved"] == "True" for row in rows) / 8
    assert summary["adapted_accuracy"]["low"] <= summary["adapted_accuracy"]["mean"]
    assert "improved fraction" in capsys.readouterr().out

    finished = {path: path.stat().st_mtime_ns for path in out.rglob("metric.safetensors")}
    interrupted, unscored = (out / "cases" / f"comparison=mean,seed={seed}" for seed in (1, 0))
    (interrupted / "scores.json").unlink()
    (interrupted / "metric.safetensors").unlink()
    (unscored / "scores.json").unlink()
    assert cli.main(["sweep", "--grid", str(grid), "--out", str(out)]) == 0
    changed = {path.parent for path, time in finished.items() if path.stat().st_mtime_ns != time}
    assert changed == {interrupted}
    assert (unscored / "scores.json").exists()

    other = grid_file(leaves, tmp_path / "other.json", settings={"epochs": 2})
    assert cli.main(["sweep", "--grid", str(other), "--out", str(out)]) == 1
    assert "was finished with other settings" in capsys.readouterr().err


def test_a_sweep_sums_up_the_agreement_with_people(leaves, tmp_path):
    noise_set(tmp_path / "bapps" / "2afc" / "val" / "cnn", "triplets", 6)
    changes = {"bapps": str(tmp_path / "bapps"), "grid": {"seed": [0, 1]}}
    out = tmp_path / "sweep"
    assert (
        cli.main(["sweep", "--grid", str(grid_file(leaves, tmp_path / "grid.json", **changes)), "--out", str(out)]) == 0
    )
    cases = [json.loads(path.read_text())["bapps"]["averages"]["all"] for path in out.glob("cases/*/scores.json")]
    change = json.loads((out / "sweep.json").read_text())["summary"]["bapps_change"]["mean"]
    assert change == pytest.approx(sum(case["change"] for case in cases) / 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"colour": [1]}}, "colour is not a setting"),
        ({"grid": {"seed": 1}}, "grid.seed must be a list"),
        ({"grid": {"seed": []}}, "grid.seed must be a list with at least one item"),
        ({"grid": [1]}, "grid must be an object"),
        ({"grid": {"seed": [1, 1]}}, "comes twice"),
        ({"grid": {"seed": list(range(101)), "epochs": list(range(1, 102))}}, "10,201 cases"),
        ({"grid": {"backbone": ["../../x"]}}, r"the case 'backbone=../../x' cannot be the name of a directory"),
        ({"grid": {"backbone": ["a\\b"]}}, "cannot be the name of a directory"),
        ({"grid": {"backbone": ["x" * 300]}}, "cannot be the name of a directory"),
        ({"grid": {"backbone": [7]}}, "backbone must be a name, not 7"),
        ({"grid": {"learning_rate": ["0.1"]}}, "learning_rate must be a number, not '0.1'"),
        ({"grid": {"taps": [[1, "4"]]}}, "taps must be a list of whole numbers"),
        ({"grid": {"recipe": [["fast"]]}}, "recipe must be a name"),
        ({"settings": {"epochs": True}}, "epochs must be a whole number, not True"),
        ({"settings": [["epochs", 1]]}, "settings must be an object"),
        ({"settings": {"adam_betas": [0.5]}}, "adam_betas must be two numbers"),
        ({"shards": None}, "shards must be a text, not null"),
        ({"contexts": 24}, "contexts must be a text, not int"),
        ({"contexts": "colour"}, "colour"),
        ({"contexts_seed": -1}, "contexts_seed is -1"),
        ({"grid": {"judge": ["jury"]}}, "judge must be one of"),
        ({"shard": "x"}, "unknown keys shard"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_grid(grid_file(tmp_path, tmp_path / "grid.json", **changes))


def test_a_case_never_runs_outside_of_the_sweep(tmp_path):
    grid = Grid("shards", "held_out", {"backbone": ["../../x"]})
    with pytest.raises(ValueError, match="cannot be the name of a directory"):
        sweep(grid, tmp_path / "a" / "sweep")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, "{", "7", '{"shards": "\\ud800"}', "null"])
def test_a_grid_that_is_not_an_object_is_refused(tmp_path, text):
    (tmp_path / "grid.json").write_text(text)
    with pytest.raises(ConfigError, match=r"grid\.json is not a grid"):
        read_grid(tmp_path / "grid.json")


def test_bootstrap_interval():
    """Of a normal sample the interval is the mean and 1.96 standard errors either way, to the noise of resampling."""
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    mean, low, high = bootstrap(values)
    error = values.std(ddof=1) / 20
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(mean - 1.96 * error, abs=0.25 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.25 * error)
    assert bootstrap(np.ones(5)) == (1.0, 1.0, 1.0)
