"""Fixtures of the tests of shards."""

import pytest

from helpers.cached_sets import write_kind


@pytest.fixture
def raw(web):
    """A raw set on a web server: its directory and its URL."""
    return write_kind(web[0] / "set", "raw"), f"{web[1]}/set"
