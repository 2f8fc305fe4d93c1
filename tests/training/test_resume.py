"""Interrupted trainings: what they end with when they go on is what undisturbed ones end with, to the last bit."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastdps.commands import cli
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import sample_rankings
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.run_directory import RunDirectory
from fastdps.training.step import Stepper

RANKINGS = ";".join(",".join(ranking) for ranking in sample_rankings(2, NAMES, seed=3))


@pytest.fixture(autouse=True)
def _pretrained(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


@pytest.fixture(scope="module")
def leaves(tmp_path_factory) -> Path:
    """A set of 32 training and 8 held-out images: steps of 10 are four in an epoch, the last of them short."""
    out = tmp_path_factory.mktemp("leaves")
    pack(DeadLeaves(40, 32, seed=1), out, PackOptions(size=32, holdout=0.2, samples_per_shard=9), workers=1)
    return out


VARIANTS = {
    "lin": ["--epochs", "3", "--checkpoint-every", "2"],
    "lin, mlp judge, one pair, validation": [
        *["--epochs", "3", "--judge", "mlp", "--recipe", "paper", "--checkpoint-every", "3"],
        *["--validation", "{leaves}/val"],
    ],
    "lin, kept draws, max steps, pieces": [
        *["--draws-kept", "2", "--max-steps", "10", "--accumulate", "3", "--checkpoint-every", "4"],
    ],
    "tune, low rank": [
        *["--variant", "tune", "--epochs", "2", "--checkpoint-every", "3", "--validation", "{leaves}/val"],
        *["--lora", "2"],
    ],
    "shared": [
        *["--variant", "shared", "--epochs", "2", "--checkpoint-every", "3", "--validation", "{leaves}/val"],
        *["--keep", "0.3"],
    ],
    "scratch, batch norm": [
        *[
            "--variant",
            "scratch",
            "--backbone",
            "resnet18",
            "--taps",
            "2,4",
            "--epochs",
            "1",
            "--checkpoint-every",
            "1",
        ],
    ],
}


#: On a CPU this takes seconds a step, so there are few and shallow ones.
FLOAT16 = [
    *["--variant", "tune", "--max-steps", "3", "--checkpoint-every", "2", "--precision", "fp16"],
    *["--contexts", RANKINGS.split(";")[0], "--taps", "1", "--batch-size", "4"],
]


def command(leaves: Path, options: list[str]) -> list[str]:
    options = [option.format(leaves=leaves) for option in options]
    return ["train", "--shards", str(leaves / "train"), "--contexts", RANKINGS, "--batch-size", "10", *options]


@pytest.fixture(scope="module", params=VARIANTS)
def argv(request, leaves):
    return command(leaves, VARIANTS[request.param])


@pytest.fixture(scope="module")
def undisturbed(argv, tmp_path_factory, weights_dir) -> Path:
    """A run that nothing interrupts."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        assert cli.main([*argv, "--out", str(out)]) == 0
    return out


class InterruptionError(Exception):
    """What kills a training in these tests."""


@pytest.fixture
def at_step(monkeypatch):
    """Sets what happens at the n-th step that is taken from then on, over all contexts; None for nothing."""

    def interrupt(number: int | None, happens=lambda: None):
        taken = 0

        def step(self, *arguments):
            nonlocal taken
            taken += 1
            if taken == number:
                happens()
            return original(self, *arguments)

        monkeypatch.setattr(Stepper, "step", step)
        return lambda: taken

    original = Stepper.step
    return interrupt


def die():
    raise InterruptionError


def metrics(out: Path) -> list[dict[str, torch.Tensor]]:
    return [load_file(path) for path in RunDirectory(out).metrics()]


def assert_same(out: Path, expected: Path) -> None:
    found, wanted = metrics(out), metrics(expected)
    assert len(found) == len(wanted) > 0
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def history(out: Path) -> list[dict]:
    """The log without what depends on the clock and on interruptions."""
    timed = ("images_per_s", "triplets_per_s", "data_wait_fraction", "elapsed_s", "loss", "accuracy", "prior")
    return [
        {name: value for name, value in record.items() if name not in timed}
        for record in RunDirectory(out).read_log()
        if record["event"] != "resume"
    ]


def steps_of(out: Path) -> int:
    """Those of all contexts."""
    return sum(record["step"] for record in RunDirectory(out).read_log() if record["event"] == "end")


def kill_and_go_on(argv: list[str], number: int, at_step, out: Path, undisturbed: Path) -> None:
    """Kill a training at one of its steps; what it goes on to is the same."""
    total = steps_of(undisturbed)
    at_step(number, die)
    with pytest.raises(InterruptionError):
        cli.main([*argv, "--out", str(out)])
    steps = at_step(None)
    assert cli.main([*argv, "--out", str(out)]) == 0
    assert steps() <= total
    assert steps() < total or number <= 4  # a checkpoint was used
    assert_same(out, undisturbed)
    assert history(out) == history(undisturbed)


