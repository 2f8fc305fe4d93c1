"""Packing on a Ray cluster."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fastdps.errors import ConfigError, FastDPSError
from fastdps.packing import on_ray
from fastdps.packing.on_ray import RayExecutor, RayResult, pack_shard, versions
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.plan import plan_sets
from fastdps.packing.sources.imagenet import ImageNet
from fastdps.packing.target import Directory
from fastdps.packing.work import ShardWork
from helpers.packed import Numbers, digests

PROGRAM = Path(__file__).parents[1] / "faults/ray_cluster.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks in /proc who is writing")
def test_two_nodes_of_which_a_worker_is_killed_give_the_bytes_of_one_machine(tmp_path, imagenet_sample):
    pytest.importorskip("ray")
    result = subprocess.run(
        [sys.executable, str(PROGRAM), str(imagenet_sample), str(tmp_path / "ray")],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    happened = json.loads(result.stdout.splitlines()[-1])
    assert happened["title"].startswith("ray::")
    assert happened["killed"] == 0, happened["killed_err"]
    assert "packing 700/700" in happened["killed_err"]
    pack(ImageNet(imagenet_sample), tmp_path / "local", PackOptions(samples_per_shard=70))
    expected = digests(tmp_path / "local")
    assert happened["shard"].partition(".")[0] in {Path(name).stem for name in expected}
    assert digests(tmp_path / "ray/killed") == expected
    assert happened["ended"] == 143, happened["ended_err"]
    assert happened["ended_err"].endswith("terminated; run the same command again to resume\n")
    assert happened["left"] > 0
    assert happened["partial"] == []
    assert happened["again"] == 0, happened["again_err"]
    assert digests(tmp_path / "ray/ended") == expected


class Elsewhere:
    """An executor with this process as the worker, which may have another directory or other versions."""

    def __init__(self, root: Path | None = None, **changed: str) -> None:
        self._root, self._changed = root, changed

    def run(self, works, report):
        for work in works:
            there = work if self._root is None else dataclasses.replace(work, target=Directory(self._root))
            packed = pack_shard(there)
            on_ray._check(work, dataclasses.replace(packed, versions={**packed.versions, **self._changed}))
            yield on_ray.PackedShard(work, packed.record)


def options(**changes):
    return PackOptions(**{"size": 8, "samples_per_shard": 4, **changes})


def test_a_worker_gives_the_bytes_of_the_local_executor(tmp_path):
    source = Numbers(11, frozenset({3}))
    pack(source, tmp_path / "a", options(max_rejects=0.1), workers=Elsewhere())
    pack(source, tmp_path / "b", options(max_rejects=0.1), workers=1)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_a_shard_that_only_another_machine_sees_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "VISIBLE_WITHIN_S", 0.0)
    with pytest.raises(FastDPSError, match=r"shard-000000\.tar was written on the machine .* is missing.*s3://"):
        pack(Numbers(11), tmp_path / "here", options(), workers=Elsewhere(tmp_path / "there"))
    assert not (tmp_path / "here/train/manifest.json").exists()


@pytest.mark.parametrize("package", ["pillow", "libjpeg"])
def test_machines_with_other_versions_are_refused(tmp_path, package):
    with pytest.raises(FastDPSError, match=f"has {package} 0.0.1 and here .*same versions everywhere"):
        pack(Numbers(11), tmp_path, options(), workers=Elsewhere(**{package: "0.0.1"}))


def test_what_a_worker_gives_back_is_small(tmp_path):
    plan = plan_sets(Numbers(11), options())[0]
    packed = pack_shard(ShardWork(plan.name, plan.source, plan.shards[0], options(), Directory(tmp_path)))
    assert isinstance(packed, RayResult)
    assert packed.record.shard.samples == 4
    assert packed.versions == versions()
    assert all(packed.versions.values())


def test_a_shard_of_a_run_that_is_ended_is_not_finished(tmp_path):
    plan = plan_sets(Numbers(80), options(samples_per_shard=80))[0]
    is_ended = iter([False, True])
    with pytest.raises(on_ray._RunEndedError):
        pack_shard(
            ShardWork(plan.name, plan.source, plan.shards[0], options(), Directory(tmp_path)), lambda: next(is_ended)
        )
    assert not list(tmp_path.iterdir())


def test_an_error_on_a_worker_names_the_machine(tmp_path, monkeypatch):
    def gone(_):
        raise FastDPSError("the source has gone away")

    plan = plan_sets(Numbers(11, on_read=gone), options())[0]
    monkeypatch.setattr(on_ray.platform, "node", lambda: "node7")
    with pytest.raises(FastDPSError, match="on the machine node7: the source has gone away"):
        pack_shard(ShardWork(plan.name, plan.source, plan.shards[0], options(), Directory(tmp_path)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://localhost:{}"])
def test_an_address_where_nobody_listens_is_an_error_at_once(monkeypatch, form):
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(server.getsockname()[1])
    with pytest.raises(ConfigError, match=f"no Ray cluster is available at {address}: .*refused"), RayExecutor(address):
        pass
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"no Ray cluster is available at {address}"), RayExecutor():
        pass


def test_without_ray_an_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'fastdps\[ray\]'"), RayExecutor():
        pass
