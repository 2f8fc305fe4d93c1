"""One step: pieces, precisions, processes, and what is said when it cannot be taken."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from fastdps.commands import cli
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import sample_rankings
from fastdps.errors import TrainingError
from fastdps.loading.spec import Batch
from fastdps.metric.precision import autocast, deterministic_algorithms, resolve_precision
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.run_directory import RunDirectory
from fastdps.runtime.processes import join_processes
from fastdps.training.loop import build_metric
from fastdps.training.options import Execution
from fastdps.training.recipes import fast, get_recipe
from fastdps.training.step import Stepper, split
from fastdps.training.tasks import RankingTask
from helpers.warm_python import run_warm

RANKINGS = sample_rankings(3, NAMES, seed=3)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _pretrained(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


@pytest.fixture
def together():
    return join_processes(stall_timeout_s=1.0)


def batch_of(n: int) -> Batch:
    images = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    return Batch({"image": images}, torch.arange(n), n)


def gradients(together, batch: Batch, execution: Execution, **settings) -> list[torch.Tensor]:
    """The gradients of one step, by parameter."""
    config = get_recipe("fast", {"dropout": 0.0, "interpolation": "bilinear", **settings})
    task = RankingTask(RANKINGS[:1] if config.variant == "tune" else RANKINGS, config, CPU)
    stepper = Stepper(config, task, build_metric(config, task.rankings, CPU), together, execution)
    found: list[torch.Tensor] = []
    stepper.optimizer.register_step_pre_hook(
        lambda optimizer, *_: found.extend(p.grad.clone() for group in optimizer.param_groups for p in group["params"])
    )
    stepper.step(batch, 0, 0)
    return found


@pytest.mark.parametrize("variant", ["lin", "tune", "shared"])
@pytest.mark.parametrize("pieces", [2, 3, 100])
def test_pieces_give_the_gradients_of_the_whole(together, variant, pieces):
    settings = {"variant": variant, "augment": "crop", "keep": 0.0 if variant == "lin" else 0.5}
    whole = gradients(together, batch_of(7), Execution(), **settings)
    in_pieces = gradients(together, batch_of(7), Execution(accumulate=pieces), **settings)
    assert len(whole) == len(in_pieces) > 1
    for a, b in zip(whole, in_pieces, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
@pytest.mark.parametrize("variant", ["lin", "tune"])
def test_traced_is_the_same(together, variant, monkeypatch):
    """Traced as for a compiler, but run without one, whose build tools do not get on with what tests import."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compile_module(self, backend="eager", **options))
    plain = gradients(together, batch_of(6), Execution(), variant=variant)
    compiled = gradients(together, batch_of(6), Execution(compile=True), variant=variant)
    for a, b in zip(plain, compiled, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * a.abs().max().item())


