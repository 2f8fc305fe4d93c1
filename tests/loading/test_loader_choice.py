"""The choice of the loader, and the clean-up of threads and files."""

from __future__ import annotations

import logging
import sys
import tempfile
import threading

import pytest

from fastdps.errors import ConfigError
from fastdps.loading import segments
from fastdps.loading.loader import open_shards
from fastdps.loading.options import LoadOptions
from helpers.loaded import gather
from helpers.shard_sets import raw_samples, write_set
from helpers.warm_python import run_warm


@pytest.fixture
def no_dali(monkeypatch):
    import fastdps.loading as loading
    from fastdps.loading import loader

    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "fastdps.loading.dali", raising=False)
    monkeypatch.delattr(loading, "dali", raising=False)
    loader._warn_portable.cache_clear()


def test_without_dali_auto_says_so_once_and_is_portable(png_set, no_dali, caplog):
    with caplog.at_level(logging.WARNING):
        opened = [open_shards(png_set, batch_size=4) for _ in range(2)]
    assert [record.message for record in caplog.records if "portable" in record.message] == [caplog.messages[0]]
    assert len(gather(opened[0].epoch(0))[0]) == 23


def test_without_dali_asking_for_it_is_an_error(raw_set, no_dali):
    with pytest.raises(ConfigError, match="Install nvidia-dali"):
        open_shards(raw_set, batch_size=4, options=LoadOptions(loader="dali"))


def test_without_dali_auto_says_nothing_where_it_would_not_take_it(raw_set, no_dali, caplog):
    with caplog.at_level(logging.WARNING):
        open_shards(raw_set, batch_size=4)
    assert not caplog.records


@pytest.mark.parametrize(
    ("encoding", "stored", "wanted", "threads", "expected"),
    [
        ("raw", (64, 64), None, 2, "PortableReader"),  # nothing to do but copy
        ("raw", (64, 64), 32, 2, "DaliReader"),
        ("png", (64, 64), None, 2, "DaliReader"),
        ("png", (256, 256), 64, 2, "DaliReader"),
        ("jpeg", (64, 64), None, 2, "DaliReader"),
        ("jpeg", (127, 256), 64, 2, "DaliReader"),  # half of it would be too small
        ("jpeg", (128, 256), 64, 2, "PortableReader"),
        ("keep", None, 64, 2, "PortableReader"),
        ("keep", None, 64, 64, "DaliReader"),
    ],
)
def test_auto_is_the_faster_one(tmp_path, encoding, stored, wanted, threads, expected):
    pytest.importorskip("nvidia.dali")
    extension = {"raw": "bin", "png": "png"}.get(encoding, "jpg")
    height, width = stored or (64, 64)
    sample = {extension: bytes(height * width * 3)}  # which is not read here
    directory = write_set(tmp_path / "set", [sample], [1], encoding=encoding, image_size=stored)
    opened = open_shards(directory, batch_size=4, size=wanted, options=LoadOptions(num_threads=threads))
    assert type(opened._reader).__name__ == expected


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_an_epoch_left_early_leaves_nothing_behind(tmp_path, loader, taken, monkeypatch):
    directory = write_set(tmp_path / "set", raw_samples(300), [100, 100, 100])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(segments, "SEGMENT_SAMPLES", 32)
    before = set(threading.enumerate())
    batches = open_shards(directory, batch_size=8, options=LoadOptions(loader=loader)).epoch(0)
    for _ in range(taken):
        next(batches)
    batches.close()
    assert set(threading.enumerate()) == before
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("end", ["break", "raise SystemExit(0)"])
def test_the_interpreter_exits_without_output_within_an_epoch(tmp_path, end):
    pytest.importorskip("nvidia.dali")
    directory = write_set(tmp_path / "set", raw_samples(300), [100, 100, 100])
    program = f"""
from fastdps.loading.loader import open_shards
from fastdps.loading.options import LoadOptions
loaders = [LoadOptions(loader=name) for name in ("dali", "portable")]
both = [open_shards({str(directory)!r}, batch_size=8, options=options).epoch(0) for options in loaders]
for batches in zip(*both):
    {end}
"""
    done = run_warm("-c", f"import warnings; warnings.simplefilter('error')\n{program}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_loader_makes_no_thread_until_it_is_used(raw_set, loader):
    before = threading.active_count()
    opened = open_shards(raw_set, batch_size=4, options=LoadOptions(loader=loader))
    opened.epoch(0)
    assert threading.active_count() == before
