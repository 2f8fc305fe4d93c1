"""Atomic writes reach the disk: the file before its name, the name before the call returns."""

import os
import stat
from pathlib import Path

import pytest

from fastdps.runtime.files import PARTIAL, atomic_write, write_json, write_text


@pytest.fixture
def calls(monkeypatch):
    """The calls that make a write durable, in their order, with the size of what is flushed."""
    done: list[tuple[str, object]] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor):
        status = os.fstat(descriptor)
        done.append(("fsync directory", None) if stat.S_ISDIR(status.st_mode) else ("fsync file", status.st_size))
        fsync(descriptor)

    def record_replace(self, target):
        done.append(("rename", (self.name.startswith("a.bin") and PARTIAL in self.name, Path(target).name)))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    return done


def write_bytes(path: Path) -> None:
    with atomic_write(path) as file:
        file.write(b"x" * 100_000)


@pytest.mark.parametrize(
    ("write", "size"),
    [(write_bytes, 100_000), (lambda path: write_text(path, "äb"), 3), (lambda path: write_json(path, {}), 3)],
)
def test_file_rename_directory(tmp_path, calls, write, size):
    """All bytes are in the file when it is flushed: nothing is left in Python's buffer."""
    write(tmp_path / "a.bin")
    assert calls == [
        ("fsync file", size),
        ("rename", (True, "a.bin")),
        ("fsync directory", None),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").stat().st_size == size


def test_a_failed_write_keeps_the_old_file(tmp_path, calls):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.writelines([b"new", None])
    assert not calls
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
