"""Windows and macOS, as far as Linux can imitate them: without POSIX's calls, without DALI, from images to a score."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fastdps.shards import index
from fastdps.training.options import UNKNOWN_MEMORY, MomentLimits
from helpers.packed import encoded, photo

ROOT = Path(__file__).parent.parent
#: Removes what Windows does not have, before anything of fastdps is imported, and then runs commands.
ON_WINDOWS = """
import os, signal, sys
for name in "O_NOFOLLOW O_NONBLOCK O_DIRECTORY pread preadv pwrite sysconf sched_getaffinity posix_fadvise".split():
    delattr(os, name)
for name in ("pthread_sigmask", "SIGHUP"):
    delattr(signal, name)
sys.modules["fcntl"] = sys.modules["nvidia.dali"] = sys.modules["resource"] = sys.modules["termios"] = None
real_open = os.open
def open_no_directory(path, *rest, **more):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return real_open(path, *rest, **more)
os.open = open_no_directory
from fastdps.commands.cli import main
for line in sys.argv[1:]:
    assert main(line.split()) == 0, line
"""
COMMANDS = [
    "pack folder --source photos --out shards/photos --size 64 --encoding jpeg --holdout 0.3 --workers 2",
    "check shards/photos",
    "train --shards shards/photos/train --contexts color,darken,zoom_in,rotate,translate,blur --out runs/a --epochs 1",
    "evaluate runs/a --shards shards/photos/val",
    "report runs/a",
    "adapt runs/a --judgements judged.csv --size 64 --out runs/few",
    "score photos/0.jpg photos --metric runs/few --size 64",
]


@pytest.mark.slow
def test_images_become_a_metric_without_posix(tmp_path, weights_dir):
    (tmp_path / "photos").mkdir()
    for number in range(9):
        (tmp_path / f"photos/{number}.jpg").write_bytes(encoded(photo(80, 100, seed=number), "JPEG"))
    rows = [f"photos/{n}.jpg,photos/{(n + 1) % 9}.jpg,photos/{(n + 2) % 9}.jpg,{n % 2}" for n in range(9)]
    (tmp_path / "judged.csv").write_text("\n".join(["ref,p0,p1,judge", *rows]))
    done = subprocess.run(
        [sys.executable, "-c", ON_WINDOWS, *COMMANDS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FASTDPS_WEIGHTS": str(weights_dir)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "The nearest" in done.stdout or "distance" in done.stdout


def test_an_index_is_the_same_without_pread(raw_shard, monkeypatch):
    with raw_shard.open("rb") as tar:
        expected = index.index_of(tar.fileno(), "it")
        monkeypatch.delattr(os, "pread")
        assert index.index_of(tar.fileno(), "it") == expected
    assert expected == raw_shard.with_suffix(".idx").read_text()


@pytest.fixture
def raw_shard(tmp_path):
    from helpers.shard_sets import raw_samples, write_set

    return next(write_set(tmp_path / "set", raw_samples(3), [3]).glob("*.tar"))


def test_moments_have_a_limit_where_the_memory_is_not_known(monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    assert MomentLimits().memory == UNKNOWN_MEMORY // 4


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_pip_needs_nothing_there_that_has_no_wheels(system):
    """The markers leave DALI to Linux; its package is what the readme says is missing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {
        one.name
        for one in map(Requirement, project["dependencies"])
        if one.marker is None or one.marker.evaluate({"platform_system": system})
    }
    assert "torch" in needed
    assert not any(name.startswith("nvidia") for name in needed)
    section = (ROOT / "README.md").read_text().partition("## Install\n")[2].partition("\n## ")[0]
    assert all(re.search(rf"\b{word}\b", section) for word in ("macOS", "Windows", "DALI"))
