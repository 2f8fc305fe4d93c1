"""Fixtures of the tests of loading."""

import pytest

from helpers.loaded import SIZES
from helpers.packed import encoded, noise
from helpers.shard_sets import raw_samples, write_set


@pytest.fixture(params=["dali", "portable"])
def loader(request):
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    return request.param


@pytest.fixture
def raw_set(tmp_path):
    ids = [id for id in range(40) if id % 4]  # some are missing, as where packing rejected a file
    return write_set(tmp_path / "raw", raw_samples(23), SIZES, ids=ids[:23])


@pytest.fixture
def png_set(tmp_path):
    return write_set(tmp_path / "png", [{"png": encoded(p, "PNG")} for p in noise(23, 6, 4, 3)], SIZES, encoding="png")
