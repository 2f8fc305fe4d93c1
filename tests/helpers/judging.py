"""The page of `fastdps judge` for tests: without a metric, in this process, on a free port of loopback."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from fastdps.judge.answers import STATE_DIRECTORY
from fastdps.judge.guard import Access
from fastdps.judge.images import PlainPictures, open_images
from fastdps.judge.people import Judging
from fastdps.judge.server import PageServer, PageThread, guarded, listen
from fastdps.judge.session import Foreseen
from fastdps.judge.triplets import Deck, ImageTriplets

#: The content of a file beside the images of a page.
SECRET = b"not an image of the folder"


class NoMetric:
    """Has every triplet chosen at random, and learns nothing."""

    saved = None

    def start(self, judged):
        self.judged = judged

    def choose(self, person, asked):
        return None

    def predict(self, person, triplet):
        return Foreseen()

    def learn(self, person):
        pass

    def describe(self, person):
        return {"status": "waiting", "text": ""}

    def nearest(self, person, probe):
        return None

    def close(self):
        pass


def make_judging(folder: Path, out: Path, *, deck: Deck | None = None, learner: Any = None, person=None) -> Judging:
    """Return the page's state for a folder of images."""
    (out / STATE_DIRECTORY).mkdir(parents=True, exist_ok=True)
    pictures = PlainPictures(open_images(folder), out)
    return Judging(out, pictures, deck or ImageTriplets(len(pictures), 0), learner or NoMetric(), person)


@contextmanager
def serving(judging: Judging, access: Access | None = None, host: str = "127.0.0.1") -> Iterator[int]:
    """Serve the page in a thread, and yield its port."""
    access = access or Access(None)
    bound = listen("127.0.0.1", 0)
    port = bound.getsockname()[1]
    with PageThread(guarded(PageServer(judging, access), access, host, port), bound):
        yield port


class Browser:
    """Sends requests as a browser does, with its cookies."""

    def __init__(self, port: int, **headers: str) -> None:
        self.port, self.headers = port, headers

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Return the status and the content, parsed if it is JSON."""
        sent = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            content = answer.read()
            if cookie := answer.getheader("set-cookie"):
                self.headers["Cookie"] = cookie.partition(";")[0]
            self.received = answer
            is_json = answer.getheader("content-type") == "application/json"
            return answer.status, json.loads(content) if is_json else content

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        return self.send("GET", path, **headers)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        return self.send("POST", path, body, **headers)

    def enter(self, person: str) -> dict[str, Any]:
        """Begin a session and return its state."""
        status, content = self.post("/api/enter", {"person": person})
        assert status == 200, content
        return content["state"]

    def answer(self, state: dict[str, Any], choice: str = "left") -> dict[str, Any]:
        """Answer the triplet that is shown, and return the new state."""
        body = {"person": state["person"], "triplet": state["current"]["id"], "choice": choice, "seconds": 1.5}
        status, content = self.post("/api/answer", body)
        assert status == 200, content
        return content


def raw_request(port: int, request: bytes) -> bytes:
    """Send bytes, and return the answer, which ends when the server closes the connection."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as connection:
        connection.sendall(request)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)