@pytest.mark.parametrize("n", [0, 1, 7])
@pytest.mark.parametrize("pieces", [1, 2, 3, 9])
def test_pieces_are_the_batch(n, pieces):
    batch = dataclasses.replace(batch_of(n), global_size=50)
    parts = list(split(batch, pieces))
    assert 1 <= len(parts) <= pieces
    assert torch.equal(torch.cat([part.ids for part in parts]), batch.ids)
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert {part.global_size for part in parts} == {50}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_stay_near(together, precision):
    exact = gradients(together, batch_of(8), Execution())
    near = gradients(together, batch_of(8), Execution(precision))
    for a, b in zip(exact, near, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert not torch.equal(a, b)
        assert (a - b).norm() < 0.05 * a.norm()


def test_the_precision_of_a_backbone():
    layer = nn.Conv2d(3, 4, 3)
    for precision, dtype in (("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(precision, CPU):
            assert layer(torch.rand(1, 3, 8, 8)).dtype == dtype
    assert resolve_precision("auto", CPU) == "fp32"


def test_determinism_is_undone():
    with deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_out_of_memory_says_what_was_tried(together, monkeypatch):
    config = dataclasses.replace(fast(), batch_size=64)
    task = RankingTask(RANKINGS, config, CPU)
    stepper = Stepper(config, task, build_metric(config, task.rankings, CPU), together, Execution(accumulate=2))

    def allocate(batch, epoch):
        torch.empty(2**60)  # what torch really raises

    monkeypatch.setattr(task, "views", allocate)
    with pytest.raises(TrainingError, match=r"out of memory on cpu with --batch-size 64 .*Try --accumulate 4"):
        stepper.step(batch_of(3), 0, 0)


def test_other_errors_are_not_taken_for_want_of_memory(together, monkeypatch):
    task = RankingTask(RANKINGS, fast(), CPU)
    stepper = Stepper(fast(), task, build_metric(fast(), task.rankings, CPU), together)

    def fail(batch, epoch):
        raise RuntimeError("a defect")

    monkeypatch.setattr(task, "views", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        stepper.step(batch_of(3), 0, 0)


def test_a_tracker_that_is_not_installed_is_an_error_in_a_fresh_process(tmp_path):
    command = ["-m", "fastdps", "train", "--shards", "nowhere", "--out", tmp_path / "run"]
    done = run_warm(*command, "--log-with", "wandb")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: --log-with wandb: that package is not installed. Install wandb, or log without it."
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--accumulate", "0"], "--accumulate is 0"),
        (["--max-steps", "0"], "max_steps must be a whole number above 0"),
        (["--checkpoint-every", "0"], "--checkpoint-every is 0"),
        (["--keep-checkpoints", "0"], "--keep-checkpoints is 0"),
        (["--log-with", "abacus"], "abacus"),
        (["--log-with", "wandb"], "wandb: that package is not installed"),
    ],
)
def test_bad_options(tmp_path, options, message, capsys):
    assert cli.main(["train", "--shards", "nowhere", "--out", str(tmp_path / "run"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def leaves(tmp_path) -> Path:
    pack(DeadLeaves(30, 32, seed=1), tmp_path / "leaves", PackOptions(size=32), workers=1)
    return tmp_path / "leaves" / "train"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_with_the_samples(leaves, tmp_path, monkeypatch, value, capsys):
    original, spoiled = RankingTask.views, []

    def spoil(self, batch, epoch):
        views = original(self, batch, epoch)
        if epoch == 1 and 7 in batch.ids:
            spoiled.append(batch.ids.tolist())
            views[batch.ids == 7, 2] = value
        return views

    monkeypatch.setattr(RankingTask, "views", spoil)
    argv = ["train", "--shards", str(leaves), "--contexts", "3", "--batch-size", "10", "--epochs", "4"]
    argv += ["--draws-kept", "0", "--checkpoint-every", "1", "--out", str(tmp_path / "run")]
    assert cli.main(argv) == 1
    said = capsys.readouterr().err
    step = int(said.split("training diverged at step ")[1].split(":")[0])
    assert 4 <= step <= 6
    assert f"for samples {', '.join(map(str, spoiled[0]))}." in said
    newest = tmp_path / f"run/checkpoints/step-{step - 1:09d}.safetensors"
    assert f"the last good checkpoint is {newest}" in said
    assert newest.exists()
    assert not RunDirectory(tmp_path / "run").metric.exists()

    monkeypatch.setattr(RankingTask, "views", original)
    assert cli.main(argv) == 0


def test_a_learning_rate_that_diverges_writes_no_metric(leaves, tmp_path, capsys):
    argv = ["train", "--shards", str(leaves), "--contexts", "3", "--batch-size", "10", "--max-steps", "3"]
    argv += ["--learning-rate", "1e38", "--out", str(tmp_path / "run")]
    assert cli.main(argv) == 1
    assert "training diverged" in capsys.readouterr().err
    assert not RunDirectory(tmp_path / "run").metric.exists()


def test_scalars_go_to_a_tracker(leaves, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    argv = ["train", "--shards", str(leaves), "--contexts", "3", "--batch-size", "10", "--epochs", "3"]
    argv += ["--validation", str(leaves), "--log-with", "tensorboard", "--out", str(tmp_path / "run")]
    result = run_warm("-m", "fastdps", *argv)  # trackers stay in a process for good
    assert result.returncode == 0, result.stderr
    events = EventAccumulator(str(tmp_path / "run" / "fastdps")).Reload()
    logged = [record for record in RunDirectory(tmp_path / "run").read_log() if record["event"] == "step"]
    for name in ("loss", "accuracy", "learning_rate", "images_per_s", "triplets_per_s", "data_wait_fraction"):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [record["step"] for record in logged]
        assert [scalar.value for scalar in scalars] == pytest.approx([record[name] for record in logged], rel=1e-5)
    assert len(events.Scalars("validation_accuracy")) == 3
