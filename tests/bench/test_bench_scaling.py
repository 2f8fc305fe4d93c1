"""Launching the processes of the stage `scaling`: cases, commands and errors."""

from __future__ import annotations

import itertools
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bench.stages import scaling
from bench.stages.scaling import LaunchCase, cases, train_in_processes
from fastdps.errors import FastDPSError
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.run_directory import RunDirectory
from fastdps.runtime.machine import cores


@pytest.fixture
def shards(tmp_path):
    """Write a set of 20 images."""
    pack(DeadLeaves(20, 64, seed=0), tmp_path / "set", PackOptions(encoding="raw", size=64), workers=1)
    return tmp_path / "set" / "train"


def test_a_cpu_has_two_cases_and_gpus_as_many_as_powers_of_two_and_all():
    assert [(case.processes, case.threads, case.batch_images) for case in cases(0)] == [(1, 2, 50), (2, 1, 50)]
    assert [case.processes for case in cases(1)] == [1]
    assert [case.processes for case in cases(6)] == [1, 2, 4, 6]
    assert [case.processes for case in cases(8)] == [1, 2, 4, 8]
    assert [case.batch_images for case in cases(8)] == [50, 100, 200, 400]
    assert [case.threads for case in cases(2)] == [cores(), max(1, cores() // 2)]


def test_names_and_commands():
    assert [str(LaunchCase(1, 2)), str(LaunchCase(2, 1))] == ["1 process of 2 threads", "2 processes of 1 thread"]
    assert LaunchCase(1, 2).command(["--x"]) == [sys.executable, "-m", "fastdps.train", "--x"]
    launch = LaunchCase(3, 1).command(["--x"])
    assert launch[-3:] == ["-m", "fastdps.train", "--x"]
    assert {"--multi_gpu", "--num_processes=3"} <= set(launch)


RATES = ("images_per_s", "triplets_per_s", "data_wait_fraction")
STEP = {"event": "step", "epoch": 1, "step": 1, "loss": 0.5, "accuracy": 0.5, **dict.fromkeys(RATES, 1.0)}


def fake_run(monkeypatch, out, *, processes, seen):
    """Replace a launch by one that writes the log of a training at 200 images/s."""

    def run(command, *, env, **_):
        seen.append((command, env["OMP_NUM_THREADS"]))
        out.mkdir(exist_ok=True)
        RunDirectory(out).append_log(STEP)
        RunDirectory(out).append_log(
            {"event": "end", "step": 30, "processes": processes, **dict.fromkeys(RATES, 200.0)}
        )
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(scaling.subprocess, "run", run)


def test_the_rate_is_that_of_the_log(monkeypatch, tmp_path, shards):
    seen = []
    fake_run(monkeypatch, tmp_path / "run", processes=2, seen=seen)
    timed = train_in_processes(LaunchCase(2, 1), shards, tmp_path / "run", epochs=30)
    assert timed == (600, 3.0)
    ((command, threads),) = seen
    assert threads == "1"
    options = dict(itertools.pairwise(command))
    assert (options["--epochs"], options["--contexts"], options["--batch-size"]) == ("30", "720", "50")


def test_another_number_of_processes_is_an_error(monkeypatch, tmp_path, shards):
    fake_run(monkeypatch, tmp_path / "run", processes=1, seen=[])
    with pytest.raises(FastDPSError, match="ran in 1 processes, not in 2"):
        train_in_processes(LaunchCase(2, 1), shards, tmp_path / "run", epochs=1)


@pytest.mark.slow
def test_a_training_that_fails_says_why(tmp_path, shards):
    with pytest.raises(FastDPSError, match=r"epochs must be above 0"):
        train_in_processes(LaunchCase(1, 1), shards, tmp_path / "run", epochs=0)


def test_a_training_that_hangs_is_an_error(monkeypatch, tmp_path, shards):
    def hang(command, *, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(scaling.subprocess, "run", hang)
    with pytest.raises(FastDPSError, match="did not end within 1800 s"):
        train_in_processes(LaunchCase(2, 1), shards, tmp_path / "run", epochs=1)
