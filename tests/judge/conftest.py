"""A page for tests: a folder of images beside a file that must not be served, and a browser of it."""

import pytest

from helpers.judging import SECRET, Browser, make_judging, serving
from helpers.packed import write_noise_folder


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory):
    """Images, beside a file that must not be served, and a link to one."""
    root = tmp_path_factory.mktemp("page")
    write_noise_folder(root / "photos", 12)
    (root / "secret.txt").write_bytes(SECRET)
    return root / "photos"


@pytest.fixture
def judging(page_folder, tmp_path):
    return make_judging(page_folder, tmp_path / "judged")


@pytest.fixture
def browser(judging):
    with serving(judging) as port:
        yield Browser(port)
