"""Training and scoring, end to end on dead leaves, and on real images where they are there."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastdps.commands import cli
from fastdps.commands.make_shards import make_shards
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import all_rankings, labels, pairs, sample_rankings
from fastdps.errors import ConfigError
from fastdps.loading.loader import ShardLoader
from fastdps.metric.distances import Moments
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.runtime import processes
from fastdps.training.model import TrainedModel
from fastdps.training.recipes import config_from_json, fast, get_recipe
from fastdps.training.step import dropout_generator, learning_rate_factor
from fastdps.training.tasks import Judgements
from helpers.warm_python import launch_warm

RANKINGS = ";".join(",".join(ranking) for ranking in sample_rankings(3, NAMES, seed=3))


@pytest.fixture
def _pretrained(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


@pytest.fixture
def leaves(packed_leaves, _pretrained) -> Path:
    """A shard set of 60 training and 20 held-out images, and the weights to train with."""
    return packed_leaves


@pytest.fixture(scope="module")
def packed_leaves(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("leaves")
    pack(DeadLeaves(80, 32, seed=1), out, PackOptions(size=32, holdout=0.25, samples_per_shard=25), workers=1)
    return out


def train(leaves: Path, out: Path, *options: str) -> dict[str, torch.Tensor]:
    argv = ["train", "--shards", str(leaves / "train"), "--out", str(out), "--contexts", RANKINGS, "--epochs", "3"]
    assert cli.main([*argv, *options]) == 0
    return load_file(out / "metric.safetensors")


def evaluate(leaves: Path, run: Path) -> dict:
    assert cli.main(["evaluate", str(run), "--shards", str(leaves / "val")]) == 0
    return json.loads((run / "scores.json").read_text())


def test_a_run_from_end_to_end(leaves, tmp_path, capsys):
    train(leaves, tmp_path / "run", "--epochs", "8")
    scores = evaluate(leaves, tmp_path / "run")
    summary = scores["summary"]
    assert summary["adapted_accuracy"] > summary["baseline_accuracy"] + 0.1

    assert list(scores) == [
        "backbone",
        "variant",
        "comparison",
        "recipe",
        "contexts",
        "summary",
        "bapps",
        "judgements",
        "throughput",
        "sets",
        "metrics",
    ]
    assert list(scores["contexts"][0]) == ["ranking", "baseline_accuracy", "adapted_accuracy", "intervals"]
    assert list(summary) == ["contexts", "improved_fraction", "baseline_accuracy", "adapted_accuracy", "intervals"]
    assert list(scores["throughput"]) == ["images_per_s", "triplets_per_s", "data_wait_fraction"]
    assert summary["contexts"] == len(scores["contexts"]) == 3
    assert summary["adapted_accuracy"] == pytest.approx(sum(c["adapted_accuracy"] for c in scores["contexts"]) / 3)
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "3 contexts; 100.0% of them improved" in printed
    assert "hardest" in printed
    assert "rotate, translate" in printed

    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["event"] for record in log] == ["step"] * (len(log) - 1) + ["end"]
    assert log[-2]["loss"] < log[0]["loss"]
    assert log[-2]["epoch"] == 8
    assert log[-1]["triplets_per_s"] == pytest.approx(log[-1]["images_per_s"] * 15 * 3)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config_from_json(config["config"]) == dataclasses.replace(fast(), epochs=8)
    assert len(config["rankings"]) == 3


def test_baseline_is_equal_weights(leaves, tmp_path):
    weights = train(leaves, tmp_path / "run", "--variant", "baseline", "--contexts", "all")["weights"]
    assert weights.shape == (720, 1152)
    assert (weights == 1).all()
    scores = evaluate(leaves, tmp_path / "run")
    assert scores["summary"]["improved_fraction"] == 0
    assert scores["summary"]["baseline_accuracy"] == scores["summary"]["adapted_accuracy"]
    # Every ranking and its reverse: what one gets right the other gets wrong.
    assert scores["summary"]["baseline_accuracy"] == pytest.approx(0.5, abs=1e-12)
    assert scores["throughput"] == {"images_per_s": None, "triplets_per_s": None, "data_wait_fraction": None}


def test_the_same_command_gives_the_same_bits_with_either_loader(leaves, tmp_path):
    runs = [train(leaves, tmp_path / name, "--loader", name)["weights"] for name in ("dali", "portable")]
    assert torch.equal(*runs)
    other_seed = train(leaves, tmp_path / "seed", "--seed", "1")["weights"]
    assert not torch.equal(runs[0], other_seed)


@pytest.mark.parametrize(
    ("options", "told"), [([], [1, 2, None]), (["--max-steps", "4"], [1, None]), (["--validation"], [None] * 3)]
)
def test_the_loader_is_told_which_epoch_comes_next(leaves, tmp_path, monkeypatch, options, told):
    """Not where there is a validation, which needs the room."""
    seen = []
    original = ShardLoader.epoch

    def epoch(self, *args, **named):
        if "then" in named:  # validation does not say
            seen.append(named["then"])
        return original(self, *args, **named)

    monkeypatch.setattr(ShardLoader, "epoch", epoch)
    options = [*options, str(leaves / "val")] if "--validation" in options else options
    train(leaves, tmp_path / "run", "--batch-size", "25", "--draws-kept", "0", *options)
    assert seen == told


@pytest.mark.parametrize(("parameters", "most"), [("weights", 0.0), ("roots", 1e-5)])
def test_weights_stay_non_negative(leaves, tmp_path, parameters, most):
    """Some weights become zero; squares come close to it."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"head_parameters": parameters, "initial_weight": 0.1}))
    weights = train(leaves, tmp_path / "run", "--learning-rate", "0.3", "--config", str(config))["weights"]
    assert 0 <= weights.min() <= most


