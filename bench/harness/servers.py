"""Servers on loopback, each in its own process, so that server and client do not share an interpreter.

`python -m bench.harness.servers web DIRECTORY` serves files and byte ranges; `python -m bench.harness.servers s3
DIRECTORY` is moto's S3 server with a bucket of the same files. Both print their port, and exit when stdin is closed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from fastdps.errors import ConfigError
from fastdps.shards import storage

#: The packages that each kind of server needs.
NEEDS = {"web": ("aiohttp",), "s3": ("moto", "flask", "boto3", "s3fs")}
BUCKET = "bench"
_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}


def missing(kind: str) -> list[str]:
    """Return the packages that a kind of server needs and that are not installed."""
    return [name for name in NEEDS[kind] if find_spec(name) is None]


@contextmanager
def serving(kind: str, directory: Path) -> Iterator[tuple[str, str]]:
    """Serve a directory for the duration of the context.

    Args:
        kind: "web" or "s3".
        directory: The directory.

    Yields:
        The URL for fastdps, and the HTTP URL of the same files.

    Raises:
        ConfigError: The server did not start.
    """
    command = [sys.executable, "-m", "bench.harness.servers", kind, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        port = process.stdout.readline().strip()
        if not port.isdigit():
            raise ConfigError(f"{' '.join(command)} did not start; see its output above.")
        root = f"http://127.0.0.1:{port}"
        try:
            if kind == "web":
                yield root, root
            else:
                with _environment(_CREDENTIALS | {"AWS_ENDPOINT_URL": root}):
                    yield f"s3://{BUCKET}", f"{root}/{BUCKET}"
        finally:
            process.stdin.close()


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables that redirect s3://, and restore the old ones on exit."""
    before = dict(os.environ)
    os.environ.update(variables)
    storage._file_system.cache_clear()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        storage._file_system.cache_clear()


def _serve_web(directory: Path) -> None:
    import asyncio
    import socket

    from aiohttp import web

    listening = socket.create_server(("127.0.0.1", 0))
    application = web.Application()
    application.router.add_static("/", directory)

    async def serve() -> None:
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        print(listening.getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await runner.cleanup()

    asyncio.run(serve())


def _serve_s3(directory: Path) -> None:
    import logging

    import boto3  # type: ignore[import-untyped]
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ.update(_CREDENTIALS)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    client.create_bucket(Bucket=BUCKET)
    for path in sorted(directory.iterdir()):
        if path.is_file():
            client.upload_file(str(path), BUCKET, path.name, ExtraArgs={"ACL": "public-read"})
    print(port, flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    {"web": _serve_web, "s3": _serve_s3}[sys.argv[1]](Path(sys.argv[2]))
