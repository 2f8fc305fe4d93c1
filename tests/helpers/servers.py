"""Servers on loopback for tests: a web server, an S3 server, and a proxy that injects faults."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass


@contextmanager
def web_server(directory: Path) -> Iterator[int]:
    """Start Python's own web server for a directory, which does not support byte ranges, and yield its port."""
    with _serving(functools.partial(_Quiet, directory=str(directory))) as port:
        yield port


class _Guarded(_Quiet):
    """Answers only requests with the user, password and token."""

    def __init__(self, *args, login: str, token: str, **options) -> None:
        self._login, self._token = f"Basic {base64.b64encode(login.encode()).decode()}", f"?token={token}"
        super().__init__(*args, **options)

    def do_GET(self):
        if self.headers.get("Authorization") == self._login and self.path.endswith(self._token):
            super().do_GET()
        else:
            self.send_error(401)


@contextmanager
def guarded_server(directory: Path, *, login: str, token: str) -> Iterator[int]:
    """Start a web server that requires a login (user:password) and a token in the query, and yield its port."""
    with _serving(functools.partial(_Guarded, directory=str(directory), login=login, token=token)) as port:
        yield port


@contextmanager
def s3_server() -> Iterator[int]:
    """Start moto's S3 server without buckets, and yield its port."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()


@contextmanager
def _serving(handler) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients may disconnect at any time
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[int]:
    """Start a server that answers each GET as `answer` does, until the client disconnects, and yield its port."""

    class Answering(_Quiet):
        def do_GET(self):
            with contextlib.suppress(ConnectionError):
                answer(self)
            self.close_connection = True

    with _serving(Answering) as port:
        yield port


class Faults:
    """The faults that a proxy injects, evenly spaced: in turn an error, a truncated answer and a slow answer.

    Attributes:
        share: The share of requests with a fault.
        slow_s: The delay of a slow answer.
        done: The number of injected faults by kind ("" for none).
        paths: The number of requests by path.
    """

    KINDS = ("refused", "cut", "slow")

    def __init__(self, share: float, slow_s: float = 0.5, kinds: Sequence[str] = KINDS) -> None:
        self.share, self.slow_s = share, slow_s
        self.done: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()
        self._due, self._kinds = 0.0, itertools.cycle(kinds)
        self._lock = threading.Lock()

    def next(self, path: str) -> str:
        """Return the kind of fault for a request, "" for none."""
        with self._lock:
            self.paths[path.partition("?")[0]] += 1
            self._due += self.share
            kind = next(self._kinds) if self._due >= 1 else ""
            self._due -= bool(kind)
            self.done[kind] += 1
            return kind


@contextmanager
def failing_proxy(port: int, faults: Faults) -> Iterator[int]:
    """Start a proxy for the server at `port` that fails as `faults` decide, and yield its port."""
    with _serving(functools.partial(_FailingProxy, upstream_port=port, faults=faults)) as found:
        yield found


class _FailingProxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16

    def __init__(self, *args, upstream_port: int, faults: Faults) -> None:
        self._upstream_port, self._faults = upstream_port, faults
        super().__init__(*args)  # handles the requests

    def log_message(self, *_):
        pass

    def handle_expect_100(self):
        proceed = super().handle_expect_100()
        self.wfile.flush()  # the client sends nothing before it has this
        return proceed

    def forward(self):
        body = self._body()
        kind = self._faults.next(self.path)
        if kind == "refused":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if kind == "slow":
            time.sleep(self._faults.slow_s)
        answer, content = self._ask_upstream(body)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if kind == "cut" and content:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(content)

    def _ask_upstream(self, body: bytes | None) -> tuple[http.client.HTTPResponse, bytes]:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
        connection = http.client.HTTPConnection("127.0.0.1", self._upstream_port, timeout=30)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body=body, headers={**headers, "Connection": "close"})
            answer = connection.getresponse()
            return answer, answer.read()

    def _body(self) -> bytes | None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            del self.headers["Transfer-Encoding"]
            return b"".join(parts)
        length = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(length) if length else None

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward  # noqa: N815
