"""The server: a session over HTTP, what it refuses, and that nothing but the images is served."""

import io
import itertools
import json
import socket
import zipfile

import numpy as np
import pytest
from PIL import Image

from fastdps.errors import ConfigError
from fastdps.judge import guard, people
from fastdps.judge.answers import AnswerFile
from fastdps.judge.guard import LARGEST_BODY
from fastdps.judge.server import listen
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.judgements import JudgementFile
from helpers.bad_requests import BODIES, GOOD, HOSTS, NAMES, ORIGINS, PATHS, TYPES, UNDO
from helpers.judgement_files import judgements_of
from helpers.judging import SECRET, Browser, make_judging, raw_request, serving

# ---- a session ----


def test_a_session(browser, judging):
    state = browser.enter("Anna")
    for number in range(15):
        state = browser.answer(state, ("left", "right", "neither")[number % 3])
        assert state["answers"] == number + 1
        assert browser.get("/api/state?person=anna") == (200, {k: v for k, v in state.items() if k != "counted"})
    status, state = browser.post("/api/undo", {"person": "Anna", "answer": state["undo"]})
    assert (status, state["answers"], state["counted"]) == (200, 14, True)
    saved = AnswerFile(judging.out / "Anna.jsonl")
    assert [answer.judge for answer in saved.answers.values()] == [0, 1, 0.5] * 4 + [0, 1]
    assert {answer.seconds for answer in saved.answers.values()} == {1.5}
    pack(JudgementFile(judging.out / "Anna.jsonl"), judging.out.parent / "set", PackOptions(size=8), workers=1)
    assert len(judgements_of(judging.out.parent / "set" / "train")) == 14


def test_two_tabs_and_double_clicks_count_once(browser, judging):
    state = browser.enter("anna")
    body = {"person": "anna", "triplet": state["current"]["id"], "choice": "left"}
    assert [browser.post("/api/answer", body)[1]["counted"] for _ in range(3)] == [True, False, False]
    status, content = browser.post("/api/answer", {**body, "choice": "right"})
    assert status == 409
    assert content["state"]["answers"] == 1
    after = browser.answer(content["state"])
    status, content = browser.post("/api/undo", {"person": "anna", "answer": state["current"]["id"]})
    assert (status, content["state"]) == (409, {k: v for k, v in after.items() if k != "counted"})


def test_people_have_their_own_sessions(browser, judging):
    states = {name: browser.enter(name) for name in ("Anna", "Ben")}
    for name, count in (("Anna", 3), ("Ben", 2)):
        for _ in range(count):
            states[name] = browser.answer(states[name])
    assert browser.enter("ANNA")["person"] == "Anna"  # names differ by more than case
    assert {name: len(answers) for name, answers in judging.people.items()} == {"Anna": 3, "Ben": 2}
    status, content = browser.post("/api/answer", {
        "person": "Ben", "triplet": states["Anna"]["current"]["id"], "choice": "left",
    })  # fmt: skip
    assert status == 409
    assert content["state"]["person"] == "Ben"


def test_images_are_those_of_the_folder(browser, page_folder):
    files = sorted(page_folder.rglob("*.png"))
    for number, path in enumerate(files):
        status, content = browser.get(f"/image/{number}?v=1")
        assert status == 200
        assert browser.received.getheader("content-type") == "image/png"
        assert (np.asarray(Image.open(io.BytesIO(content))) == np.asarray(Image.open(path))).all()
    assert browser.get(f"/image/{len(files)}")[0] == 404


def test_images_have_no_metadata_and_a_bounded_size(tmp_path):
    (tmp_path / "photos").mkdir()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    for number in range(3):
        large = Image.effect_noise((2000, 1000), 90).convert("RGB")
        large.save(tmp_path / f"photos/{number}.jpg", exif=exif)
    with serving(make_judging(tmp_path / "photos", tmp_path / "judged")) as port:
        status, content = Browser(port).get("/image/0")
    assert status == 200
    shown = Image.open(io.BytesIO(content))
    assert shown.size == (512, 1024)  # upright
    assert not shown.getexif()
    assert b"a camera" not in content


def test_the_results_and_the_download(browser, judging, page_folder):
    for name, choices in (("anna", ["left", "right", "left"]), ("ben", ["left", "left", "neither"])):
        state = browser.enter(name)
        for choice in choices:
            state = browser.answer(state, choice)
    status, results = browser.get("/api/results")
    assert status == 200
    assert results["answers"] == 6
    assert [(one["person"], one["answers"], one["undecided"]) for one in results["people"]] == [
        ("anna", 3, 0),
        ("ben", 3, 1),
    ]
    (pair,) = results["agreement"]
    sides = [[(a.ref, *sorted((a.p0, a.p1))) for a in answers] for answers in judging.people.values()]
    assert sides[0] == sides[1]  # random triplets are common
    assert pair["triplets"] == 2
    status, content = browser.get("/download")
    assert status == 200
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(page_folder.parent / "unpacked")
    pack(
        JudgementFile(page_folder.parent / "unpacked/judgements.jsonl"),
        page_folder.parent / "set",
        PackOptions(size=8),
        workers=1,
    )
    rows = judgements_of(page_folder.parent / "set" / "train")
    assert [(row["judge"], row["votes_b"]) for row in rows] == [
        ("anna", 0),
        ("anna", 1),
        ("anna", 0),
        ("ben", 0),
        ("ben", 0),
        ("ben", 0.5),
    ]