@pytest.mark.parametrize("moment", ["first step", "middle", "last step"])
def test_a_killed_training_goes_on_to_the_same_bits(argv, undisturbed, tmp_path, at_step, moment):
    total = steps_of(undisturbed)
    number = {"first step": 1, "middle": total // 2 + 1, "last step": total}[moment]
    kill_and_go_on(argv, number, at_step, tmp_path / "run", undisturbed)


def test_a_killed_training_in_float16_goes_on_to_the_same_bits(leaves, tmp_path, at_step):
    argv = command(leaves, FLOAT16)
    assert cli.main([*argv, "--out", str(tmp_path / "undisturbed")]) == 0
    kill_and_go_on(argv, 3, at_step, tmp_path / "run", tmp_path / "undisturbed")


def test_a_training_that_is_killed_again_and_again_ends(argv, undisturbed, tmp_path, at_step):
    every, kills = int(argv[argv.index("--checkpoint-every") + 1]), 0
    for _ in range(100):
        at_step(every + 1, die)
        try:
            assert cli.main([*argv, "--out", str(tmp_path / "run")]) == 0
            break
        except InterruptionError:
            kills += 1
    assert kills >= 1
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_ends(leaves, tmp_path, at_step, number, capsys):
    argv = ["train", "--shards", str(leaves / "train"), "--contexts", RANKINGS, "--batch-size", "10", "--epochs", "2"]
    assert cli.main([*argv, "--out", str(tmp_path / "undisturbed")]) == 0
    at_step(3, lambda: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert cli.main([*argv, "--out", str(tmp_path / "run")]) == 128 + number
    assert signal.getsignal(number) == before
    said = capsys.readouterr().err
    stopped = re.search(rf"stopped by {signal.Signals(number).name} after step (\d): run the same command", said)
    done = int(stopped[1])
    assert 3 <= done < 8  # within a second, which is more than one of these steps
    assert "Traceback" not in said
    assert not RunDirectory(tmp_path / "run").metric.exists()
    steps = at_step(None)
    assert cli.main([*argv, "--out", str(tmp_path / "run")]) == 0
    assert steps() == 8 - done
    assert f"resuming after step {done}" in capsys.readouterr().err
    assert_same(tmp_path / "run", tmp_path / "undisturbed")


def test_a_damaged_checkpoint_is_said_and_the_one_before_used(leaves, tmp_path, at_step, capsys):
    argv = ["train", "--shards", str(leaves / "train"), "--contexts", RANKINGS, "--batch-size", "10", "--epochs", "2"]
    argv += ["--checkpoint-every", "2"]
    assert cli.main([*argv, "--out", str(tmp_path / "undisturbed")]) == 0
    at_step(8, die)
    with pytest.raises(InterruptionError):
        cli.main([*argv, "--out", str(tmp_path / "run")])
    os.truncate(tmp_path / "run/checkpoints/step-000000006.safetensors", 1000)
    capsys.readouterr()
    assert cli.main([*argv, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "step-000000006.safetensors cannot be read" in said
    assert "resuming after step 4" in said
    assert_same(tmp_path / "run", tmp_path / "undisturbed")


def test_overwriting_begins_anew(leaves, tmp_path, at_step, capsys):
    argv = ["train", "--shards", str(leaves / "train"), "--contexts", RANKINGS, "--batch-size", "10", "--epochs", "2"]
    argv += ["--checkpoint-every", "2", "--out", str(tmp_path / "run")]
    at_step(4, die)
    with pytest.raises(InterruptionError):
        cli.main(argv)
    steps = at_step(None)
    assert cli.main([*argv, "--overwrite"]) == 0
    assert steps() == 8
    assert "going on" not in capsys.readouterr().err


def test_a_log_line_cut_short_is_no_obstacle(leaves, tmp_path, at_step):
    argv = ["train", "--shards", str(leaves / "train"), "--contexts", RANKINGS, "--batch-size", "10", "--epochs", "2"]
    argv += ["--checkpoint-every", "2", "--out", str(tmp_path / "run")]
    at_step(6, die)
    with pytest.raises(InterruptionError):
        cli.main(argv)
    log = tmp_path / "run" / "log.jsonl"
    with log.open("a") as file:
        file.write('{"event": "step", "ep')
    at_step(None)
    assert cli.main(argv) == 0
    assert [json.loads(line)["event"] for line in log.read_text().splitlines()] == ["step", "resume", "step", "end"]


def test_max_steps_end_a_training_with_its_rate_at_zero(leaves, tmp_path, at_step):
    argv = ["train", "--shards", str(leaves / "train"), "--contexts", RANKINGS, "--batch-size", "10"]
    steps = at_step(None)
    assert cli.main([*argv, "--max-steps", "6", "--out", str(tmp_path / "run")]) == 0
    assert steps() == 6
    last = [record for record in RunDirectory(tmp_path / "run").read_log() if record["event"] == "step"][-1]
    assert last["step"] == 6
    assert 0 < last["learning_rate"] < 0.1 * 4e-2  # that of the last step, nearly at the end of its cosine
