"""`fastdps train --profile`: stages that add up, a run that stays the same to the bit, a trace, and advice."""

import gzip
import json
import math
import time

import pytest
import torch
from safetensors.torch import load_file

from fastdps.commands import cli
from fastdps.report.profile import profile_lines
from fastdps.run_directory import RunDirectory
from fastdps.runtime.stages import OTHER, STAGES, STEP_STAGES, StageClock, stage, staged, whole_stage
from fastdps.training.profile_limits import ADVICE, FIRST_STEP, PREPARATION, PROFILING, RunRates
from helpers.shard_sets import raw_samples, write_set

CPU = torch.device("cpu")


def test_stages_are_exclusive_and_add_up():
    clock, started_s = StageClock(CPU), time.perf_counter()
    with clock.running():
        with stage("heads"):
            time.sleep(0.02)
            with stage("features"):
                time.sleep(0.05)
        for _ in staged("load", (time.sleep(0.01) for _ in range(3))):
            time.sleep(0.001)
        with whole_stage("validation"), stage("features"):
            time.sleep(0.01)
        elapsed_s = time.perf_counter() - started_s
    seconds = clock.seconds()
    assert sum(seconds.values()) == pytest.approx(elapsed_s, rel=0.01)
    assert list(seconds) == [OTHER, "heads", "features", "load", "validation"]
    assert seconds["features"] >= 0.05
    assert seconds["load"] >= 0.03
    assert seconds["validation"] >= 0.01
    assert seconds["heads"] + seconds["features"] < elapsed_s - 0.04


def test_without_a_clock_nothing_is_counted():
    clock = StageClock(CPU)
    with stage("heads"):
        pass
    assert clock.seconds() == {}


def test_laps_divide_the_time():
    clock = StageClock(CPU)
    with clock.running():
        for _ in range(3):
            with stage("heads"):
                time.sleep(0.001)
            clock.lap()
    assert len(clock.laps) == 3
    assert sum(lap["heads"] for lap in clock.laps) == pytest.approx(clock.seconds()["heads"])


def test_the_limit():
    assert RunRates({"load": 0.2, "distort": 3.0, "features": 5.0, OTHER: 9.0}, 100, 1.0).limit == "features"
    assert RunRates({"load": 3.0, "features": 5.0}, 100, 1.0).limit == "load"
    assert RunRates({"load": 0.1, "copy": 2.0, "features": 5.0}, 100, 1.0).limit == "copy"
    assert RunRates({"load": 0.1, "features": 5.0}, 100, 1.5).limit == "load"  # loading uses the processor
    assert RunRates({"checkpoint": 9.0, "features": 5.0}, 100, None).limit == "checkpoint"
    assert RunRates({FIRST_STEP: 9.0, PROFILING: 2.0}, 0, None).limit is None
    assert RunRates({"features": 1.0, PREPARATION: 3.0}, 100, 1.0).limit == PREPARATION
    assert set(ADVICE) == {*STAGES, PREPARATION}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, weights_dir) -> list[RunDirectory]:
    """The same training of two contexts, each with ten steps, without and with a profile."""
    root = tmp_path_factory.mktemp("profiled")
    write_set(root / "set", raw_samples(20, 32, 32), [20], image_size=(32, 32))
    data = ["--shards", str(root / "set"), "--contexts", "2"]
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        for name, more in (("plain", ()), ("profiled", ("--profile",))):
            argv = [
                "train",
                *data,
                "--batch-size",
                "4",
                "--epochs",
                "2",
                "--variant",
                "tune",
                "--out",
                str(root / name),
            ]
            assert cli.main([*argv, *more]) == 0
            found.append(RunDirectory(root / name))
    return found


def test_a_profile_leaves_the_run_as_it_is(runs):
    plain, profiled = runs
    assert len(plain.metrics()) == 2
    for own, other in zip(plain.metrics(), profiled.metrics(), strict=True):
        tensors, others = load_file(own), load_file(other)
        assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    values = [[(r["step"], r["loss"]) for r in run.read_log() if r["event"] == "step"] for run in runs]
    assert values[0] == values[1]
    assert plain.read_profile() is None


def test_the_profile_of_a_run(runs):
    profile = runs[1].read_profile()
    seconds = profile["seconds"]
    assert profile["steps"] == 2 * 2 * 5 - 2  # of two contexts, without the first step of each
    assert set(seconds) == {*STAGES, OTHER, FIRST_STEP, PROFILING} - {"checkpoint", "validation"}
    counted_s = sum(seconds.values()) - seconds[FIRST_STEP] - seconds[PROFILING]
    assert profile["images_per_s"] == pytest.approx(profile["images"] / counted_s)
    elapsed_s = sum(record["elapsed_s"] for record in runs[1].read_log() if record["event"] == "end")
    assert sum(seconds.values()) - seconds[PROFILING] == pytest.approx(elapsed_s, rel=0.05)
    assert seconds[OTHER] < 0.05 * sum(seconds.values())
    assert profile["headspace"] >= 1
    assert profile["limit"] in STAGES
    assert math.isclose(profile["in_memory_images_per_s"], profile["images_per_s"] * profile["headspace"])
    assert profile["peak_MiB"] > 100


def test_the_trace_has_named_ranges(runs):
    events = json.loads(gzip.decompress(runs[1].trace.read_bytes()))["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert {name: names.count(name) for name in STEP_STAGES if name not in ("load", "update")} == dict.fromkeys(
        ("copy", "distort", "features", "distances", "heads", "backward"), 3
    )


def test_the_report_shows_it(runs, capsys):
    assert cli.main(["report", str(runs[1].path)]) == 0
    page = runs[1].report.read_text()
    profile = runs[1].read_profile()
    assert "Where the time goes" in page
    assert f"First limit: {profile['limit']}" in page
    assert any(line.startswith("Peak of memory") for line in profile_lines(profile))


def test_a_run_without_steps_has_no_profile(tmp_path, capsys):
    write_set(tmp_path / "set", raw_samples(4, 32, 32), [4], image_size=(32, 32))
    argv = ["train", "--shards", str(tmp_path / "set"), "--out", str(tmp_path / "run"), "--variant", "baseline"]
    assert cli.main([*argv, "--profile"]) == 1
    assert "--variant baseline trains nothing" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
