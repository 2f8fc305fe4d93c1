"""Packing to an S3 server with injected faults, while packing itself is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastdps.commands.check_shards import check_shards
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.shards import storage
from fastdps.shards.storage import Store
from helpers.packed import digests
from helpers.servers import Faults, failing_proxy

ROOT = Path(__file__).parents[2]
SHARDS = 20


def start(out: object, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "tools/make_shards.py"), "deadleaves", "--count", "200", "--size", "24"]
    command += ["--samples-per-shard", "10", "--out", str(out), *(options or ("--workers", "1"))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def local(tmp_path):
    """Pack the same set into a local directory."""
    pack(DeadLeaves(200, 24, 0), tmp_path / "local", PackOptions(size=24, samples_per_shard=10), workers=1)
    return digests(tmp_path / "local/train")


@pytest.mark.slow
def test_a_killed_run_into_a_failing_store_resumes_to_the_same_bytes(tmp_path, bucket, s3_port, s3_at, local, capsys):
    faults = Faults(0.1, slow_s=0.1)
    with failing_proxy(s3_port, faults) as port:
        s3_at(port)
        out = Store(bucket) / "set"
        process = start(out)
        try:
            wait_for_shards(out / "train", 3, process)
        finally:
            process.kill()
            process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert "manifest.json" not in (out / "train").files()
        process = start(out)
        said, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert f"{out}/train: 200 samples in {SHARDS} shards" in said
        assert check_shards([str(out)]) == 0
        assert capsys.readouterr().out == f"{out}/train: sound\n"
    assert all(faults.done[kind] for kind in Faults.KINDS)
    s3_at(s3_port)
    fetch(out / "train", tmp_path / "fetched")
    assert digests(tmp_path / "fetched") == local


@pytest.mark.slow
def test_workers_of_ray_upload_the_same_bytes(tmp_path, bucket, local):
    pytest.importorskip("ray")
    _, err = (process := start(Store(bucket) / "set", "--executor", "ray")).communicate(timeout=180)
    assert process.returncode == 0, err
    fetch(Store(bucket) / "set" / "train", tmp_path / "fetched")
    assert digests(tmp_path / "fetched") == local


def wait_for_shards(store: Store, count: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while sum(name.endswith(".tar") for name in store.files()) < count:
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < end, "no shards came"
        time.sleep(0.05)


def fetch(store: Store, directory: Path) -> None:
    directory.mkdir()
    for name in store.files():
        (directory / name).write_bytes(store.read(name))


def test_credentials_that_are_wrong_are_an_error_and_not_a_wait(tmp_path, bucket, monkeypatch, capsys):
    from fastdps.commands.make_shards import make_shards

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    storage._file_system.cache_clear()
    assert make_shards(["deadleaves", "--count", "2", "--size", "8", "--workers", "1", "--out", f"{bucket}/x"]) == 1
    assert "Set credentials" in capsys.readouterr().err
