"""Requests to a store whose file system fails as the test says: retries, pauses, classes of errors and their advice."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from fastdps.errors import ConfigError, FastDPSError, ShardError
from fastdps.shards import storage
from fastdps.shards.cache_files import CachedTar, open_partial
from fastdps.shards.storage import ATTEMPTS, Store, has_file, locate, read_text


class FileSystem:
    """fsspec's file system; each request raises the next error of a list, or returns the result."""

    def __init__(self, errors=(), result=None):
        self.errors, self.result, self.calls = list(errors), result, []

    def _strip_protocol(self, url):
        return url.partition("://")[2]

    def _request(self, name):
        def request(*arguments, **options):
            self.calls.append((name, *arguments))
            if self.errors:
                raise self.errors.pop(0)
            return self.result

        return request

    def __getattr__(self, name):
        return self._request(name)


@pytest.fixture
def store(monkeypatch):
    """Return a function that makes a store of errors and a result, and the pauses between its requests."""
    pauses = []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    monkeypatch.setattr(storage.random, "uniform", lambda low, high: (low + high) / 2)

    def make(errors=(), result=None):
        file_system = FileSystem(errors, result)
        monkeypatch.setattr(storage, "_file_system", lambda scheme: file_system)
        return Store("s3://bucket/set"), file_system, pauses

    return make


def test_pauses_double_up_to_the_longest(store, caplog):
    caplog.set_level(logging.INFO)
    made, file_system, pauses = store([TimeoutError(f"number {n}") for n in range(ATTEMPTS)])
    with pytest.raises(
        ShardError, match=rf"set/x cannot be read, tried {ATTEMPTS} times: number 8\. Check the network"
    ):
        made.read("x")
    assert len(file_system.calls) == ATTEMPTS == 9
    assert pauses == pytest.approx([0.75 * seconds for seconds in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10)])
    assert [record.levelno for record in caplog.records] == [logging.INFO] * 3 + [logging.WARNING] * 5


def test_a_request_that_succeeds_later_is_not_an_error(store):
    made, file_system, pauses = store([TimeoutError()] * 8, {"size": 7})
    assert made.size("x") == 7
    assert (len(file_system.calls), len(pauses)) == (9, 8)


def test_an_error_without_a_text_is_named_by_its_class(store):
    made, *_ = store([TimeoutError()] * ATTEMPTS)
    with pytest.raises(ShardError, match="tried 9 times: TimeoutError"):
        made.read("x")


CALLS = {
    "read": (lambda made: made.read("x"), "read", ShardError),
    "looked up": (lambda made: made.exists("x"), "looked up", ShardError),
    "size": (lambda made: made.size("x"), "looked up", ShardError),
    "pieces": (lambda made: list(made.pieces("x", 5)), "read", ShardError),
    "listed": (lambda made: made.files(), "listed", ShardError),
    "written": (lambda made: made.write("x", b""), "written", FastDPSError),
    "put": (lambda made: made.put("x", Path("x")), "written", FastDPSError),
    "removed": (lambda made: made.remove("x"), "removed", FastDPSError),
}


@pytest.mark.parametrize("call", CALLS)
def test_each_request_has_its_class_of_error(store, call):
    """Reading a set is a `ShardError`, and writing one is not."""
    request, done, kind = CALLS[call]
    for error, message in [
        (PermissionError("no"), rf"cannot be {done}: no\. Check the URL and the access rights"),
        (OSError("slow"), rf"cannot be {done}, tried 9 times: slow"),
    ]:
        made, *_ = store([error] * ATTEMPTS)
        with pytest.raises(FastDPSError, match=message) as raised:
            request(made)
        assert type(raised.value) is kind


@pytest.mark.parametrize("name", ["NoCredentialsError", "DefaultCredentialsError", "OtherError"])
def test_missing_credentials_are_not_retried(store, name):
    """Their classes are in packages that may not be installed, so they are known by name."""
    made, file_system, pauses = store([type(name, (Exception,), {})("none")] * ATTEMPTS)
    advice = "Set credentials" if name != "OtherError" else "tried 9 times"
    with pytest.raises(ShardError, match=advice):
        made.read("x")
    assert (len(file_system.calls) == 1) is (name != "OtherError")
    assert (pauses == []) is (name != "OtherError")


