"""Servers that send what never ends, too much, or next to nothing: an error, within a bound of memory and time."""

import gzip
import itertools
import time

import pytest

from fastdps.errors import ShardError
from fastdps.loading.loader import open_shards
from fastdps.loading.options import LoadOptions
from fastdps.shards import storage, web
from fastdps.shards.cache import Cache
from fastdps.shards.format import read_manifest
from fastdps.shards.storage import open_store
from helpers.cached_sets import batches, files_in
from helpers.damaged_tars import time_limit
from helpers.servers import answering

LIMIT = 1 << 20
BLOCK = b" " * (1 << 16)


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch):
    monkeypatch.setattr(storage, "MAX_SMALL_BYTES", LIMIT)
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.001)
    with time_limit(20):
        yield


def send(handler, blocks, status=200, **headers):
    """Send an answer in chunks."""
    handler.send_response(status)
    for name, value in {"Transfer-Encoding": "chunked", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    for block in blocks:
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
    handler.wfile.write(b"0\r\n\r\n")


def endless(handler):
    send(handler, itertools.repeat(BLOCK))


def bomb(handler):
    send(handler, [gzip.compress(bytes(100 * LIMIT))], Content_Encoding="gzip")


@pytest.mark.parametrize("answer", [endless, bomb])
def test_a_manifest_without_end_is_an_error(answer):
    with (
        answering(answer) as port,
        pytest.raises(
            ShardError,
            match=rf"http://127\.0\.0\.1:{port}/manifest\.json has more than the 1,048,576 bytes.*Check the URL",
        ),
    ):
        read_manifest(f"http://127.0.0.1:{port}")


def test_a_manifest_may_be_compressed_within_the_limit(tmp_path):
    text = b'{"format_version": 7}'
    with answering(lambda handler: send(handler, [gzip.compress(text)], Content_Encoding="gzip")) as port:
        assert open_store(f"http://127.0.0.1:{port}").read("manifest.json") == text
        (tmp_path / "manifest.json").write_bytes(gzip.compress(text))
        with pytest.raises(ShardError, match="cannot be read as JSON"):
            read_manifest(tmp_path)


def test_a_local_manifest_that_is_too_large_or_not_a_file_is_an_error(tmp_path):
    (tmp_path / "manifest.json").write_bytes(bytes(LIMIT + 1))
    with pytest.raises(ShardError, match="not a file of at most 1,048,576 bytes"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").symlink_to("/dev/zero")
    with pytest.raises(ShardError, match="not a file of at most 1,048,576 bytes"):
        read_manifest(tmp_path)


def test_a_manifest_in_a_bucket_that_is_too_large_is_not_read(bucket):
    open_store(bucket).write("manifest.json", bytes(LIMIT + 1))
    with pytest.raises(ShardError, match="has 1,048,577 bytes, more than the 1,048,576"):
        read_manifest(bucket)


@pytest.mark.parametrize("status", [200, 206])
def test_a_shard_that_never_ends_is_an_error(raw, tmp_path, status):
    """A server that ignores ranges, and one that sends more than the range."""
    directory, _ = raw

    def answer(handler):
        if handler.path.endswith(".json"):
            send(handler, [(directory / "manifest.json").read_bytes()])
        else:
            send(handler, itertools.repeat(BLOCK), status)

    with answering(answer) as port:
        cache = Cache(tmp_path / "cache", 1 << 30)
        loader = open_shards(f"http://127.0.0.1:{port}", batch_size=4, seed=None, options=LoadOptions(cache=cache))
        with pytest.raises(ShardError, match=r"shard-\d+\.tar has more than the [\d,]+ bytes that were expected"):
            batches(loader)
    assert files_in(cache.directory) == []


def test_a_file_is_looked_up_without_reading_it():
    with answering(endless) as port:
        assert open_store(f"http://127.0.0.1:{port}").exists("manifest.json")


def test_a_server_that_sends_next_to_nothing_is_an_error(monkeypatch):
    monkeypatch.setattr(web, "WINDOW_S", 0.1)
    monkeypatch.setattr(storage, "ATTEMPTS", 2)

    def answer(handler):
        send(handler, (time.sleep(0.02) or b" " for _ in itertools.count()))

    with answering(answer) as port, pytest.raises(ShardError, match=r"tried 2 times: received \d bytes in 0 s"):
        open_store(f"http://127.0.0.1:{port}").read("manifest.json")


@pytest.mark.parametrize("size", [b"-5", b"zz", b"7fffffffffffffff", b""])
def test_a_chunk_that_cannot_be_parsed_is_an_error(monkeypatch, size):
    """aiohttp drops the connection and reports nothing."""
    monkeypatch.setattr(web, "WINDOW_S", 0.2)
    monkeypatch.setattr(storage, "ATTEMPTS", 2)

    def lie(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(size + b"\r\n{}\r\n")

    with answering(lie) as port, pytest.raises(ShardError, match="tried 2 times"):
        open_store(f"http://127.0.0.1:{port}").read("manifest.json")


def test_a_server_that_answers_no_headers_is_an_error(monkeypatch):
    monkeypatch.setattr(web, "WINDOW_S", 0.1)
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    with answering(lambda handler: time.sleep(0.5)) as port, pytest.raises(ShardError, match="tried 2 times"):
        open_store(f"http://127.0.0.1:{port}").read("manifest.json")


def test_a_server_that_is_slow_enough_is_read(monkeypatch):
    monkeypatch.setattr(web, "WINDOW_S", 0.1)
    monkeypatch.setattr(web, "MIN_BYTES_PER_WINDOW", 2)
    with answering(lambda handler: send(handler, (time.sleep(0.02) or b"x" for _ in range(30)))) as port:
        assert open_store(f"http://127.0.0.1:{port}").read("manifest.json") == b"x" * 30
