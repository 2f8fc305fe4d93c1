"""Web servers that misbehave, from fixed seeds: an error that names the URL in bounded time, or the samples of the set.

Each case starts its own server in its own process. After the attack a sound server is read with the same cache: what a
server sent must not stay in it.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import os
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import torch

from fastdps.loading.loader import open_shards
from fastdps.loading.options import LoadOptions
from fastdps.shards import storage, web
from fastdps.shards.cache import Cache
from fastdps.shards.format import read_manifest
from helpers.isolated import NAMED, Case, attack, expect
from helpers.mutations import mutated
from helpers.servers import answering
from helpers.shard_sets import raw_samples, write_set

#: Servers; `make attacks` raises it.
SERVERS = 38 * int(os.environ.get("FASTDPS_ATTACKS", "1"))
FILES = ("manifest.json", "shard-000000.tar", "shard-000001.tar")
BLOCK = bytes(1 << 16)
#: The servers of a case, which end with its process.
_SERVERS = ExitStack()

Answer = Callable[[BaseHTTPRequestHandler, bytes, random.Random], None]


def prepare() -> None:
    """Import in the server of the attacks what the cases import when they need it."""
    import aiohttp  # noqa: F401
    import fsspec.implementations.http  # noqa: F401


def begin(handler: BaseHTTPRequestHandler, status: int = 200, **headers: object) -> None:
    """Send the status line and the headers."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: object) -> None:
    begin(handler, status, **{"Content_Length": len(body), **headers})
    handler.wfile.write(body)


def span_of(handler: BaseHTTPRequestHandler, size: int) -> tuple[int, int]:
    """Return the first byte and the one after the last that the request wants."""
    first, _, last = handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
    return int(first), min(size, int(last) + 1 if last else size)


def soundly(handler: BaseHTTPRequestHandler, body: bytes, draw: random.Random) -> None:
    """Answer as a server that knows ranges does, or one that does not."""
    first, end = span_of(handler, len(body))
    if "Range" in handler.headers and len(body) % 2:
        send(handler, body[first:end], 206, Content_Range=f"bytes {first}-{end - 1}/{len(body)}")
    else:
        send(handler, body)


def in_chunks(handler: BaseHTTPRequestHandler, sizes: object, blocks: object, pause_s: float = 0.0) -> None:
    begin(handler, Transfer_Encoding="chunked")
    for size, block in zip(sizes, blocks, strict=False):  # type: ignore[call-overload]
        handler.wfile.write(b"%s\r\n%s\r\n" % (size, block))
        time.sleep(pause_s)


def with_status(handler: BaseHTTPRequestHandler, body: bytes, draw: random.Random) -> None:
    send(
        handler,
        draw.choice([b"", body]),
        draw.choice([201, 204, 206, 304, 400, 401, 403, 404, 416, 418, 429, 500, 503]),
    )


def redirect(handler: BaseHTTPRequestHandler, body: bytes, draw: random.Random) -> None:
    target = draw.choice([handler.path, "file:///etc/passwd", "http://127.0.0.1:9/x", "//", "\x7f", "http://[::1", ""])
    send(handler, b"", draw.choice([301, 302, 303, 307, 308]), Location=target)


def raw(handler: BaseHTTPRequestHandler, body: bytes, draw: random.Random) -> None:
    """Send bytes that are no answer."""
    handler.wfile.write(
        draw.choice(
            [
                b"",
                body,
                b"HTTP/1.1 200\r\n\r\n" + body,
                b"HTTP/9.9 200 OK\r\n\r\n",
                b"HTTP/1.1 -1 x\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + body,
                b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n" + body,
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n" + body,
                b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n",
                b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000 + b"\r\n",
                draw.randbytes(1000),
            ]
        )
    )


def chunks_that_lie(handler: BaseHTTPRequestHandler, body: bytes, draw: random.Random) -> None:
    sizes = draw.choice([[b"-5"], [b"zz"], [b"7fffffffffffffff"], [b"5"], [b""], [b"0" * 100_000]])
    in_chunks(handler, sizes, [body])


def encoded_wrongly(handler: BaseHTTPRequestHandler, body: bytes, draw: random.Random) -> None:
    content = draw.choice([body, gzip.compress(body)[:-9], gzip.compress(bytes(200 << 20)), b"\x1f\x8b" + body])
    send(handler, content, Content_Encoding=draw.choice(["gzip", "deflate", "br", "x", "gzip, gzip"]))


def another_span(handler: BaseHTTPRequestHandler, body: bytes, draw: random.Random) -> None:
    first, end = span_of(handler, len(body))
    shift = draw.choice([-512, 1, 512])
    part = body[max(0, first + shift) : max(0, end + shift)]
    send(handler, part, 206, Content_Range=draw.choice(["bytes 0-0/1", f"bytes {first}-{end - 1}/{len(body)}", "x"]))


