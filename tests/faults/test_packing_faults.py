"""Fault injection for packing: after a kill, a full disk or a lost source, a second run gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdps.errors import FastDPSError
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import PackProgress, pack
from fastdps.packing.sources.folder import Folder
from helpers.packed import digests

ROOT = Path(__file__).parents[2]
KILLS = 20


def make_shards(out: Path, *, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start packing that takes about a second."""
    command = [*prefix, sys.executable, str(ROOT / "tools/make_shards.py"), "deadleaves", "--count", "160"]
    command += ["--size", "24", "--samples-per-shard", "8", "--holdout", "0.2", "--workers", "2", "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed")
    process = make_shards(out)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return digests(out)


def assert_complete_or_temporary(out: Path, expected: dict[str, str]) -> None:
    """Check that every file on disk is a complete expected file, a temporary file, or the ledger of finished shards."""
    for split in (path for path in out.glob("*") if path.is_dir()):
        for path in split.iterdir():
            name = path.relative_to(out).as_posix()
            if path.suffix in (".tar", ".idx", ".json", ".parquet"):
                assert hashlib.sha256(path.read_bytes()).hexdigest() == expected[name], name
            else:
                assert path.name.endswith(".partial") or path.name in ("progress.jsonl", "rejects.jsonl"), name
        if (split / "progress.jsonl").exists():
            for line in (split / "progress.jsonl").read_text().split("\n")[1:-1]:
                shard = json.loads(line)["shard"]
                with tarfile.open(split / shard["name"]) as tar:
                    assert len(tar.getmembers()) == shard["samples"]
                assert (split / shard["name"].replace(".tar", ".idx")).exists()


def finished_shards(out: Path) -> int:
    return len(list(out.glob("*/shard-*.tar")))


def kill_at(process: subprocess.Popen[str], out: Path, shards: int, delay_s: float, number: int) -> None:
    """Send a signal some time after a number of shards is finished. It may come too late."""
    end = time.monotonic() + 60
    while process.poll() is None and finished_shards(out) < shards and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(delay_s)
    process.send_signal(number)


@pytest.mark.slow
def test_kills_at_random_moments_change_no_byte(tmp_path, undisturbed):
    moments = random.Random(0)
    out, kills, amid_shards, finished = tmp_path / "0", 0, 0, 0
    while kills < KILLS:
        process = make_shards(out)
        shards = finished_shards(out) + moments.choice([0, 1, 1, 2])
        number = moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        kill_at(process, out, shards, moments.uniform(0, 0.2), number)
        _, err = process.communicate(timeout=60)
        if process.returncode == 0:
            assert digests(out) == undisturbed
            finished += 1
            out = tmp_path / str(finished)
            continue
        assert process.returncode in (-signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGINT, -number), err
        kills += 1
        amid_shards += finished_shards(out) > 0
        assert_complete_or_temporary(out, undisturbed)
    process = make_shards(out)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert digests(out) == undisturbed
    assert amid_shards >= KILLS / 2  # otherwise all came while Python was starting


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_crash_before_any_change_on_disk_changes_no_byte(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("crash_points.py")), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert [int(count) > 20 for count in result.stdout.split()] == [True, True]


def test_a_full_disk_is_an_error_and_the_next_run_resumes(tmp_path, undisturbed):
    out = tmp_path / "out"
    # No file of more than 20 KiB: the first shard of 8 images does not fit.
    process = make_shards(out, prefix=("bash", "-c", 'ulimit -f 20; exec "$@"', "bash"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"error: .*shard-000000\.tar cannot be written: File too large", err)
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert not list(out.rglob("*.tar"))
    process = make_shards(out)
    assert process.communicate(timeout=60)[1] is not None
    assert digests(out) == undisturbed


OPTIONS = PackOptions(size=16, samples_per_shard=40)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(120):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"in/{number:03d}.png")
    return Folder(tmp_path / "in")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("mount_point_stays", [False, True])