def test_mlp_judge_trains(leaves, tmp_path):
    weights = train(leaves, tmp_path / "run", "--judge", "mlp", "--loss", "cross_entropy")["weights"]
    assert weights.std() > 0


def test_a_run_is_not_overwritten_by_accident(leaves, tmp_path, capsys):
    before = train(leaves, tmp_path / "run")["weights"]
    argv = ["train", "--shards", str(leaves / "train"), "--out", str(tmp_path / "run"), "--contexts", RANKINGS]
    log = (tmp_path / "run" / "log.jsonl").read_text()
    capsys.readouterr()
    assert cli.main([*argv, "--epochs", "3"]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (tmp_path / "run" / "log.jsonl").read_text() == log

    assert cli.main([*argv, "--epochs", "3", "--resume", "never"]) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert cli.main([*argv, "--epochs", "4", "--seed", "2"]) == 1
    error = capsys.readouterr().err
    assert "epochs was 3 and is now 4; seed was 0 and is now 2" in error
    assert "--overwrite" in error
    assert cli.main([*argv, "--contexts", "3", "--epochs", "3"]) == 1
    assert "3 contexts, and not the same as now" in capsys.readouterr().err
    other = [word.replace(str(leaves / "train"), str(leaves / "val")) for word in argv]
    assert cli.main([*other, "--epochs", "3"]) == 1
    assert "the data's sha256 was" in capsys.readouterr().err
    assert torch.equal(load_file(tmp_path / "run" / "metric.safetensors")["weights"], before)

    assert cli.main([*argv, "--epochs", "4", "--seed", "2", "--overwrite"]) == 0
    assert not torch.equal(load_file(tmp_path / "run" / "metric.safetensors")["weights"], before)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--shards", "nowhere", "--out", "{out}"], "nowhere is not a shard set"),
        (["train", "--shards", "nowhere", "--out", "{out}", "--contexts", "1000"], "1 to 720"),
        (["train", "--shards", "nowhere", "--out", "{out}", "--epochs", "0"], "epochs must be above 0"),
        (["evaluate", "{out}", "--shards", "nowhere"], "is not a run"),
    ],
)
def test_errors_are_one_line_without_traceback(argv, message, tmp_path, capfd):
    assert cli.main([part.format(out=tmp_path / "run") for part in argv]) == 1
    said = capfd.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert "Traceback" not in said


def all_judgements(rankings) -> Judgements:
    first, second = pairs(6).unbind(dim=1)
    return Judgements(first, second, labels(rankings, NAMES))


def test_contexts_learn_as_if_each_were_alone():
    rankings = sample_rankings(5, NAMES, seed=0)
    config = dataclasses.replace(fast(), dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    moments = [torch.rand(2, 8, 6, 20, generator=generator) for _ in range(5)]

    def learn(chosen):
        trainee = TrainedModel(config, len(chosen), channels=[20])
        optimizer = torch.optim.Adam(trainee.parameters(), lr=0.05, betas=config.adam_betas)
        for mean, var in moments:
            loss, *_ = trainee(Moments(mean, var), all_judgements(chosen), generator)
            (loss.sum() / len(mean)).backward()
            optimizer.step()
            optimizer.zero_grad()
            trainee.heads.project_()
        return trainee.heads.weights.detach()

    together = learn(rankings)
    alone = torch.cat([learn([ranking]) for ranking in rankings])
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.std() > 0


def test_gradients_of_parts_add_up_to_those_of_the_batch():
    """Parts of any size, an empty one too, weighted as `train` weights them, have the gradient of the whole batch."""
    config = dataclasses.replace(fast(), dropout=0.0)
    rankings = all_rankings(NAMES)[:4]
    mean, var = torch.rand(2, 7, 6, 20, generator=torch.Generator().manual_seed(0))
    whole, parts = (TrainedModel(config, len(rankings), channels=[20]) for _ in range(2))

    def loss_of(trainee, start, end):
        moments = Moments(mean[start:end], var[start:end])
        return trainee(moments, all_judgements(rankings), torch.Generator())[0].sum()

    (loss_of(whole, 0, 7) / 7).backward()
    ranks = [(0, 5), (5, 7), (7, 7)]
    for start, end in ranks:
        (loss_of(parts, start, end) * (len(ranks) / 7) / len(ranks)).backward()
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6)


