"""What the tests of loading share."""

import pytest


@pytest.fixture(params=["dali", "portable"])
def loader(request):
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    return request.param
