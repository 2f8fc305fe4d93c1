import itertools
import os

import pytest
from servers import s3_server, web_server

from fastdps.shards import storage

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
