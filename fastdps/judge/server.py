"""The page as a web application, and its server.

    GET  /  /results                         the pages, and their style, scripts and icon
    GET  /image/N                            a picture, by number
    POST /api/enter {"person", "token"}      begin or continue a session
    GET  /api/state?person=                  the triplet that is shown, and the next one
    POST /api/answer {"person", "triplet", "choice", "seconds"}
    POST /api/undo {"person", "answer"}
    GET  /api/learning?person=&probe=        what the metric has learned, and the images nearest to a picture
    GET  /api/results   POST /api/invite   GET /download      for the one who runs the page

Errors are {"error": message}; with status 409 also the state, which the page then shows.
"""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from fastdps.errors import ConfigError, FastDPSError, SampleError
from fastdps.judge.answers import CHOICES
from fastdps.judge.guard import COOKIE, Access, Guard, RefusedError, read_body
from fastdps.judge.people import Judging
from fastdps.judge.session import Session, StaleError
from fastdps.runtime.json_files import Maybe, Number, check, parse_json

#: Ports that are tried if none is given.
PORTS = range(8765, 8785)
#: Requests that are handled at a time; further ones get status 503.
CONCURRENCY = 64
#: Pictures that are kept as the page gets them.
KEPT_PICTURES = 256
FILES = {
    "/": ("page.html", "text/html"),
    "/results": ("results.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/results.js": ("results.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_ENTER = {"person?": Maybe(str), "token?": Maybe(str)}
_ANSWER = {"person": str, "triplet": str, "choice": str, "seconds?": Maybe(Number(0, 1e6))}
_UNDO = {"person": str, "answer": str}

Endpoint = Callable[[Request], Awaitable[Response]]


class PageServer:
    """The application.

    Args:
        judging: People, pictures and the metric that learns.
        access: Who may use the page.

    Attributes:
        app: The Starlette application, without its `Guard`.
    """

    def __init__(self, judging: Judging, access: Access) -> None:
        self._judging, self._access = judging, access
        self._encoded = functools.lru_cache(KEPT_PICTURES)(judging.pictures.encoded)
        routes = [Route(path, _file(*of), methods=["GET"]) for path, of in FILES.items()]
        routes += [
            Route("/image/{number}", self._image, methods=["GET"]),
            Route("/api/enter", self._enter, methods=["POST"]),
            Route("/api/state", self._state, methods=["GET"]),
            Route("/api/answer", self._answer, methods=["POST"]),
            Route("/api/undo", self._undo, methods=["POST"]),
            Route("/api/learning", self._learning, methods=["GET"]),
            Route("/api/results", self._results, methods=["GET"]),
            Route("/api/invite", self._invite, methods=["POST"]),
            Route("/download", self._download, methods=["GET"]),
        ]
        handlers: Mapping[Any, Any] = {
            RefusedError: lambda _, error: _error(error.status, str(error)),
            HTTPException: lambda _, error: _error(error.status_code, error.detail),
            ClientDisconnect: lambda *_: _error(400, "The request ended early."),
            FastDPSError: lambda _, error: _error(507, str(error)),
        }
        self.app = Starlette(routes=routes, exception_handlers=handlers)
        self.app.router.redirect_slashes = False

    async def _image(self, request: Request) -> Response:
        """Return a picture as JPEG or PNG."""
        number = _number(request.path_params["number"])
        if number is None or number >= len(self._judging.pictures):
            raise RefusedError(404, "There is no image of this number.")
        try:
            content, kind = await run_in_threadpool(self._encoded, number)
        except SampleError as error:
            raise RefusedError(410, str(error)) from error
        return Response(content, media_type=kind, headers={"cache-control": "private, max-age=86400, immutable"})

    async def _enter(self, request: Request) -> Response:
        """Begin or continue the session of a person; a token gives a cookie."""
        content = await _content(request, _ENTER)
        role = self._access.role_of(request)
        is_new = role is None
        if is_new:
            role = self._access.redeem(content.get("token") or "")
            if role is None:
                raise RefusedError(401, "This link was used already, or is of an earlier start. Ask for a new one.")
        answer: dict[str, Any] = {"role": role, "judge": self._judging.default_person}
        person = content.get("person") or self._judging.default_person
        if person:
            try:
                session = await run_in_threadpool(self._judging.enter, person)
            except ConfigError as error:
                if not is_new:
                    raise RefusedError(422, str(error)) from error
                answer["error"] = str(error)
            else:
                answer["state"] = self._state_of(session)
        response = JSONResponse(answer)
        if is_new and role:
            response.set_cookie(COOKIE, self._access.cookie(role), httponly=True, samesite="strict", max_age=30 * 86400)
        return response

    async def _state(self, request: Request) -> Response:
        """Return the state of a session."""
        return JSONResponse(self._state_of(self._session(request.query_params.get("person", ""))))

    async def _answer(self, request: Request) -> Response:
        """Count an answer, and return the new state."""
        content = await _content(request, _ANSWER)
        if content["choice"] not in CHOICES:
            raise RefusedError(422, f"choice must be one of {', '.join(CHOICES)}.")
        session = self._session(content["person"])
        act = functools.partial(session.answer, content["triplet"], content["choice"], content.get("seconds"))
        return await self._act(session, act)

    async def _undo(self, request: Request) -> Response:
        """Withdraw the last answer, and return the new state."""
        content = await _content(request, _UNDO)
        session = self._session(content["person"])
        return await self._act(session, functools.partial(session.undo, content["answer"]))

    async def _act(self, session: Session, act: Callable[[], bool]) -> Response:
        try:
            counted = await run_in_threadpool(act)
        except StaleError as error:
            return JSONResponse({"error": str(error), "state": self._state_of(session)}, 409)
        return JSONResponse({**self._state_of(session), "counted": counted})

    async def _learning(self, request: Request) -> Response:
        """Return what the metric has learned from a person."""
        session = self._session(request.query_params.get("person", ""))
        probe = _number(request.query_params.get("probe", "0"))
        if probe is None or probe >= len(self._judging.pictures):
            raise RefusedError(404, "There is no image of this number.")
        return JSONResponse(await run_in_threadpool(self._judging.learning, session, probe))

    async def _results(self, request: Request) -> Response:
        """Return the results of all people."""
        self._require_operator(request)
        return JSONResponse(await run_in_threadpool(self._judging.results))

    async def _invite(self, request: Request) -> Response:
        """Return a link that works once."""
        self._require_operator(request)
        await _content(request, {})
        if self._access.is_open:
            raise RefusedError(409, "The page is on loopback only. Start it with --host to invite others.")
        return JSONResponse(
            {"link": f"{request.url.scheme}://{request.headers['host']}/?token={self._access.invite('person')}"}
        )

    async def _download(self, request: Request) -> Response:
        """Return all answers with their images as a zip file."""
        self._require_operator(request)
        path = await run_in_threadpool(self._judging.archive)
        return FileResponse(path, media_type="application/zip", filename="judgements.zip")

    def _require_operator(self, request: Request) -> None:
        if self._access.role_of(request) != "operator":
            raise RefusedError(403, "Only the one who runs the page may see this.")

    def _session(self, person: str) -> Session:
        """Return the session of a person. Raises `RefusedError` if it has not begun."""
        session = self._judging.session(person)
        if session is None:
            raise RefusedError(404, "There is no session of this name. Enter it first.")
        return session

    def _state_of(self, session: Session) -> dict[str, Any]:
        return {**session.state(), "images": self._judging.version}


def guarded(server: PageServer, access: Access, host: str, port: int) -> Guard:
    """Return the complete application of a server that listens on `host` and `port`."""
    return Guard(server.app, access, host, port)


def listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that is bound to a port, by default the first free one of `PORTS`.

    Raises:
        ConfigError: The port is in use, or the host is not an address of this machine.
    """
    reason = ""
    for candidate in PORTS if port is None else (port,):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            bound = socket.socket(family, kind, protocol)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                bound.bind(address)
            except OSError:
                bound.close()
                raise
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            bound.set_inheritable(False)
            return bound
    shown = f"{PORTS.start} to {PORTS.stop - 1}" if port is None else str(port)
    raise ConfigError(f"the page cannot listen on {host}, port {shown}: {reason}. Give another --port or --host.")


def serve(app: Guard, bound: socket.socket, started: Callable[[], None]) -> None:
    """Serve until a signal stops the process. Raises `KeyboardInterrupt` after SIGINT or SIGTERM."""
    _Server(app, started).run(sockets=[bound])


class _Server(uvicorn.Server):
    """A server that calls a function once it accepts connections."""

    def __init__(self, app: Guard, started: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            log_level="error",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONCURRENCY,
            timeout_graceful_shutdown=2,
        )
        super().__init__(config)
        self._on_start = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        await super().startup(sockets)
        if self.started:
            self._on_start()


class PageThread:
    """A context manager that serves in a thread.

    Args:
        app: The application.
        bound: The socket, which is closed at the end.
    """

    def __init__(self, app: Guard, bound: socket.socket) -> None:
        self._ready, self._bound = threading.Event(), bound
        self._server = _Server(app, self._ready.set)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [bound]})

    def __enter__(self) -> None:
        self._thread.start()
        self._ready.wait()

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._bound.close()


def _file(name: str, kind: str) -> Endpoint:
    """Return an endpoint that returns a file of this package."""
    content = files("fastdps.judge").joinpath("pages", name).read_bytes()

    async def endpoint(_: Request) -> Response:
        return Response(content, media_type=kind)

    return endpoint


async def _content(request: Request, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON object in the body of a request. Raises `RefusedError`."""
    body = await read_body(request)
    try:
        content = parse_json(body.decode())
        check(content, dict(schema))
    except ValueError as error:
        raise RefusedError(400, f"The body is not what was expected: {error}.") from error
    return content


def _number(text: str) -> int | None:
    """Return a number of a few digits, None for other texts."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)
