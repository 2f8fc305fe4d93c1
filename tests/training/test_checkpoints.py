"""Checkpoints as files: what is written is read, what is damaged is said, the last few stay."""

import os
import resource
import signal

import pytest
import torch

from fastdps.errors import CheckpointError, FastDPSError
from fastdps.training.checkpoints import Checkpoint, Checkpoints

STATE = {"progress": {"step": 3, "left": [[0, 5]]}, "rate": 0.1}


def checkpoint(value: float) -> Checkpoint:
    return Checkpoint({"weights": torch.full((50, 4), value), "step": torch.tensor(value)}, STATE)


def value_of(found: Checkpoint | None) -> float | None:
    return None if found is None else found.tensors["step"].item()


def test_what_is_written_is_read(tmp_path):
    tensors = {
        "float": torch.randn(3, 4),
        "scalar": torch.tensor(7.0),
        "half": torch.randn(5).to(torch.bfloat16),
        "double": torch.randn(2, dtype=torch.float64),
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    Checkpoint(tensors, STATE).save(tmp_path / "a")
    found = Checkpoint.load(tmp_path / "a")
    assert found.state == STATE
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)
    assert all(found.tensors[name].dtype == tensors[name].dtype for name in tensors)


def test_the_last_few_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.newest(pytest.fail) is None
    for step in (5, 10, 100, 1000):
        checkpoints.save(step, checkpoint(step))
    assert [path.name for path in checkpoints.paths()] == ["step-000001000.safetensors", "step-000000100.safetensors"]
    assert value_of(checkpoints.newest(pytest.fail)) == 1000


def test_every_damage_is_said_and_the_one_before_is_used(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(1, checkpoint(1))
    newest = checkpoints.save(2, checkpoint(2))
    whole = newest.read_bytes()
    places = range(0, len(whole), 7)
    for place in places:
        newest.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        said = []
        assert value_of(checkpoints.newest(said.append)) == 1, place
        assert len(said) == 1
        assert newest.name in said[0]
    for length in (0, 5, 100, len(whole) - 1):
        newest.write_bytes(whole[:length])
        assert value_of(checkpoints.newest(lambda _: None)) == 1, length
    newest.write_bytes(whole)
    assert value_of(checkpoints.newest(pytest.fail)) == 2


def test_with_all_of_them_damaged_there_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        os.truncate(checkpoints.save(step, checkpoint(step)), 20)
    said = []
    assert checkpoints.newest(said.append) is None
    assert len(said) == 2


def test_other_files_are_no_checkpoints(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "a")
    with pytest.raises(CheckpointError, match="is not a checkpoint of fastdps"):
        Checkpoint.load(tmp_path / "a")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoint.load(tmp_path / "none")


def test_a_full_disk_leaves_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, checkpoint(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        with pytest.raises(FastDPSError, match=r"step-000000002\.safetensors cannot be written: File too large"):
            checkpoints.save(2, checkpoint(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert value_of(checkpoints.newest(pytest.fail)) == 1
    checkpoints.save(3, checkpoint(3))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000003.safetensors"]  # nothing half-written stays
