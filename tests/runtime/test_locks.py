"""Locks: one holder or several shared ones, released when the owner ends or is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastdps.errors import FastDPSError
from fastdps.runtime.locks import locked

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
