"""Which requests the page answers: of this site, with a known host name, small, and with a token if others may connect.

    request --> host --> address --> origin --> access (token or cookie) --> body --> the page

On loopback, where only this machine connects, there is no token. A name that resolves to loopback (DNS rebinding) and
pages of other sites are refused by their headers.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Literal

import anyio
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastdps.runtime.files import write_errors

#: Longest address (path and query) and largest body of a request in bytes.
LONGEST_ADDRESS, LARGEST_BODY = 400, 2048
#: Invitations that may be open at a time.
MOST_INVITATIONS = 100
#: Time that a body may take to arrive.
BODY_TIMEOUT_S = 10.0
COOKIE = "fastdps-judge"
#: Addresses of pages, which a link on another site may open. All others are for the pages themselves.
PAGES = frozenset({"/", "/results"})
#: Addresses that are answered without a cookie: they hold no data, or check a token.
OPEN = PAGES | {"/api/enter", "/page.css", "/page.js", "/results.js", "/icon.svg"}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
Role = Literal["operator", "person"]


class RefusedError(Exception):
    """Raised for a request that is refused.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Access:
    """Who may use the page: everyone on loopback; beyond it those with a cookie, which a token that works once gives.

    Args:
        secret_file: The key of the cookies. It is kept, so that open pages work after a restart of the server.

    Raises:
        FastDPSError: The file cannot be written.
    """

    def __init__(self, secret_file: Path | None) -> None:
        self._tokens: dict[str, Role] = {}
        self._key = b"" if secret_file is None else _kept_key(secret_file)

    @property
    def is_open(self) -> bool:
        """Whether everyone who can connect may use the page."""
        return not self._key

    def invite(self, role: Role) -> str:
        """Return a token that works once. Raises `RefusedError` if too many are open."""
        if len(self._tokens) >= MOST_INVITATIONS:
            raise RefusedError(429, f"{MOST_INVITATIONS} invitations are open. Use them first.")
        token = secrets.token_urlsafe(16)
        self._tokens[token] = role
        return token

    def redeem(self, token: str) -> Role | None:
        """Use up a token, and return its role; None if it is unknown or was used."""
        known = next((one for one in self._tokens if hmac.compare_digest(one.encode(), token.encode())), None)
        return None if known is None else self._tokens.pop(known)

    def cookie(self, role: Role) -> str:
        """Return a cookie for a role."""
        text = f"{role}.{secrets.token_hex(8)}"
        return f"{text}.{self._sign(text)}"

    def role_of(self, request: Request) -> Role | None:
        """Return the role of a request, None without a valid cookie."""
        if self.is_open:
            return "operator"
        try:
            morsel = SimpleCookie(request.headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return None
        text, _, signature = (morsel.value if morsel else "").rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(text).encode()):
            return None
        return "operator" if text.startswith("operator.") else "person"

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def _kept_key(path: Path) -> bytes:
    """Return the key in a file that only its owner can read; it is created if it is missing or damaged."""
    with write_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            key = file.read()
            if len(key) != 32:
                key = secrets.token_bytes(32)
                file.seek(0)
                file.truncate()
                file.write(key)
            os.fchmod(file.fileno(), 0o600)
    return key


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is of loopback."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware that refuses requests, limits their bodies and adds headers to all responses.

    Args:
        app: The page.
        access: Who may use it.
        host: The address that the server listens on.
        port: Its port.
    """

    def __init__(self, app: ASGIApp, access: Access, host: str, port: int) -> None:
        self._app, self._access = app, access
        names: Collection[str] = ("localhost", "127.0.0.1", "[::1]")
        if not is_loopback(host):
            names = (*names, host, socket.gethostname(), socket.getfqdn())
        self._hosts = {f"{name.lower()}:{port}" for name in names} | ({*map(str.lower, names)} if port == 80 else set())
        self._any_address = not is_loopback(host)
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # a WebSocket that is not accepted is closed

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["cache-control"] = "no-store"
            await send(message)

        request = Request(scope)
        try:
            self._check(request)
        except RefusedError as error:
            refusal = JSONResponse({"error": str(error)}, error.status)
            await refusal(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _check(self, request: Request) -> None:
        """Raise `RefusedError` for a request that is not of this page."""
        path, headers = request.url.path, request.headers
        if len(request.scope["raw_path"]) + len(request.scope["query_string"]) > LONGEST_ADDRESS:
            raise RefusedError(414, "The address is too long.")
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_known(hosts[0].lower()):
            raise RefusedError(421, "This server does not have that host name. Open the address that it printed.")
        site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
        is_page = request.method == "GET" and path in PAGES
        if not is_page and site not in ("none", "same-origin"):
            raise RefusedError(403, "Requests of other sites are refused.")
        if origin is not None and origin.lower() != f"{request.url.scheme}://{hosts[0].lower()}":
            raise RefusedError(403, "Requests of other sites are refused.")
        if request.method == "POST":
            if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                raise RefusedError(415, "The body must be application/json.")
            length = headers.get("content-length", "0")
            if not length.isascii() or not length.isdigit() or int(length[:12]) > LARGEST_BODY:
                raise RefusedError(413, f"The body may have at most {LARGEST_BODY} bytes.")
        if path not in OPEN and self._access.role_of(request) is None:
            raise RefusedError(401, "Open the link with the token that the server printed, or ask for a new one.")

    def _is_known(self, host: str) -> bool:
        """Return whether a host header names this server. Addresses cannot be rebound, so any of them will do."""
        if host in self._hosts:
            return True
        name, _, port = host.rpartition(":")
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return self._any_address and port == str(self._port)


async def read_body(request: Request) -> bytes:
    """Return the body of a request. Raises `RefusedError` once it is too large, or if it takes too long."""
    body = b""
    with anyio.move_on_after(BODY_TIMEOUT_S) as limit:
        async for part in request.stream():
            body += part
            if len(body) > LARGEST_BODY:
                raise RefusedError(413, f"The body may have at most {LARGEST_BODY} bytes.")
    if limit.cancelled_caught:
        raise RefusedError(408, "The body did not arrive in time.")
    return body