def test_learning_rate_falls_as_half_a_cosine():
    config = dataclasses.replace(fast(), epochs=10)
    factors = [learning_rate_factor(config, step / 100) for step in range(101)]
    assert factors[0] == 1
    assert factors[50] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0)
    assert all(later < earlier for earlier, later in itertools.pairwise(factors))


@pytest.mark.parametrize("recipe", ["paper", "lpips"])
def test_learning_rate_is_constant_for_five_epochs_and_then_falls(recipe):
    """LPIPS's training script lowers the rate by a fifth after each epoch from the sixth on."""
    config = get_recipe(recipe, {})
    factors = [learning_rate_factor(config, (epoch * 7 + step) / 70) for epoch in range(10) for step in (0, 3, 6)]
    assert factors == pytest.approx(np.repeat([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2], 3))


def test_dropout_noise_is_its_own_for_seed_step_and_process():
    draws = {
        torch.rand(1, generator=dropout_generator(seed, step, rank, torch.device("cpu"))).item()
        for seed in (0, 1)
        for step in (0, 1, 2**33)
        for rank in (0, 1)
    }
    assert len(draws) == 12


def test_recipes_refuse_what_they_do_not_know():
    with pytest.raises(ConfigError, match="Unknown recipe 'slow'"):
        get_recipe("slow", {})
    with pytest.raises(ConfigError, match="Unknown settings warmup"):
        config_from_json({**fast().to_json(), "warmup": 3})
    with pytest.raises(ConfigError, match="judge must be one of"):
        get_recipe("fast", {"judge": "jury"})


def test_two_processes(leaves, tmp_path):
    """Two ranks see every sample once per epoch, end with the same heads, and score as one process does."""
    script = Path(__file__).parents[1] / "helpers" / "two_ranks.py"
    options = ["--shards", str(leaves / "train"), "--contexts", "24", "--epochs", "6", "--draws-kept", "0"]
    for result in launch_warm(2, script, tmp_path, *options, "--out", tmp_path / "two"):
        assert result.returncode == 0, result.stderr
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    for epoch in range(6):
        seen = sorted(itertools.chain.from_iterable(rank["ids"][epoch] for rank in ranks))
        assert seen == list(range(60))

    train(leaves, tmp_path / "one", "--contexts", "24", "--epochs", "6", "--draws-kept", "0")
    one, two = (evaluate(leaves, tmp_path / name)["summary"]["adapted_accuracy"] for name in ("one", "two"))
    assert abs(one - two) < 0.01


def test_processes_that_do_not_know_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "Accelerator", lambda **_: SimpleNamespace(num_processes=1))
    with pytest.raises(ConfigError, match="2 processes were launched, but Accelerate sees 1"):
        processes.join_processes()


@pytest.mark.slow
@pytest.mark.usefixtures("_pretrained")
def test_all_contexts_on_real_images(imagenet_sample, tmp_path):
    """The main job on 700 ImageNet images, in fewer epochs: what it reaches, and in how much memory."""
    shards, out = tmp_path / "shards", tmp_path / "run"
    make = ["folder", "--source", str(imagenet_sample), "--out", str(shards), "--size", "64"]
    assert make_shards([*make, "--encoding", "raw", "--holdout", "0.2"]) == 0
    measured = "import resource, sys; from fastdps.commands.cli import main; status = main(sys.argv[2:]); "
    measured += (
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=open(sys.argv[1], 'w')); sys.exit(status)"
    )
    train = ["train", "--shards", str(shards / "train"), "--contexts", "all", "--epochs", "12", "--out", str(out)]
    command = [sys.executable, "-c", measured, str(tmp_path / "peak_KiB"), *train]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert cli.main(["evaluate", str(out), "--shards", str(shards / "val")]) == 0
    summary = json.loads((out / "scores.json").read_text())["summary"]
    assert summary["contexts"] == 720
    assert summary["improved_fraction"] >= 0.99
    assert summary["adapted_accuracy"] >= 0.78  # 0.785; 0.793 in the 40 epochs of the recipe
    assert int((tmp_path / "peak_KiB").read_text()) < 3 * 2**20
