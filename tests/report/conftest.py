"""What tests of reports share: one browser."""

import pytest

from helpers.browser import chromium


@pytest.fixture(scope="session")
def session(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
