"""The bench: units and comparisons, the content of results files, and the table of the README. No speed is tested."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import bench.__main__ as command
from bench.harness.data import BenchData
from bench.harness.flops import count_flops
from bench.harness.lpips_oracle import both_lpips, check_agreement
from bench.harness.measure import Compared, Measurement, PartRates, Timed, Timing, spread
from bench.stages import STAGES
from fastdps.contexts.distortions import NAMES
from fastdps.errors import ConfigError, FastDPSError
from fastdps.metric.backbones import Backbone
from fastdps.shards.format import read_manifest

CPU = torch.device("cpu")
IMAGES = 20
PARTS = {"load", "distort", "features", "distances", "heads"}
ROW_KEYS = {
    "stage",
    "what",
    "unit",
    "median",
    "low",
    "high",
    "samples",
    "limit",
    "share",
    "usual",
    "speedup",
    "parts_s",
    "bottleneck",
    "notes",
    "headline",
}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Run stages briefly on a few dead leaves. Return the content of the results file."""
    monkeypatch.delenv("FASTDPS_TEST_DATA", raising=False)
    monkeypatch.setattr(command, "QUICK", (2, 0.001, IMAGES))
    monkeypatch.setattr(command, "FULL", (2, 0.001, IMAGES))
    for stage in ("load", "train"):  # workers of the usual way, each of which imports torch
        monkeypatch.setattr(importlib.import_module(f"bench.stages.{stage}"), "cores", lambda: 1)

    def run(*stages, quick=True):
        path = tmp_path / "results.json"
        options = [*["--quick"] * quick, "--json", str(path), "--shards", str(tmp_path / "shards")]
        assert command.main([*stages, *options]) == 0
        assert str(tmp_path) not in path.read_text()
        return json.loads(path.read_text())

    return run


def check_rows(results, stages):
    """Check the properties of every row."""
    rows = results["measurements"]
    assert [stage for stage in STAGES if stage in {row["stage"] for row in rows}] == list(stages)
    for row in rows:
        assert set(row) == ROW_KEYS
        assert len(row["samples"]) == (1 if row["stage"] in ("startup", "scaling", "memory") else 2)
        assert 0 < row["low"] <= row["median"] <= row["high"]
        if row["limit"]:
            ratios = np.divide(row["samples"], row["limit"]["samples"])
            expected = np.median(ratios if row["unit"] == "images/s" else 1 / ratios)
            assert row["share"]["median"] == pytest.approx(expected)
    return {(row["stage"], row["what"]): row for row in rows}


