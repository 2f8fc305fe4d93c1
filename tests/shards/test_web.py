"""Spans, limits and windows of files from web servers: real requests, and a clock that the test sets."""

import asyncio
import re

import pytest

from fastdps.errors import ShardError
from fastdps.shards import storage, web
from fastdps.shards.storage import open_store
from fastdps.shards.web import TooLargeError, is_on_web, read_web
from helpers.servers import answering

CONTENT = bytes(range(256)) * 4


class Answer:
    """An answer of aiohttp whose chunks arrive at given times of the clock."""

    def __init__(self, chunks, status=200):
        self.chunks, self.status, self.content = list(chunks), status, self
        self.closed = False

    async def readany(self):
        if not self.chunks:
            return b""
        self.now, chunk = self.chunks.pop(0)
        return chunk

    def close(self):
        self.closed = True

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.close()


class FileSystem:
    """fsspec's file system, with one answer."""

    def __init__(self, answer, error=None):
        self.answer, self.error, self.requests = answer, error, []

    async def set_session(self):
        return self

    def encode_url(self, url):
        return f"encoded {url}"

    async def get(self, url, headers):
        self.requests.append((url, headers))
        return self.answer

    def _raise_not_found_for_status(self, answer, url):
        assert url == "url"
        if self.error:
            raise self.error


def read(answer, span=None, most=1 << 20, error=None):
    file_system = FileSystem(answer, error)
    return asyncio.run(read_web(file_system, "url", span, most)), file_system.requests


@pytest.fixture
def at(monkeypatch):
    """Set the clock of an answer: it is the time at which the last chunk came."""

    def use(answer):
        answer.now = 0.0
        monkeypatch.setattr(web.time, "monotonic", lambda: answer.now)
        return answer

    return use


def test_a_request_names_the_last_byte_of_its_span(at):
    assert read(at(Answer([(0, b"abc")], 206)), (5, 8)) == (b"abc", [("encoded url", {"Range": "bytes=5-7"})])
    assert read(at(Answer([(0, b"ab"), (0, b"c")]))) == (b"abc", [("encoded url", {})])


@pytest.mark.parametrize(
    ("status", "span", "most"), [(206, (5, 8), 100), (200, (5, 8), 3), (200, None, 3), (206, None, 3)]
)
def test_limits_are_inclusive(at, status, span, most):
    """A span limits an answer of partial content; a server that ignores it sends the complete file."""
    assert read(at(Answer([(0, b"abc")], status)), span, most)[0] == b"abc"
    answer = at(Answer([(0, b"abc"), (0, b"d"), (0, b"e")], status))
    with pytest.raises(TooLargeError, match="has more than the 3 bytes"):
        read(answer, span, most)
    assert answer.closed
    assert answer.chunks == [(0, b"e")]  # the rest is not read


def test_each_window_has_its_own_minimum(at):
    """`MIN_BYTES_PER_WINDOW` at a time, and less only while a window has not ended."""
    window, enough = web.WINDOW_S, bytes(web.MIN_BYTES_PER_WINDOW)
    steady = [(window, enough[:-1]), (window + 1, b"x"), (2 * window + 2, enough)]
    assert len(read(at(Answer(steady)), most=1 << 30)[0]) == 2 * len(enough)
    slow = [(window + 1, enough), (2 * window + 2, enough[:-1])]
    with pytest.raises(ConnectionError, match=rf"received {len(enough) - 1} bytes in 60 s"):
        read(at(Answer(slow)), most=1 << 30)


@pytest.mark.parametrize("error", [FileNotFoundError(), ConnectionError("refused")])
def test_an_error_closes_the_connection(at, error):
    answer = at(Answer([]))
    with pytest.raises(type(error)):
        read(answer, error=error)
    assert answer.closed


@pytest.mark.parametrize(("error", "expected"), [(None, True), (FileNotFoundError(), False)])
def test_a_look_up_requests_one_byte_and_reads_nothing(at, error, expected):
    file_system = FileSystem(at(Answer([(0, b"abc")])), error)
    assert asyncio.run(is_on_web(file_system, "url")) is expected
    assert file_system.requests == [("encoded url", {"Range": "bytes=0-0"})]
    assert file_system.answer.chunks
    assert file_system.answer.closed


def test_an_answer_without_data_is_a_dropped_connection(monkeypatch):
    class Silent(Answer):
        async def readany(self):
            await asyncio.sleep(60)

    monkeypatch.setattr(web, "WINDOW_S", 0.05)
    with pytest.raises(ConnectionError, match="received no bytes"):
        read(Silent([]))


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("piece", [100, 1023, 1024, 5000])
def test_a_file_is_read_in_pieces(monkeypatch, has_ranges, piece):
    """Against a server that gives the requested range, and one that ignores it."""
    monkeypatch.setattr(storage, "PIECE_BYTES", piece)
    spans = []

    def answer(handler):
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers["Range"]).groups())
        spans.append((first, last))
        body = CONTENT[first : last + 1] if has_ranges else CONTENT
        handler.send_response(206 if has_ranges else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    with answering(answer) as port:
        pieces = list(open_store(f"http://127.0.0.1:{port}").pieces("x.tar", len(CONTENT)))
    assert b"".join(pieces) == CONTENT
    assert spans[0] == (0, min(piece, len(CONTENT)) - 1)
    if has_ranges:
        assert [b for first, last in spans for b in range(first, last + 1)] == list(range(len(CONTENT)))


def test_statuses(monkeypatch):
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(storage, "ATTEMPTS", 2)

    def answer(handler):
        handler.send_error(int(handler.path.strip("/")))

    with answering(answer) as port:
        store = open_store(f"http://127.0.0.1:{port}")
        assert not store.exists("404")
        with pytest.raises(ShardError, match="/404 does not exist"):
            store.read("404")
        for status in (403, 500, 503):
            with pytest.raises(ShardError, match=f"/{status} cannot be read, tried 2 times.*{status}"):
                store.read(str(status))