def changed(handler: BaseHTTPRequestHandler, body: bytes, draw: random.Random) -> None:
    send(handler, mutated(body, draw)[1])


ANSWERS: dict[str, Answer] = {
    "cut": lambda handler, body, draw: send(handler, body[: draw.randrange(len(body))], Content_Length=len(body)),
    "longer than stated": lambda handler, body, draw: send(handler, body * 2, Content_Length=len(body)),
    "shorter than stated": lambda handler, body, draw: send(handler, body, Content_Length=10**15),
    "twice": lambda handler, body, draw: send(handler, body * 2),
    "empty": lambda handler, body, draw: send(handler, b""),
    "endless": lambda handler, body, draw: in_chunks(handler, itertools.repeat(b"10000"), itertools.repeat(BLOCK)),
    "endless with a length": lambda handler, body, draw: [
        begin(handler, Content_Length=1 << 62),
        [handler.wfile.write(BLOCK) for _ in itertools.count()],
    ],
    "slow": lambda handler, body, draw: in_chunks(handler, itertools.repeat(b"1"), itertools.repeat(b"x"), 0.05),
    "silent": lambda handler, body, draw: time.sleep(2),
    "stalled": lambda handler, body, draw: [send(handler, body[:100], Content_Length=len(body)), time.sleep(2)],
    "endless headers": lambda handler, body, draw: [
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n"),
        [handler.wfile.write(b"A: b\r\n" * 1000) for _ in itertools.count()],
    ],
    "status": with_status,
    "redirect": redirect,
    "raw": raw,
    "chunks that lie": chunks_that_lie,
    "encoded wrongly": encoded_wrongly,
    "another span": another_span,
    "changed": changed,
    "changed by chance": changed,
}


def serve(directory: Path, answer: Answer, is_attacked: Callable[[str], bool], seed: str) -> Callable[..., None]:
    """Return the answers of a server to all requests, those for some files as `answer` gives them."""
    numbers = itertools.count()

    def handle(handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.rpartition("/")[2]
        if not (directory / name).is_file():
            send(handler, b"", 404)
            return
        draw = random.Random(f"{seed} {next(numbers)}")
        (answer if is_attacked(name) else soundly)(handler, (directory / name).read_bytes(), draw)

    return handle


def make_server(seed: int, directory: Path) -> Case:
    draw = random.Random(f"servers {seed}")
    for module, name, value in [
        (storage, "FIRST_PAUSE_S", 0.001),
        (storage, "ATTEMPTS", 3),
        (storage, "SILENCE_S", 0.3),
        (storage, "MAX_SMALL_BYTES", 1 << 20),
        (web, "WINDOW_S", 0.3),
    ]:
        setattr(module, name, value)
    directory = write_set(directory / "set", raw_samples(6), [3, 3])
    how = list(ANSWERS)[seed % len(ANSWERS)]
    attacked = draw.choice([*FILES, FILES])
    answer = serve(directory, ANSWERS[how], lambda name: name in attacked, f"{seed}")
    url = f"http://127.0.0.1:{_SERVERS.enter_context(answering(answer))}"
    sound = f"http://127.0.0.1:{_SERVERS.enter_context(answering(serve(directory, soundly, lambda _: False, '')))}"
    cache = Cache(directory.parent / "cache", 1 << 30)
    # Nothing authenticates a manifest: one that was changed and is still valid is another set.
    is_same = not (how.startswith("changed") and FILES[0] in attacked)
    readings: dict[str, Callable[[], object]] = {
        "manifest": lambda: read(url, directory, is_same),
        "load": lambda: load(url, directory, cache, is_same),
        "load afterwards": lambda: load(sound, directory, cache, True),
    }
    return Case(f"{how}, {attacked}", (url,), readings)


def read(url: str, directory: Path, is_same: bool) -> None:
    expect(read_manifest(url) == read_manifest(directory) or not is_same, "another manifest")


@functools.cache
def expected(directory: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader = open_shards(directory, batch_size=4, options=LoadOptions(loader="portable"))
    return [(batch.ids, batch.images) for batch in loader.epoch(0)]


def load(url: str, directory: Path, cache: Cache, is_same: bool) -> None:
    """Load the set through the cache; the samples must be those of the directory if `is_same` is set."""
    loader = open_shards(url, batch_size=4, options=LoadOptions(loader="portable", cache=cache))
    found = [(batch.ids, batch.images) for batch in loader.epoch(0)]
    if not is_same:
        return
    expect(len(found) == len(expected(directory)), f"{len(found)} batches")
    for ours, theirs in zip(found, expected(directory), strict=True):
        expect(all(map(torch.equal, ours, theirs)), "other samples")


@pytest.mark.slow
def test_servers_that_misbehave_are_named_errors_in_bounded_time(capfd):
    with capfd.disabled():
        counts = attack(__file__, "make_server", range(SERVERS))
    assert counts[NAMED] > SERVERS / 2
