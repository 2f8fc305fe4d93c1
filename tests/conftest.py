"""What the tests share: where the real test data is, and the two ways not to have it."""

from __future__ import annotations

import gc
import itertools
import os
import signal
from pathlib import Path

import pytest

from fastdps.shards import storage
from helpers.servers import s3_server, web_server

DATA_VARIABLE = "FASTDPS_TEST_DATA"

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a script: commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


#: Directories whose files take longest come first, so that no process ends with a long file after the others.
LONG_DIRECTORIES = ("training", "attacks", "runtime", "faults", "evaluation", "shards")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(Path(__file__).parent).parts[0]
        return LONG_DIRECTORIES.index(name) if name in LONG_DIRECTORIES else len(LONG_DIRECTORIES)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Exempt all that is imported and collected from garbage collections, of which each training makes a full one."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session")
def judgements() -> Path:
    """Three sets of human judgements: food/triplets.csv, materials/train.csv and objects/triplets.csv, with images."""
    return real_data("judgements")


_numbers = itertools.count()
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def s3_port():
    with s3_server() as port:
        yield port


@pytest.fixture
def s3_at(monkeypatch):
    """Have s3:// go to a port of this machine."""

    def use(port: int) -> None:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
            monkeypatch.setenv(name, value)
        storage._file_system.cache_clear()

    yield use
    storage._file_system.cache_clear()


@pytest.fixture
def bucket(s3_port, s3_at):
    """The URL of a new bucket on an S3 server of this machine."""
    import boto3

    s3_at(s3_port)
    name = f"bucket-{next(_numbers)}"
    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def web(tmp_path):
    """A directory and the URL by which a web server gives it."""
    directory = tmp_path / "web"
    directory.mkdir()
    with web_server(directory) as port:
        yield directory, f"http://127.0.0.1:{port}"
