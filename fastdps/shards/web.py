"""Read files of web servers within limits of size and time, whatever a server sends."""

from __future__ import annotations

import asyncio
import time
from typing import Any

#: Bytes that a server must send per window, or it is too slow: 4 kB/s, a tenth of what a poor line gives each stream.
MIN_BYTES_PER_WINDOW = 1 << 18
WINDOW_S = 60.0


class TooLargeError(Exception):
    """A file is larger than it may be."""


async def read_web(file_system: Any, url: str, span: tuple[int, int] | None, most: int) -> bytes:
    """Return the content of a file, or a span of it.

    Args:
        file_system: fsspec's file system for web servers.
        url: The URL.
        span: The first byte and the one after the last. A server that ignores it sends the complete file.
        most: The limit of the complete file in bytes.

    Raises:
        TooLargeError: The server sends more than the limit, or more than the span.
        ConnectionError: It sends less than `MIN_BYTES_PER_WINDOW` in a window, or what aiohttp cannot parse.
        FileNotFoundError: There is no such file.
        Exception: Errors of aiohttp.
    """
    async with await _answer(file_system, url, span) as answer:
        if span is not None and answer.status == 206:  # partial content
            most = span[1] - span[0]
        data = bytearray()
        window_end, window_start_bytes = time.monotonic() + WINDOW_S, 0
        while chunk := await _next_chunk(answer):
            data += chunk
            if len(data) > most:
                raise TooLargeError(f"has more than the {most:,} bytes that were expected")
            if time.monotonic() > window_end:
                received = len(data) - window_start_bytes
                if received < MIN_BYTES_PER_WINDOW:
                    raise ConnectionError(f"received {received} bytes in {WINDOW_S:.0f} s")
                window_end, window_start_bytes = time.monotonic() + WINDOW_S, len(data)
        return bytes(data)


async def _next_chunk(answer: Any) -> bytes:
    """Return the next bytes of an answer, empty at its end.

    aiohttp's own limit of silence ends with the connection, and where it drops the connection because of a chunk that
    it cannot parse, it reports neither an error nor the end of the content.
    """
    try:
        async with asyncio.timeout(WINDOW_S):
            chunk: bytes = await answer.content.readany()
            return chunk
    except TimeoutError:
        raise ConnectionError(f"received no bytes in {WINDOW_S:.0f} s") from None


async def is_on_web(file_system: Any, url: str) -> bool:
    """Return whether a file exists, without reading it. Raises errors of aiohttp."""
    try:
        async with await _answer(file_system, url, (0, 1)):
            return True
    except FileNotFoundError:
        return False


async def _answer(file_system: Any, url: str, span: tuple[int, int] | None) -> Any:
    """Return the server's answer, of which only the headers have been read."""
    headers = {} if span is None else {"Range": f"bytes={span[0]}-{span[1] - 1}"}
    session = await file_system.set_session()
    answer = await asyncio.wait_for(session.get(file_system.encode_url(url), headers=headers), WINDOW_S)
    try:
        file_system._raise_not_found_for_status(answer, url)
    except BaseException:
        answer.close()
        raise
    return answer
