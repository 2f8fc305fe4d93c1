"""What the tests of pretrained weights share."""

import socket

import pytest

from fastdps.metric import weights, weights_from_index, weights_from_wheels
from fastdps.metric.weight_sources import UnavailableError


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty cache, no directory of weights, and no network."""

    def refuse(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", refuse)

    def offline(*_):
        raise UnavailableError("offline")

    monkeypatch.setattr(weights_from_index, "_download_package", offline)
    monkeypatch.setattr(weights_from_wheels, "_download", offline)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    return tmp_path