@pytest.mark.parametrize(
    "path", ["/", "/results", "/page.css", "/page.js", "/results.js", "/icon.svg", "/image/0", "/nothing"]
)
def test_headers(browser, path):
    browser.get(path)
    policy = browser.received.getheader("content-security-policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert browser.received.getheader("x-content-type-options") == "nosniff"
    assert browser.received.getheader("server") is None
    assert ("immutable" in browser.received.getheader("cache-control")) == path.startswith("/image")


# ---- what is refused ----


class Refusals:
    """Sends requests that must be refused, and collects those that are not."""

    def __init__(self, browser, ids):
        self.browser, self.ids, self.tried, self.wrong = browser, ids, 0, []

    def check(self, what, status, content):
        """Count a request. It must have a status from 400 to 499, and no content of a file."""
        self.tried += 1
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        is_served = SECRET in text or b"root:" in text or text.startswith((b"\x89PNG", b"\xff\xd8"))
        if not 400 <= status < 500 or is_served:
            self.wrong.append((what, status, text[:80]))

    def raw(self, *lines, body=b""):
        self.check((lines, body[:20]), *_raw(self.browser.port, *lines, body=body))

    def send(self, method, path, body=None, **headers):
        self.check((method, path, body, headers), *self.browser.send(method, path, body, **headers))

    def post(self, path, body, **headers):
        self.send("POST", path, self.filled(body), **headers)

    def filled(self, body):
        """Return a body with the ids in place."""
        text = body.decode("latin-1") if isinstance(body, bytes) else json.dumps(body)
        for name, value in self.ids.items():
            text = text.replace(name, value)
        return text.encode("latin-1")


def test_bad_requests_are_refused(browser, judging):
    """At least 200 of them. Nothing is served or counted."""
    browser.answer(browser.enter("anna"))
    state = browser.get("/api/state?person=anna")[1]
    refused = Refusals(browser, {"TRIPLET": state["current"]["id"], "NEXT": state["next"]["id"]})
    _send_addresses(refused)
    _send_bodies(refused)
    _send_headers(refused)
    assert refused.wrong == []
    assert refused.tried >= 200
    assert browser.get("/api/state?person=anna") == (200, state)
    assert sorted(path.name for path in judging.out.glob("*.jsonl")) == ["anna.jsonl"]
    assert browser.answer(state)["answers"] == 2


def _send_addresses(refused):
    host = f"Host: localhost:{refused.browser.port}"
    for path in PATHS:
        refused.raw(f"GET {path.replace(' ', '%20')} HTTP/1.1", host)
    methods = ("PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "FOO")
    for method, path in itertools.product(methods, ("/", "/image/0", "/api/answer")):
        refused.send(method, path)
    for path in ("/api/answer", "/api/undo", "/api/enter", "/api/invite"):
        refused.send("GET", path)
    for path in ("/", "/image/0", "/api/state?person=anna", "/api/results", "/download", "/page.js"):
        refused.post(path, {})
    for line in ("GET /image/0", "GET  HTTP/1.1", "\x16\x03\x01", "GET /image/\x01 HTTP/1.1"):
        refused.raw(line, host)


def _send_bodies(refused):
    for body in BODIES:
        refused.post("/api/answer", body)
    for body in UNDO:
        refused.post("/api/undo", body)
    for name in NAMES:
        refused.post("/api/enter", {"person": name})
    head = ("POST /api/answer HTTP/1.1", f"Host: localhost:{refused.browser.port}", "Content-Type: application/json")
    for length in ("-1", "x", "1e9", "99999999999999999999", "+5"):
        refused.raw(*head, f"Content-Length: {length}")
    chunked = f"{LARGEST_BODY * 2:x}\r\n" + " " * LARGEST_BODY * 2 + "\r\n0\r\n\r\n"
    refused.raw(*head, "Transfer-Encoding: chunked", body=chunked.encode())


def _send_headers(refused):
    port = str(refused.browser.port)
    for kind in TYPES:
        refused.post("/api/answer", GOOD, Content_Type=kind)
    for origin in ORIGINS:
        refused.post("/api/answer", GOOD, Origin=origin.replace("PORT", port))
    for host in HOSTS:
        refused.raw("GET /image/0 HTTP/1.1", f"Host: {host.replace('PORT', port)}")
    refused.raw("GET /image/0 HTTP/1.1", "A: b")
    refused.raw("GET /image/0 HTTP/1.1", f"Host: localhost:{port}", f"Host: localhost:{port}")
    for site, path in itertools.product(("cross-site", "same-site", "evil"), ("/image/0", "/api/results", "/download")):
        refused.send("GET", path, **{"Sec-Fetch-Site": site})


def _raw(port, *lines, body=b""):
    """Send a request as it is, and return its status and the content of the answer."""
    text = "\r\n".join([*lines, "Connection: close", "", ""]).encode("utf-8") + body
    answer = raw_request(port, text)
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), (lines, answer[:80])
    return int(head.split()[1]), content


def test_a_body_that_does_not_arrive_is_given_up(browser, monkeypatch):
    browser.enter("anna")
    monkeypatch.setattr(guard, "BODY_TIMEOUT_S", 0.05)
    head = f"POST /api/answer HTTP/1.1\r\nHost: localhost:{browser.port}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", browser.port), timeout=20) as connection:
        connection.sendall((head + "Content-Length: 10\r\n\r\n{").encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_the_number_of_people_is_limited(browser, monkeypatch):
    monkeypatch.setattr(people, "MOST_PEOPLE", 3)
    for number in range(3):
        browser.enter(f"person {number}")
    assert browser.post("/api/enter", {"person": "one more"})[0] == 422
    assert browser.enter("person 0")["person"] == "person 0"


def test_a_port_in_use_is_an_error(browser):
    with pytest.raises(ConfigError, match=f"port {browser.port}: Address already in use"):
        listen("127.0.0.1", browser.port)
    with pytest.raises(ConfigError, match="Give another --port or --host"):
        listen("203.0.113.1", 0)
