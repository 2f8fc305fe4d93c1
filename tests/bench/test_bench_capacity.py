"""`bench plan`: the arithmetic on synthetic rates, and the model versus measurements with one and two processes."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest

import bench.__main__ as command
from bench.analyse.capacity import CHANNELS
from bench.analyse.model import Cluster, Rates, all_reduce_s, measured_cases, predict, rates_from
from bench.analyse.results import DIRECTORY
from bench.harness.measure import Measurement
from fastdps.errors import ConfigError
from helpers.made_up_results import results, write

#: How far the model may be from a measured case.
WITHIN = 0.25
GPU = Rates(
    contexts=720,
    device_s=1e-4,
    largest_part="features",
    decode_images_per_s=30_000,
    cores=16,
    batch_images=50,
    shared_cores=False,
)
CPU = dataclasses.replace(GPU, device_s=2e-3, cores=2, shared_cores=True)
ONE = Cluster(
    devices=1,
    nodes=1,
    batch_images=50,
    image_bytes=12_800,
    cores_per_node=16,
    bandwidth_bytes_per_s=10e9,
    latency_s=30e-6,
)


def rows(two_processes=None, device="cpu"):
    """Return rows as the bench writes them. On a CPU, a process with all cores trains 400 images/s."""
    made = [
        Measurement("read", "whole shards of raw 64 px, in order", (1e6,), notes={"image_bytes": 12_800.0}),
        Measurement("load", "raw 64 px", (200_000.0,)),
        Measurement("load", "JPEG in full size to 64 px", (1_000.0,)),
        Measurement(
            "train",
            "lin, 720 contexts",
            (400.0,),
            parts_s={"load": 0.005 if device == "cuda" else 5e-6, "features": 0.0015, "heads": 0.0004},
            notes={"data_wait_fraction": 0.2, "batch_images": 50},
        ),
    ]
    if two_processes:
        notes = {"contexts": 720, "batch_images": 50}
        one, two = {"processes": 1, "threads_per_process": 4}, {"processes": 2, "threads_per_process": 2}
        made.append(Measurement("scaling", "1 process of 4 threads", (390.0,), notes=notes | one))
        made.append(Measurement("scaling", "2 processes of 2 threads", (two_processes,), notes=notes | two))
    return results(made, device=device)


def test_one_device_does_what_it_was_measured_to_do():
    plan = predict(GPU, ONE, CHANNELS)
    assert plan.images_per_s == pytest.approx(10_000)
    assert (plan.limit, plan.all_reduce_s, plan.speedup) == ("device", 0, pytest.approx(1))
    assert predict(CPU, dataclasses.replace(ONE, cores_per_node=2), CHANNELS).images_per_s == pytest.approx(500)


def test_a_step_is_its_images_and_its_all_reduce():
    plan = predict(GPU, dataclasses.replace(ONE, devices=4, batch_images=200), CHANNELS)
    nbytes = 4 * 720 * 1152
    reduce_s = 2 * 3 / 4 * nbytes / 10e9 + 2 * 2 * 30e-6
    assert plan.all_reduce_bytes == nbytes
    assert plan.step_s == pytest.approx(50 * 1e-4 + reduce_s)
    # Decoding of one node is the next limit above: 30,000.
    assert plan.limits == pytest.approx({"device": 40_000, "decode": 30_000, "all-reduce": 200 / reduce_s})
    assert plan.images_per_s == pytest.approx(30_000)
    assert plan.limit == "decode"


def test_processes_of_a_cpu_share_its_cores():
    two = dataclasses.replace(ONE, devices=2, cores_per_node=2)
    plan = predict(CPU, two, CHANNELS)
    assert plan.limits["device"] == pytest.approx(500)
    assert plan.images_per_s < 500
    spread_out = dataclasses.replace(two, nodes=2)
    assert predict(CPU, spread_out, CHANNELS).limits["device"] == pytest.approx(1000)
    assert predict(CPU, dataclasses.replace(two, cores_per_node=4), CHANNELS).limits["device"] == pytest.approx(1000)


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"devices": 2, "batch_images": 100}, "device"),
        ({"devices": 8, "batch_images": 400}, "decode"),
        ({"devices": 8, "nodes": 4, "batch_images": 400}, "device"),
        ({"devices": 8, "batch_images": 400, "storage_bytes_per_s": 100e6}, "storage"),
        ({"devices": 8, "batch_images": 400, "shared_storage_bytes_per_s": 300e6}, "shared storage"),
        ({"devices": 2, "batch_images": 2}, "all-reduce"),
        ({"devices": 2, "batch_images": 100, "bandwidth_bytes_per_s": 1e8}, "all-reduce"),
    ],
)
def test_what_limits(changes, limit):
    cluster = dataclasses.replace(ONE, **changes)
    plan = predict(GPU, cluster, CHANNELS)
    assert plan.limit == limit
    assert plan.images_per_s <= min(plan.limits.values()) * (1 + 1e-12)


def test_more_of_anything_is_never_slower():
    base = dataclasses.replace(ONE, devices=8, nodes=2, batch_images=400, storage_bytes_per_s=300e6)
    slower = predict(GPU, base, CHANNELS).images_per_s
    for name in ("batch_images", "cores_per_node", "bandwidth_bytes_per_s", "storage_bytes_per_s"):
        assert (
            predict(GPU, dataclasses.replace(base, **{name: 2 * getattr(base, name)}), CHANNELS).images_per_s >= slower
        )
    assert predict(GPU, dataclasses.replace(base, latency_s=2 * base.latency_s), CHANNELS).images_per_s <= slower


def test_a_store_is_shared_and_staging_is_not():
    """Twice the nodes stage twice as much, up to the limit of shared storage."""
    staged = dataclasses.replace(GPU, staged_bytes_per_s=64e6)  # 5,000 images/s a process
    cluster = dataclasses.replace(ONE, devices=8, batch_images=400, shared_storage_bytes_per_s=768e6)
    for nodes, cores, expected in ((1, 16, 5_000), (1, 64, 20_000), (1, 10**4, 40_000), (2, 16, 10_000), (2, 8, 5_000)):
        limits = predict(staged, dataclasses.replace(cluster, nodes=nodes, cores_per_node=cores), CHANNELS).limits
        assert limits["staging"] == pytest.approx(expected)
        assert limits["shared storage"] == pytest.approx(60_000)
    assert "staging" not in predict(GPU, cluster, CHANNELS).limits


def test_all_reduce_counts_bytes_and_messages():
    assert all_reduce_s(1e6, 1, 1e9, 1e-3) == 0
    assert all_reduce_s(1e6, 2, 1e9, 0) == pytest.approx(1e-3)
    assert all_reduce_s(0, 5, 1e9, 1e-3) == pytest.approx(6e-3)
    assert all_reduce_s(1e6, 10**6, 1e9, 0) == pytest.approx(2e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 3, "nodes": 2, "batch_images": 99}, "cannot be divided evenly"),
        ({"devices": 0}, "cannot be divided evenly"),
        ({"devices": 64}, "less than one image for each of 64 processes"),
        ({"storage_bytes_per_s": 0.0}, "^storage_bytes_per_s must be above 0"),
        ({"shared_storage_bytes_per_s": -1.0}, "^shared_storage_bytes_per_s must be above 0"),
        ({"latency_s": -1.0}, "latency_s must be above 0"),
        ({"image_bytes": math.nan}, "image_bytes must be above 0"),
    ],
)
def test_clusters_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(ONE, **changes)


def test_rates_of_a_gpu_leave_out_loading_and_waiting():
    rates = rates_from(rows(device="cuda"), contexts=720, data="raw 64 px")
    assert rates.device_s == pytest.approx(0.8 / 400)
    assert (rates.largest_part, rates.cores, rates.batch_images) == ("features", 4, 50)
    assert not rates.shared_cores


def test_rates_of_a_cpu_have_loading_in_them():
    raw, jpeg = (rates_from(rows(), contexts=720, data=data) for data in ("raw 64 px", "JPEG in full size to 64 px"))
    assert raw.device_s == pytest.approx(1 / 400)
    assert jpeg.device_s == pytest.approx(1 / 400 + 1 / 1_000 - 1 / 200_000)
    jpeg_of_a_small_heads_row = rows()
    jpeg_of_a_small_heads_row["measurements"][2]["median"] = 100.0
    slow = rates_from(jpeg_of_a_small_heads_row, contexts=720, data="JPEG in full size to 64 px")
    assert slow.largest_part == "load"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--contexts", "24"], "no row 'lin, 24 contexts' of train (it has: lin, 720 contexts)"),
        (["--data", "PNG"], "no row 'PNG' of load (it has: raw 64 px; JPEG in full size to 64 px)"),
        (["--data", "JPEG in full size to 64 px", "--storage", "100"], "--image-bytes is needed"),
        (["--data", "JPEG in full size to 64 px", "--shared-storage", "100"], "--image-bytes is needed"),
        (["--remote"], "no row 'brought from a web server' of remote (it has: none). Measure with"),
        (["--nodes", "3"], "2 devices cannot be divided evenly over 3 nodes"),
        (["--batch-size", "1"], "less than one image for each of 2 processes"),
    ],
)
def test_errors_of_the_command(tmp_path, options, message, capsys):
    path = write(tmp_path / "r.json", rows())
    assert command.main(["plan", "--gpus", "2", "--rates", str(path), *options]) == 1
    assert message in capsys.readouterr().err


def plan_output(tmp_path, capsys, content, *options):
    path = write(tmp_path / "r.json", content)
    assert command.main(["plan", "--rates", str(path), *options]) == 0
    return capsys.readouterr().out


def test_the_command_says_what_limits_and_what_to_change(tmp_path, capsys):
    shown = plan_output(tmp_path, capsys, rows(device="cuda"), "--gpus", "8", "--nodes", "2", "--storage", "10")
    # 2 nodes x 10 MB/s / 12,800 bytes
    assert re.search(r"storage\s*│\s*1,562\s*│\s*100%", shown)
    assert "Predicted: 1,562 images/s, 1.69e+07 context-triplets/s, 3.12 times one device." in shown
    assert "Lowest limit: storage: pack smaller images" in shown
    assert "Optimistic" not in shown
    content = rows(device="cuda")
    staged = Measurement("remote", "brought from a web server", (1e4,), notes={"staged_MB_per_s": 12.8})
    content["measurements"].append(staged.to_json())
    shown = plan_output(tmp_path, capsys, content, "--gpus", "8", "--nodes", "2", "--remote", "--shared-storage", "30")
    assert re.search(r"staging\s*│\s*2,000\s*│\s*100%", shown)
    assert re.search(r"shared storage\s*│\s*2,344\s*│\s*85%", shown)
    assert "Lowest limit: staging: use more processes" in shown
    shown = plan_output(tmp_path, capsys, rows(device="cuda"), "--gpus", "8", "--batch-size", "80")
    assert "Optimistic: the rates were measured with 50 images per process and step, and here are 10" in shown
    assert "a faster features, its largest part" in shown


def test_the_command_holds_the_model_against_what_was_measured(tmp_path, capsys):
    shown = plan_output(tmp_path, capsys, rows(two_processes=360.0), "--gpus", "2")
    assert "Measured: 1 process of 4 threads: 390 images/s; the model predicts 400 (+3%)." in shown
    assert "Measured: 2 processes of 2 threads: 360 images/s; the model predicts 394 (+10%)." in shown
    assert "Measured" not in plan_output(tmp_path, capsys, rows(), "--gpus", "2")


def check_model(content):
    """Check that the model is within tolerance of the rows of `scaling`. Return their number."""
    cases = measured_cases(content, CHANNELS)
    for what, measured, predicted in cases:
        assert predicted == pytest.approx(measured, rel=WITHIN), what
    return len(cases)


def test_the_check_of_the_model_can_fail():
    assert check_model(rows(two_processes=330.0)) == 2
    for far_off in (290.0, 560.0):
        with pytest.raises(AssertionError):
            check_model(rows(two_processes=far_off))


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("*.json")), ids=lambda path: path.stem)
def test_the_model_against_committed_results(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    if not any(row["stage"] == "scaling" for row in content["measurements"]):
        pytest.skip(f"{path.name} has no rows of scaling: measure it with `python -m bench --json`")
    assert check_model(content) >= 2
