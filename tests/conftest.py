"""What the tests share: where the real test data is, and the two ways not to have it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

DATA_VARIABLE = "FASTDPS_TEST_DATA"

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a script: commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def real_data(name: str) -> Path:
    """The directory of one piece of real test data; without it the test skips, and in CI it fails."""
    root = os.environ.get(DATA_VARIABLE)
    if root and (path := Path(root) / name).exists():
        return path
    why = f"{name} is not there: set {DATA_VARIABLE} to the directory that holds it (see CONTRIBUTING.md)"
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def imagenet_sample() -> Path:
    """700 real ImageNet JPEGs, one directory a class."""
    return real_data("imagenet-sample")


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """torchvision's convolution weights of alexnet and vgg16."""
    return real_data("weights")


@pytest.fixture(scope="session")
def lpips_example() -> Path:
    """One real 64 x 64 BAPPS triplet: ex_ref.png, ex_p0.png, ex_p1.png."""
    return real_data("lpips-example")
