"""Real processes over gloo: exact gradients, no hang where samples are few, errors that end all, two nodes."""

import os
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastdps.commands.cli import main
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.run_directory import RunDirectory
from helpers.launching import launch_command, ranks_of
from helpers.warm_python import launch_warm, run_warm


@pytest.fixture(autouse=True)
def _environment(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def leaves(out: Path, images: int, samples_per_shard: int = 7) -> Path:
    pack(DeadLeaves(images, 32, seed=1), out, PackOptions(size=32, samples_per_shard=samples_per_shard), workers=1)
    return out / "train"


def run(*command: str, limit_s: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)


@pytest.fixture(scope="module")
def gradients(tmp_path_factory, weights_dir):
    """Where the gradients of one process and of both ranks of two lie."""
    out = tmp_path_factory.mktemp("gradients")
    shards = leaves(out / "leaves", 20, samples_per_shard=10)
    script = [str(Path(__file__).parents[1] / "helpers" / "gradients_of_ranks.py"), str(shards), str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        patch.setenv("OMP_NUM_THREADS", "1")
        cases = [*script, "lin:1", "tune:2", "shared:2"]
        for result in (run_warm(*cases), *launch_warm(2, *cases)):
            assert result.returncode == 0, result.stderr
    return out


@pytest.mark.parametrize("variant", ["lin", "tune", "shared"])
def test_two_processes_have_the_gradients_of_one_with_both_batches(gradients, variant):
    one, *two = (torch.load(gradients / f"{variant}-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert len(one) > 1
    for name, gradient in one.items():
        assert gradient.abs().max() > 0
        scale = gradient.abs().max().clamp_min(1.0)
        assert all(torch.allclose(rank[name] / scale, gradient / scale, rtol=0, atol=1e-6) for rank in two)
        assert torch.equal(two[0][name], two[1][name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "samples_per_shard", "processes"),
    [
        pytest.param(1, 7, 2, id="fewer samples and shards than processes, fewer samples than a batch"),
        pytest.param(31, 4, 3, id="uneven shards, and an uneven end of the epoch"),
    ],
)
def test_few_and_uneven_samples_do_not_hang(tmp_path, images, samples_per_shard, processes):
    shards = leaves(tmp_path / "leaves", images, samples_per_shard)
    argv = ["--shards", str(shards), "--out", str(tmp_path / "run"), "--contexts", "2", "--batch-size", "10"]
    result = run(*launch_command(processes), "-m", "fastdps.train", *argv, "--epochs", "2", "--validation", str(shards))
    assert result.returncode == 0, result.stderr
    assert load_file(RunDirectory(tmp_path / "run").metric)["weights"].isfinite().all()


def test_what_one_process_finds_wrong_is_said_once(tmp_path):
    shards = leaves(tmp_path / "leaves", 20)
    argv = ["--shards", str(shards), "--out", str(tmp_path / "run"), "--contexts", "2", "--epochs", "1"]
    assert main(["train", *argv]) == 0
    result = run(*launch_command(2), "-m", "fastdps.train", *argv, "--seed", "3", limit_s=60)
    assert result.returncode != 0
    assert result.stderr.count("error: ") == 1
    assert "seed was 0 and is now 3" in result.stderr


@pytest.mark.slow
def test_contexts_of_their_own_need_no_meeting(tmp_path):
    """With three contexts the first process has two and the second one; what is there already is not trained again."""
    shards = leaves(tmp_path / "leaves", 8)
    argv = ["--shards", str(shards), "--out", str(tmp_path / "run"), "--contexts", "3", "--batch-size", "4"]
    argv += ["--variant", "tune", "--parallel", "contexts", "--epochs", "1"]
    result = run(*launch_command(2), "-m", "fastdps.train", *argv)
    assert result.returncode == 0, result.stderr
    metrics = RunDirectory(tmp_path / "run").metrics()
    assert len(metrics) == 3
    expected = [load_file(path) for path in metrics]
    metrics[1].unlink()
    assert main(["train", *argv]) == 0
    for path, before in zip(metrics, expected, strict=True):
        assert all(torch.equal(value, before[name]) for name, value in load_file(path).items())


@pytest.mark.slow
def test_two_nodes_agree_with_two_processes_of_one(tmp_path):
    """Two launchers, as two machines have them, that meet at an address."""
    shards = leaves(tmp_path / "leaves", 30)
    argv = ["-m", "fastdps.train", "--shards", str(shards), "--contexts", "4", "--batch-size", "10", "--epochs", "2"]
    for _ in range(2):
        result = run(*launch_command(2), *argv, "--out", str(tmp_path / "one"))
        assert result.returncode == 0, result.stderr
    assert result.stderr.count("nothing to do") == 1
    nodes = [
        subprocess.Popen(
            [*launch_command(2, machines=2, rank=rank, port=29_511), *argv, "--out", str(tmp_path / "two")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in (1, 0)
    ]
    try:
        for node in nodes:
            said, _ = node.communicate(timeout=120)
            assert node.returncode == 0, said
    finally:
        for node in nodes:
            node.kill()
    one, two = (load_file(RunDirectory(tmp_path / name).metric)["weights"] for name in ("one", "two"))
    assert torch.equal(one, two)


@pytest.mark.slow
def test_a_node_that_goes_ends_the_other(tmp_path):
    """The launcher of one node and all of its processes are killed: the other node ends, and names the rank."""
    shards = leaves(tmp_path / "leaves", 30)
    argv = ["-m", "fastdps.train", "--shards", str(shards), "--contexts", "4", "--batch-size", "2", "--epochs", "4000"]
    outputs = [tmp_path / "node0.txt", tmp_path / "node1.txt"]
    nodes = []
    for rank, output in enumerate(outputs):
        command = [*launch_command(2, machines=2, rank=rank, port=29_512), *argv, "--out", str(tmp_path / "run")]
        with output.open("w") as file:
            nodes.append(subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True))
    try:
        end = time.monotonic() + 90
        while not RunDirectory(tmp_path / "run").log.exists():
            assert time.monotonic() < end, outputs[0].read_text()
            time.sleep(0.1)
        for worker in ranks_of(nodes[1].pid).values():
            os.kill(worker, 9)
        nodes[1].kill()
        assert nodes[0].wait(timeout=60) != 0
        assert "rank 1 of 2" in outputs[0].read_text()
    finally:
        for node in nodes:
            node.kill()
            node.wait()
