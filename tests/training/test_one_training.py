"""One process at a time in a run directory: a second training or evaluation is refused, and changes nothing."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

import fastdps
from fastdps.contexts.distortions import NAMES
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.run_directory import RunDirectory
from fastdps.training.checkpoints import Checkpoint
from fastdps.training.options import CheckpointPolicy, TrainOptions
from fastdps.training.step import Stepper

OTHER = [NAMES[::-1]]
OPTIONS = TrainOptions(checkpoints=CheckpointPolicy(every_steps=1))


class InterruptionError(Exception):
    """What kills a training in these tests."""


@pytest.fixture(autouse=True)
def _pretrained(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("leaves")
    pack(DeadLeaves(8, 32, seed=1), out, PackOptions(size=32), workers=1)
    return out / "train"


def train(shards, out, contexts=(NAMES,), **settings):
    return fastdps.train(shards, out, contexts=contexts, epochs=2, batch_size=4, options=OPTIONS, **settings)


@pytest.fixture
def during_step(monkeypatch):
    """Set what happens in the third step of the next training."""

    def set_action(action):
        def step(self, *arguments):
            nonlocal steps
            steps += 1
            if steps == 3:
                monkeypatch.setattr(Stepper, "step", original)
                action()
            return original(self, *arguments)

        steps = 0
        monkeypatch.setattr(Stepper, "step", step)

    original = Stepper.step
    return set_action


def die():
    raise InterruptionError


def contexts_of(run: Path) -> tuple[list, list]:
    """Return the contexts in `config.json` and in the metric."""
    with safe_open(run / "metric.safetensors", framework="pt") as file:
        metric = json.loads(file.metadata()["rankings"])
    return json.loads((run / "config.json").read_text())["rankings"], metric


@pytest.mark.parametrize(
    "second",
    [
        lambda shards, out: train(shards, out),
        lambda shards, out: train(shards, out, OTHER),
        lambda shards, out: train(shards, out, OTHER, overwrite=True),
        lambda shards, out: fastdps.evaluate(out, shards=shards),
    ],
    ids=["the same", "others", "overwrite", "evaluate"],
)
def test_a_run_that_is_trained_refuses_others(shards, tmp_path, during_step, second):
    refused = []

    def enter():
        with pytest.raises(fastdps.ConfigError) as caught:
            second(shards, tmp_path / "run")
        refused.append(str(caught.value))

    during_step(enter)
    train(shards, tmp_path / "run")
    (message,) = refused
    assert f"{tmp_path / 'run'} is in use by another training (process " in message
    assert "Wait until it ends or stop it" in message
    assert contexts_of(tmp_path / "run") == ([list(NAMES)], [list(NAMES)])
    assert not (tmp_path / "run" / "run.lock").exists()


def test_a_run_that_is_evaluated_refuses_a_training(shards, tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "run")
    train(shards, run.path)
    evaluation = fastdps.evaluation.evaluate
    original = evaluation.tally_choices

    def tally(*arguments, **options):
        with pytest.raises(fastdps.ConfigError, match="is in use by another evaluation"):
            train(shards, run.path, OTHER, overwrite=True)
        return original(*arguments, **options)

    monkeypatch.setattr(evaluation, "tally_choices", tally)
    scores = fastdps.evaluate(run.path, shards=shards)
    assert [context.ranking for context in scores.contexts] == [NAMES]


def test_a_directory_that_is_not_a_run_stays_as_it_is(tmp_path, shards):
    with pytest.raises(fastdps.FastDPSError, match="is not a run"):
        fastdps.evaluate(tmp_path / "none", shards=shards)
    assert not (tmp_path / "none").exists()


def test_a_checkpoint_of_another_training_is_refused(shards, tmp_path, during_step):
    for name, contexts in (("run", (NAMES,)), ("other", OTHER)):
        during_step(die)
        with pytest.raises(InterruptionError):
            train(shards, tmp_path / name, contexts)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints")
    newest = tmp_path / "run" / "checkpoints" / "step-000000002.safetensors"
    with pytest.raises(fastdps.ConfigError, match=rf"{newest} belongs to a training with other settings") as caught:
        train(shards, tmp_path / "run")
    assert "--overwrite" in str(caught.value)
    train(shards, tmp_path / "run", overwrite=True)
    assert contexts_of(tmp_path / "run") == ([list(NAMES)], [list(NAMES)])


def test_a_checkpoint_without_the_hash_resumes(shards, tmp_path, during_step, capsys):
    """Version 0.1.0 did not write it."""
    during_step(die)
    with pytest.raises(InterruptionError):
        train(shards, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-000000002.safetensors"
    found = Checkpoint.load(newest)
    assert len(found.state.pop("settings_sha256")) == 64
    found.save(newest)
    train(shards, tmp_path / "run")
    assert "resuming after step 2" in capsys.readouterr().err