def test_what_does_not_exist_is_not_retried(store):
    made, file_system, _ = store([FileNotFoundError("x")] * 4)
    with pytest.raises(ShardError, match="set/x does not exist"):
        made.read("x")
    assert made.exists("x") is False
    assert made.size("x") is None
    made.remove("x")
    assert len(file_system.calls) == 4


def test_a_piece_of_another_size_is_requested_again(store):
    made, _, pauses = store(result=b"abc")
    with pytest.raises(ShardError, match="received 3 of 5 bytes at byte 0"):
        list(made.pieces("x", 5))
    assert len(pauses) == 8
    made, file_system, _ = store(result=b"abcde")
    assert list(made.pieces("x", 5)) == [b"abcde"]
    assert len(file_system.calls) == 1
    assert list(made.pieces("x", 0)) == []


def test_connections_that_are_silent_end():
    """fsspec's own limits are minutes, or none."""
    for scheme in ("http", "https"):
        timeout = storage._options(scheme)["client_kwargs"]["timeout"]
        assert (timeout.total, timeout.sock_connect, timeout.sock_read) == (None, storage.SILENCE_S, storage.SILENCE_S)
    limits = storage._options("s3")["config_kwargs"]
    assert (limits["connect_timeout"], limits["read_timeout"]) == (storage.SILENCE_S, storage.SILENCE_S)
    assert limits["retries"] == {"total_max_attempts": 1}
    assert storage._options("memory") == {}


@pytest.mark.parametrize("text", ["C:/data", "C:\\data", "c:data", "a:b", "data", "./s3:x", "s3"])
def test_paths_are_no_urls(text):
    assert locate(text) == Path(text)


@pytest.mark.parametrize(
    "text", ["x://y", "pipe:cat", "pipe://x", "s3:x", "s3:/x", "http:x", "ftp://x", "s3://a::http://b"]
)
def test_other_schemes_are_refused(text):
    with pytest.raises(ConfigError, match=r"is not a supported shard location") as raised:
        locate(text)
    assert "s3://, gs://, gcs://, http://, https://; commands" in str(raised.value)  # memory:// is for tests


def test_names_are_quoted_for_web_servers_only():
    assert (Store("s3://bucket/set/") / "a b#?.tar").url == "s3://bucket/set/a b#?.tar"
    assert (Store("https://host/set/") / "a b#?.tar").url == "https://host/set/a%20b%23%3F.tar"
    assert {Store("s3://bucket/set"), Store("s3://bucket/set")} == {Store("s3://bucket/set")}


def test_files_are_found_in_directories_and_stores(tmp_path, store):
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    assert [has_file(tmp_path, name) for name in ("file", "directory", "missing")] == [True, False, False]
    for kind, expected in (("file", True), ("directory", False)):
        made, *_ = store(result={"type": kind})
        assert has_file(made, "x") is expected


def test_the_limit_of_small_files_is_inclusive(tmp_path, store, monkeypatch):
    monkeypatch.setattr(storage, "MAX_SMALL_BYTES", 3)
    (tmp_path / "x").write_text("abc")
    assert read_text(tmp_path, "x") == "abc"
    (tmp_path / "x").write_text("abcd")
    with pytest.raises(OSError, match="at most 3 bytes"):
        read_text(tmp_path, "x")
    made, file_system, _ = store(result={"size": 4})
    with pytest.raises(ShardError, match="has 4 bytes, more than the 3"):
        made.read("x")
    assert len(file_system.calls) == 1
    made, file_system, _ = store(result={"size": 3})
    made.read("x")
    assert [name for name, *_ in file_system.calls] == ["info", "cat_file"]


def test_the_default_size_of_a_piece():
    assert storage.PIECE_BYTES >= 1 << 20


def test_a_partial_file_can_be_read_by_all(tmp_path):
    before = os.umask(0)
    try:
        with open_partial(tmp_path / "a.tar") as descriptor:
            assert os.fstat(descriptor).st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_evicting_what_another_process_removed_is_no_error(tmp_path, monkeypatch):
    import fcntl

    tar, flock = tmp_path / "a.tar", fcntl.flock
    tar.touch()

    def remove_first(descriptor, operation):
        tar.unlink()
        return flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    assert CachedTar(tar, 0, 0).evict()
    assert CachedTar(tar, 0, 0).evict()
