"""Locks: one holder or several shared ones, released when the owner ends or is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastdps.errors import FastDPSError
from fastdps.runtime.locks import locked, temporary_directory

HOLDER = """
import sys, time
from pathlib import Path
from fastdps.errors import FastDPSError
from fastdps.runtime.locks import locked
with locked(Path(sys.argv[1]), FastDPSError, owner="training"):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_the_second_holder_gets_the_error_with_the_name_of_the_first(tmp_path):
    path = tmp_path / "lock"
    with locked(path, FastDPSError, owner="training (process 7)"):
        assert path.read_text() == "training (process 7)"
        with pytest.raises(FastDPSError, match=r"^training \(process 7\)$"), locked(path, FastDPSError):
            pytest.fail("locked twice")
        assert path.exists()
    assert not path.exists()
    with locked(path, FastDPSError):
        pass


@pytest.mark.parametrize("name", ["lock", "."])
def test_shared_locks_exclude_an_exclusive_one_only(tmp_path, name):
    path = tmp_path / name
    with locked(path, FastDPSError, shared=True):
        with pytest.raises(FastDPSError), locked(path, FastDPSError):
            pytest.fail("locked twice")
        with locked(path, FastDPSError, shared=True):
            pass


def test_a_killed_holder_leaves_no_lock(tmp_path):
    path = tmp_path / "lock"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(FastDPSError, match=r"^training$"), locked(path, FastDPSError):
            pytest.fail("locked twice")
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=30)
    assert path.exists()
    with locked(path, FastDPSError, owner="next"):
        assert path.read_text() == "next"


def test_a_lock_file_that_was_removed_before_it_was_locked_is_created_again(tmp_path, monkeypatch):
    import fcntl

    path, flock = tmp_path / "lock", fcntl.flock

    def remove_first(descriptor, operation):
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        return flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with locked(path, FastDPSError), pytest.raises(FastDPSError), locked(path, FastDPSError):
        pytest.fail("locked twice")


def test_a_link_is_no_lock_file(tmp_path):
    (tmp_path / "target").write_text("kept")
    (tmp_path / "lock").symlink_to(tmp_path / "target")
    with pytest.raises(FastDPSError, match="cannot be locked"), locked(tmp_path / "lock", FastDPSError, owner="x"):
        pytest.fail("locked")
    assert (tmp_path / "target").read_text() == "kept"


def test_a_temporary_directory_is_removed_at_the_end_and_after_an_error(tmp_path):
    with temporary_directory(tmp_path, ".x-") as directory:
        (directory / "file").write_text("")
        assert [path.name.startswith(".x-") for path in tmp_path.iterdir()] == [True]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), temporary_directory(tmp_path, ".x-"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


OWNER = """
import sys, time
from pathlib import Path
from fastdps.runtime.locks import temporary_directory
with temporary_directory(Path(sys.argv[1]), ".x-") as directory:
    (directory / "file").touch()
    print(directory, flush=True)
    time.sleep(60)
"""


def test_the_directory_of_a_killed_process_is_removed_by_the_next_call_and_no_other(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    (tmp_path / ".x-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".x-file").touch()
    (tmp_path / ".y-other").mkdir()
    others = set(tmp_path.iterdir())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        theirs = Path(owner.stdout.readline().rstrip())
        with temporary_directory(tmp_path, ".x-") as ours:
            assert set(tmp_path.iterdir()) == others | {theirs, ours}
        owner.send_signal(signal.SIGKILL)
        owner.wait(timeout=30)
    assert (theirs / "file").exists()
    with temporary_directory(tmp_path, ".x-") as ours:
        assert set(tmp_path.iterdir()) == others | {ours}
    assert (tmp_path / "elsewhere" / "kept").exists()


def test_a_temporary_directory_that_was_removed_before_it_was_locked_is_created_again(tmp_path, monkeypatch):
    import fcntl

    flock = fcntl.flock

    def remove_first(descriptor, operation):
        monkeypatch.setattr(fcntl, "flock", flock)
        next(tmp_path.iterdir()).rmdir()
        return flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with temporary_directory(tmp_path, ".x-") as directory:
        assert directory.is_dir()
