"""Atomic writes: what a reader finds after a failure at any moment, what is left, and what a planted link can do."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastdps.errors import FastDPSError
from fastdps.runtime import files
from fastdps.runtime.files import PARTIAL, atomic_write, write_text

WRITER = """
import sys, time
from pathlib import Path
from fastdps.runtime.files import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    print("open", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "scores[1].json"
    write_text(path, "old")
    return path


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path.parent))


def test_the_content_is_replaced(path):
    write_text(path, "new")
    assert path.read_text() == "new"
    assert names(path) == [path.name]


@pytest.mark.parametrize("function", ["fsync_file", "fsync_directory"])
def test_a_failure_leaves_the_old_content_or_the_new(path, monkeypatch, function):
    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, function, fail)
    with pytest.raises(FastDPSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == ("old" if function == "fsync_file" else "new")
    assert names(path) == [path.name]


def test_file_name_and_directory_are_flushed_in_this_order(path, monkeypatch):
    order = []
    replace = Path.replace
    monkeypatch.setattr(files, "fsync_file", lambda file: order.append("file"))
    monkeypatch.setattr(Path, "replace", lambda self, target: order.append("rename") or replace(self, target))
    monkeypatch.setattr(files, "fsync_directory", lambda directory: order.append(directory))
    write_text(path, "new")
    assert order == ["file", "rename", path.parent]


def test_a_planted_link_is_not_written_through(path, tmp_path):
    target = tmp_path / "precious"
    target.write_text("kept")
    path.with_name(path.name + PARTIAL).symlink_to(target)
    with atomic_write(path) as file:
        (partial,) = set(names(path)) - {path.name, path.name + PARTIAL, target.name}
        assert len(partial) >= len(path.name + PARTIAL) + 16  # cannot be guessed
        file.write(b"new")
    assert (path.read_text(), target.read_text()) == ("new", "kept")
    assert not path.is_symlink()


def test_the_partial_file_of_a_killed_writer_is_removed_and_that_of_a_running_one_kept(path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
        assert writer.stdout.readline() == "open\n"
        write_text(path, "new")
        assert len(names(path)) == 2
        writer.send_signal(signal.SIGKILL)
        writer.wait(timeout=30)
    assert len(names(path)) == 2
    write_text(path.with_name("scores"), "")  # another file, whose name begins alike
    assert len(names(path)) == 3
    write_text(path, "newer")
    assert names(path) == ["scores", path.name]
