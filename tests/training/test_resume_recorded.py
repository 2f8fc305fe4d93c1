"""`fastdps train --resume RUN` needs nothing but the run: data, settings, contexts and options are recorded in it."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fastdps
from fastdps.commands import cli
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.shards.cache import Cache
from fastdps.training.options import CheckpointPolicy, Execution, TrainOptions
from fastdps.training.progress import Progress
from fastdps.training.recipes import fast
from fastdps.training.resume import describe_start, read_recorded
from fastdps.training.step import Stepper

RANKING = "color,darken,zoom_in,rotate,translate,blur"


@pytest.fixture(autouse=True)
def _pretrained(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


@pytest.fixture(scope="module")
def leaves(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("leaves")
    pack(DeadLeaves(16, 40, seed=1), out, PackOptions(size=40, holdout=0.25), workers=1)
    return out


class InterruptionError(Exception):
    """What kills a training in these tests."""


def test_an_interrupted_run_is_resumed_by_its_name(leaves, tmp_path, monkeypatch, capsys):
    options = [
        *["--validation", "val", "--contexts", RANKING, "--size", "33", "--batch-size", "4", "--epochs", "2"],
        *["--learning-rate", "0.01", "--comparison", "mean", "--accumulate", "2", "--seed", "5"],
        *["--checkpoint-every", "2", "--keep-checkpoints", "1", "--loader", "portable"],
    ]
    monkeypatch.chdir(leaves)
    argv = ["train", "--shards", "train", *options, "--out", str(tmp_path / "run")]
    assert cli.main([*argv[:-1], str(tmp_path / "undisturbed")]) == 0
    original, steps = Stepper.step, []

    def step(self, *arguments):
        steps.append(self._execution)
        if len(steps) == 4:
            raise InterruptionError
        return original(self, *arguments)

    monkeypatch.setattr(Stepper, "step", step)
    with pytest.raises(InterruptionError):
        cli.main(argv)
    monkeypatch.chdir(tmp_path)  # relative paths of the run are those of its first command
    assert cli.main(["train", "--resume", "run"]) == 0
    assert steps[-1].accumulate == 2
    assert "resuming after step 2" in capsys.readouterr().err
    found, wanted = (load_file(tmp_path / name / "metric.safetensors")["weights"] for name in ("run", "undisturbed"))
    assert torch.equal(found, wanted)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["argv"] == argv
    assert config["directory"] == str(leaves)
    assert cli.main(["train", "--resume", "run"]) == 0
    assert "nothing to do" in capsys.readouterr().err

    assert cli.main(["train", "--resume", "run", "--seed", "0", "--out", "x"]) == 1
    assert "takes all settings from the run. Omit --out, --seed." in capsys.readouterr().err
    assert cli.main(["train", "--resume", "nowhere"]) == 1
    assert "nowhere is not a run" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "run", "--shards", str(leaves / "val")]) == 1
    assert "the data's sha256 was" in capsys.readouterr().err


def test_a_run_on_a_file_of_judgements_is_resumed_from_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTDPS_CACHE", str(tmp_path / "cache"))
    for number in range(6):
        Image.effect_noise((40, 40), 10 + 20 * number).convert("RGB").save(tmp_path / f"{number}.png")
    rows = [f"{n}.png,{(n + 1) % 6}.png,{(n + 2) % 6}.png,0,{person}" for n in range(6) for person in ("ann", "ben")]
    (tmp_path / "judged.csv").write_text("\n".join(["ref,p0,p1,judge,person", *rows, ""]))
    run = tmp_path / "run"
    argv = [
        "train",
        "--judgements",
        str(tmp_path / "judged.csv"),
        "--by",
        "person",
        "--contexts",
        "ben",
        "--size",
        "40",
    ]
    assert cli.main([*argv, "--out", str(run)]) == 0
    before = load_file(run / "metric.safetensors")["weights"]
    (run / "metric.safetensors").unlink()
    assert cli.main(["train", "--resume", str(run)]) == 0
    assert torch.equal(load_file(run / "metric.safetensors")["weights"], before)
    recorded = read_recorded(run)
    assert (recorded.shards, recorded.contexts) == (tmp_path / "judged.csv", ("ben",))


def test_options_are_read_as_they_were_recorded(tmp_path):
    options = TrainOptions(
        execution=Execution("fp32", 3, deterministic=True),
        checkpoints=CheckpointPolicy(7, 2),
        parallel="contexts",
        stall_timeout_s=float("inf"),
        trackers=("tensorboard",),
        size=48,
        loading=fastdps.LoadOptions("portable", 2, cache=Cache(Path("/cache"), 100), divide="step"),
    )
    config = {
        "config": fast().to_json(),
        "rankings": [RANKING.split(",")],
        "data": {"shards": "a", "validation": None, "size": 48, "samples": 1, "source": {}, "sha256": "x"},
        "versions": {},
        "machine": {},
    }
    (tmp_path / "config.json").write_text(json.dumps({**config, **describe_start(options)}))
    assert read_recorded(tmp_path).options == options
    (tmp_path / "config.json").write_text(json.dumps(config))  # as fastdps 0.1.0 wrote it
    assert read_recorded(tmp_path).options == TrainOptions(size=48)
    assert read_recorded(tmp_path).contexts == [tuple(RANKING.split(","))]


def test_credentials_are_not_recorded():
    argv = ("train", "--shards", "https://user:secret@host/set?token=abc", "--out", "run")
    assert "secret" not in str(describe_start(TrainOptions(argv=argv)))
    assert os.getcwd() == describe_start(TrainOptions())["directory"]


def test_a_checkpoint_says_what_the_processes_divided(leaves, tmp_path, monkeypatch):
    """Steps of another division are at other positions of the epoch: a resumed run takes only what was left of it."""
    asked = []
    resumed = Progress.resumed.__func__

    def watch(cls, state, *, same_division):
        asked.append(same_division)
        return resumed(cls, state, same_division=same_division)

    monkeypatch.setattr(Progress, "resumed", classmethod(watch))
    before = TrainOptions(checkpoints=CheckpointPolicy(1), loading=fastdps.LoadOptions(divide="step"))
    settings = {"contexts": RANKING, "batch_size": 4, "epochs": 1}
    fastdps.train(leaves / "train", tmp_path / "run", options=before, **settings)
    for options in (before, TrainOptions()):
        (tmp_path / "run" / "metric.safetensors").unlink()
        fastdps.train(leaves / "train", tmp_path / "run", options=options, **settings)
    assert asked == [True, False]