def test_a_source_that_vanishes_is_an_error_and_the_next_run_resumes(tmp_path, folder, workers, mount_point_stays):
    pack(folder, tmp_path / "expected", OPTIONS, workers=1)

    def vanish(*_):
        if folder.root.exists() and any(folder.root.iterdir()):
            folder.root.rename(tmp_path / "elsewhere")
            if mount_point_stays:
                folder.root.mkdir()

    message = "items were rejected" if mount_point_stays else "no longer available"
    # With several workers, this small source may be read completely before the first report.
    hook = PackProgress(advance=vanish) if workers == 1 else PackProgress(start=vanish)
    with pytest.raises(FastDPSError, match=message):
        pack(folder, tmp_path / "out", OPTIONS, workers=workers, progress=hook)
    if mount_point_stays:
        folder.root.rmdir()
    (tmp_path / "elsewhere").rename(folder.root)
    pack(folder, tmp_path / "out", OPTIONS, workers=workers)
    assert digests(tmp_path / "out") == digests(tmp_path / "expected")


class StopError(Exception):
    """An error that a test raises to end a run."""


def interrupt(folder, out):
    """Start a run that ends after its first shard."""
    done = 0

    def stop(items):
        nonlocal done
        done += items
        if done > 60:
            raise StopError

    with pytest.raises(StopError):
        pack(folder, out, OPTIONS, workers=1, progress=PackProgress(advance=stop))
    assert [path.name for path in (out / "train").glob("*.tar")] == ["shard-000000.tar"]


@pytest.mark.parametrize(
    "damage",
    {
        "a truncated line": lambda split: append(split / "progress.jsonl", b'{"number": 1, "sha'),
        "a missing shard": lambda split: (split / "shard-000000.tar").unlink(),
        "a missing index": lambda split: (split / "shard-000000.idx").unlink(),
        "a truncated shard": lambda split: os.truncate(split / "shard-000000.tar", 1000),
        "unknown files": lambda split: [
            (split / name).write_bytes(b"x") for name in ("shard-000002.tar", "shard-000009.idx", "x.partial")
        ],
        "a missing ledger": lambda split: (split / "progress.jsonl").unlink(),
    }.items(),
    ids=lambda damage: damage[0],
)
def test_files_of_an_interrupted_run_may_be_damaged(tmp_path, folder, damage):
    pack(folder, tmp_path / "expected", OPTIONS, workers=1)
    interrupt(folder, tmp_path / "out")
    damage[1](tmp_path / "out/train")
    pack(folder, tmp_path / "out", OPTIONS, workers=1)
    assert digests(tmp_path / "out") == digests(tmp_path / "expected")


def append(path: Path, data: bytes) -> None:
    path.write_bytes(path.read_bytes() + data)


def test_a_damaged_ledger_is_an_error_that_says_what_to_do(tmp_path, folder):
    interrupt(folder, tmp_path / "out")
    ledger = tmp_path / "out/train/progress.jsonl"
    append(ledger, b"nonsense\n")
    with pytest.raises(FastDPSError, match=r"progress\.jsonl is damaged: .*--overwrite"):
        pack(folder, tmp_path / "out", OPTIONS, workers=1)
    pack(folder, tmp_path / "out", OPTIONS, workers=1, overwrite=True)
    pack(folder, tmp_path / "expected", OPTIONS, workers=1)
    assert digests(tmp_path / "out") == digests(tmp_path / "expected")


def test_an_interrupted_run_does_not_start_from_scratch(tmp_path, folder):
    interrupt(folder, tmp_path / "out")
    started = []
    before = (tmp_path / "out/train/shard-000000.tar").stat().st_mtime_ns
    pack(
        folder,
        tmp_path / "out",
        OPTIONS,
        workers=1,
        progress=PackProgress(start=lambda *counts: started.append(counts)),
    )
    assert started == [(120, 40)]
    assert (tmp_path / "out/train/shard-000000.tar").stat().st_mtime_ns == before


def test_other_options_for_an_interrupted_run_are_refused(tmp_path, folder):
    interrupt(folder, tmp_path / "out")
    before = digests(tmp_path / "out")
    with pytest.raises(FastDPSError, match="samples_per_shard was 40 and is now 30"):
        pack(folder, tmp_path / "out", PackOptions(size=16, samples_per_shard=30), workers=1)
    assert digests(tmp_path / "out") == before