@pytest.mark.slow
def test_cheap_stages(tiny, capsys, monkeypatch):
    heads = importlib.import_module("bench.stages.heads")
    monkeypatch.setattr(heads, "CONTEXTS", (1, 2, 6))
    results = tiny("heads", "read", "distort", "load", quick=False)
    rows = check_rows(results, ["read", "load", "distort", "heads"])
    assert {what for stage, what in rows if stage == "distort"} == {"all six, drawn and applied", *NAMES}
    usual = {f"6 contexts, {name}" for name in (heads.MODULE_DICT, heads.VMAP)}
    assert {what for stage, what in rows if stage == "heads"} == {"1 context", "2 contexts", "6 contexts"} | usual
    assert rows["heads", "6 contexts"]["speedup"]["median"] > 0
    assert {what.split(",")[0] for stage, what in rows if stage == "load"} == {"raw 64 px", "JPEG 64 px", "PNG 64 px"}
    assert results["settings"]["source"] == "deadleaves"
    assert results["settings"]["images"] == IMAGES
    assert results["machine"]["cores"] >= 1
    assert results["machine"]["cpu"]
    assert results["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert set(results["commit"] or {"id", "dirty"}) == {"id", "dirty"}
    shown = capsys.readouterr().out
    assert "zoom_in" in shown
    assert "6 contexts" in shown


@pytest.mark.slow
def test_complete_stages(tiny, weights_dir, monkeypatch):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    features = importlib.import_module("bench.stages.features")
    monkeypatch.setattr(features, "CPU_BATCHES", {"alexnet": 4, "vgg16": 2})  # the weights of the third are downloaded
    rows = check_rows(
        tiny("features", "distances", "evaluate", "startup"), ["features", "distances", "evaluate", "startup"]
    )
    assert {row["unit"] for (stage, _), row in rows.items() if stage == "startup"} == {"s"}


@pytest.mark.slow
def test_time_to_accuracy(tiny, weights_dir, monkeypatch):
    """Whole processes, against the usual way with one context."""
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    monkeypatch.setattr(importlib.import_module("bench.stages.accuracy"), "QUICK_IMAGES", 20)
    rows = {row["what"]: row for row in tiny("accuracy")["measurements"]}
    kept, again = rows["lin, 720 contexts, to 0.79"], rows["lin, 720 contexts, new draws in each epoch"]
    assert kept["unit"] == again["unit"] == "s"
    for row in (kept, again):
        assert 0.5 < row["notes"]["accuracy_share"] <= 1
        assert 0 < row["notes"]["usual_accuracy_share"] < 1
    assert rows["the usual way, 1 context, whole process"]["median"] > 0


@pytest.mark.slow
def test_judgements(tiny, weights_dir, monkeypatch):
    """The judgements are fitted, and many times as fast as triplets whose features are computed in each epoch."""
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    ((_, row),) = check_rows(tiny("judgements"), ["judgements"]).items()
    assert row["unit"] == "triplets/s"
    assert row["speedup"]["median"] > 1
    assert row["notes"]["seconds_to_heads_s"] > 0


@pytest.mark.slow
def test_few_judgements(tiny, weights_dir, monkeypatch):
    """Both bases are fitted, and no context ends far below its base."""
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    monkeypatch.setattr(importlib.import_module("bench.stages.fewshot"), "QUICK_IMAGES", 30)
    ((_, row),) = check_rows(tiny("fewshot"), ["fewshot"]).items()
    assert row["notes"].keys() >= {"shared_20_accuracy", "alexnet_100_accuracy", "alexnet_100_worst_change"}
    for name in ("shared", "alexnet"):
        assert row["notes"][f"{name}_100_accuracy"] > row["notes"][f"{name}_base_accuracy"]
        assert row["notes"][f"{name}_100_worst_change"] > -0.1


@pytest.mark.slow
def test_shards_of_a_store(tiny, weights_dir, monkeypatch, capsys):
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    remote = importlib.import_module("bench.stages.remote")
    monkeypatch.setattr(remote, "missing", lambda kind: ["moto"] if kind == "s3" else [])
    rows = check_rows(tiny("remote"), ["remote"])
    caches = ("a cache that has all", f"a cache of {remote.FEW} of {remote.SHARDS} shards")
    whats = [f"{what}, {cache}" for what in ("loading alone", "with features of alexnet") for cache in caches]
    assert {what for _, what in rows} == {
        "a manifest of 1,000 shards, divided over 512 processes",
        "brought from a web server",
        *whats,
    }
    brought = rows["remote", "brought from a web server"]
    assert brought["notes"]["staged_MB_per_s"] == pytest.approx(
        brought["median"] * brought["notes"]["image_bytes"] / 1e6
    )
    assert "skipped an S3 server (moto), which needs moto: pip install" in capsys.readouterr().err


@pytest.mark.slow
def test_training_against_the_usual_ways(tiny, weights_dir, monkeypatch, capsys):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    rows = check_rows(tiny("train", quick=False), ["train"])
    one, every = rows["train", "lin, 1 context"], rows["train", "lin, 720 contexts"]
    for row, contexts in ((one, 1), (every, 720)):
        slowest = max(row["parts_s"], key=row["parts_s"].get)
        assert row["bottleneck"] == slowest
        assert row["limit"]["what"] == f"{slowest} alone"
        assert set(row["parts_s"]) == PARTS
        ratios = np.divide(row["samples"], row["usual"]["samples"]) * 15 * contexts
        assert row["speedup"]["median"] == pytest.approx(np.median(ratios))
        assert 0 <= row["notes"]["data_wait_fraction"] <= 1
    assert every["notes"]["time_ratio"] == pytest.approx(np.median(np.divide(one["samples"], every["samples"])))
    assert "time_ratio" not in one["notes"]
    usual = rows["train", "the usual way, 1 context"]
    assert one["usual"]["samples"] == usual["samples"]
    assert set(usual["parts_s"]) == PARTS
    assert "(bottleneck)" in capsys.readouterr().out

    way = "the usual way with its backbone trained"
    contexts = ["1 context", "24 contexts", "720 contexts"]
    expected = ["the usual way, 1 context", f"{way}, 1 context", *(f"lin, {what}" for what in contexts)]
    assert [what for _, what in rows] == [*expected, "tune, 1 context", "shared, 720 contexts"]
    tuned, lin = rows["train", "tune, 1 context"], rows["train", "lin, 1 context"]
    assert tuned["usual"]["what"] == way
    assert tuned["usual"]["samples"] == rows["train", f"{way}, 1 context"]["samples"]
    assert set(tuned["parts_s"]) == PARTS
    assert [tuned["parts_s"][part] == lin["parts_s"][part] for part in ("load", "distort", "heads")] == [True] * 3
    assert [tuned["parts_s"][part] == lin["parts_s"][part] for part in ("features", "distances")] == [False] * 2
    assert "time_ratio" in rows["train", "lin, 24 contexts"]["notes"]
    assert "time_ratio" not in tuned["notes"]
    shared = rows["train", "shared, 720 contexts"]
    ratios = np.divide(tuned["samples"], shared["samples"])
    assert shared["notes"]["time_ratio"] == pytest.approx(np.median(ratios))


@pytest.mark.slow
def test_matrix_and_what_it_is_held_against(tiny, weights_dir, monkeypatch):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    rows = check_rows(tiny("matrix"), ["matrix"])
    (row,) = rows.values()
    ratios = np.divide(row["samples"], row["usual"]["samples"])
    assert row["speedup"]["median"] == pytest.approx(np.median(ratios))
    assert row["notes"]["pairs_of_all_images"] == 19_900


@pytest.mark.slow
@torch.no_grad()
def test_a_loss_and_what_it_is_held_against(tiny, weights_dir, monkeypatch):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    with torch.enable_grad():
        (row,) = check_rows(tiny("loss"), ["loss"]).values()
    assert 0 < row["notes"]["kept_for_backward_MiB"] <= 1.1 * row["notes"]["kept_by_lpips_MiB"]
    metric, oracle = both_lpips("lpips", CPU)
    x, y = torch.rand(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    check_agreement(metric(x, y), oracle(x, y, normalize=True).flatten(), "the metric")
    metric.metric.weights[0, 0] += 1
    with pytest.raises(FastDPSError, match="the timed results are not the same"):
        check_agreement(metric(x, y), oracle(x, y, normalize=True).flatten(), "the metric")


@pytest.mark.slow
def test_processes_and_memory(tiny, weights_dir, monkeypatch):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    rows = check_rows(tiny("scaling", "memory"), ["scaling", "memory"])
    one, two = (
        rows["scaling", f"lin, 720 contexts, {what}"] for what in ("1 process of 2 threads", "2 processes of 1 thread")
    )
    assert (one["notes"]["processes"], two["notes"]["processes"]) == (1, 2)
    assert two["limit"]["samples"] == one["samples"]
    imports, train = (rows["memory", what] for what in ("imports alone", "train, 720 contexts, batches of 128"))
    assert train["unit"] == imports["unit"] == "MiB"
    assert train["median"] > imports["median"] > 50
    assert train["notes"]["promised_MiB"] == 2048


def test_a_total_against_its_parts():
    """Two rounds, the second at half the speed: shares do not change, and each round has its own sum."""
    alone = {"load": (1000.0, 500.0), "features": (100.0, 50.0), "heads": (200.0, 100.0)}
    whole = (50.0, 25.0)
    parts = PartRates(alone, shared_cores=True)
    assert parts.slowest == Compared("features alone", alone["features"])
    assert parts.seconds == pytest.approx({"load": 1 / 750, "features": 1 / 75, "heads": 1 / 150})
    assert parts.sums_s == pytest.approx([0.016, 0.032])
    assert parts.notes(whole) == pytest.approx({"parts_sum_s": 0.024, "parts_sum_share": 0.8})
    assert PartRates(alone, shared_cores=False).notes(whole)["parts_sum_share"] == pytest.approx(0.75)


def test_unknown_stage(capsys):
    assert command.main(["loda"]) == 1
    assert f"Unknown stage loda. Known: {', '.join(STAGES)}." in capsys.readouterr().err


def test_every_stage_of_the_table_runs():
    assert all(callable(importlib.import_module(f"bench.stages.{name}").run) for name in STAGES)


def test_results_of_earlier_stages_survive_a_failure(tiny, monkeypatch, tmp_path, capsys):
    def fail(_):
        raise ConfigError("no luck")

    monkeypatch.setattr(importlib.import_module("bench.stages.distort"), "run", fail)
    options = ["--quick", "--json", str(tmp_path / "results.json"), "--shards", str(tmp_path / "shards")]
    assert command.main(["read", "distort", *options]) == 1
    check_rows(json.loads((tmp_path / "results.json").read_text()), ["read"])
    assert "no luck" in capsys.readouterr().err


def test_flops_of_alexnet_by_hand():
    """Two operations per weight and output of the five convolutions, on 2 images of 64 x 64 pixels."""
    backbone, images = Backbone("alexnet", pretrained=False), torch.rand(2, 3, 64, 64)
    sides, kernels, channels = (15, 7, 3, 3, 3), (11, 5, 3, 3, 3), (3, 64, 192, 384, 256, 256)
    per_image = sum(
        2 * side**2 * kernel**2 * before * after
        for side, kernel, before, after in zip(sides, kernels, channels, channels[1:], strict=False)
    )
    assert count_flops(backbone, images) == 2 * per_image


def test_sets_of_other_images_are_packed_again(tmp_path):
    first = BenchData(tmp_path / "shards", images=12, photos=None).small("raw", 20)
    assert read_manifest(first).samples == 20
    before = first.stat().st_mtime_ns, (first / "manifest.json").read_text()
    assert BenchData(tmp_path / "shards", images=12, photos=None).small("raw", 20) == first
    assert (first.stat().st_mtime_ns, (first / "manifest.json").read_text()) == before
    BenchData(tmp_path / "shards", images=5, photos=None).small("raw", 20)
    assert read_manifest(first).source["distinct"] == 5


def test_flops_of_groups_and_linears_against_torch():
    module = nn.Sequential(nn.Conv2d(4, 6, (3, 5), stride=2, groups=2), nn.Flatten(), nn.Linear(6 * 4 * 3, 7))
    images = torch.rand(3, 4, 10, 10)
    with FlopCounterMode(display=False) as oracle, torch.no_grad():
        module(images)
    assert count_flops(module, images) == oracle.get_total_flops()


def test_cases_take_turns_with_samples_of_the_asked_length():
    calls = []

    def case(name, seconds_per_unit):
        def work(amount):
            calls.append((name, amount))
            return Timed(10 * amount, seconds_per_unit * amount)

        return work

    cases = {"a": case("a", 0.001), "b": case("b", 2.0)}
    rates = Timing(rounds=3, seconds=0.1, device=CPU).rates(cases)
    assert [name for name, _ in calls[-6:]] == ["a", "b"] * 3
    assert {amount for name, amount in calls[-6:] if name == "a"} == {100}
    assert {amount for name, amount in calls if name == "b"} == {1}
    assert rates == {"a": pytest.approx((10_000.0,) * 3), "b": pytest.approx((5.0,) * 3)}
    calls.clear()
    Timing(rounds=1, seconds=0.1, device=CPU).rates(cases, seconds={"a": 0.5})
    assert calls[-2:] == [("a", 500), ("b", 1)]


def test_spread_against_numpy():
    samples = np.random.default_rng(0).normal(size=7)
    assert spread(samples.tolist()) == pytest.approx(np.percentile(samples, [50, 25, 75]))
    assert spread([3.0]) == (3, 3, 3)
    with pytest.raises(ValueError, match="no samples"):
        spread([])


def test_share_and_speedup_compare_within_rounds():
    # The machine halves its speed in the second round: medians of each would not show the share that was always 0.5.
    row = Measurement("a", "b", (50.0, 25.0, 50.0), limit=Compared("c", (100.0, 50.0, 100.0)))
    assert row.share == (0.5, 0.5, 0.5)
    slow = Measurement("a", "b", (4.0, 8.0), unit="s", limit=Compared("c", (1.0, 2.0)))
    assert slow.share == (0.25, 0.25, 0.25)
    usual = Measurement("a", "b", (50.0, 25.0), usual=Compared("c", (10.0, 5.0)), triplets_per_image=15)
    assert usual.speedup == (75, 75, 75)
