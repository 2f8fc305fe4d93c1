"""Access to the page beyond loopback: tokens that work once, cookies, roles and host names."""

import pytest

from fastdps.judge import guard
from fastdps.judge.guard import Access
from helpers.judging import Browser, serving


@pytest.fixture
def guarded(judging):
    """A page that others may connect to, and how to invite them."""
    access = Access(judging.out / ".judge/secret")
    with serving(judging, access, host="0.0.0.0") as port:
        yield access, port


def test_beyond_loopback_a_token_is_needed_and_works_once(guarded, judging):
    access, port = guarded
    browser, other = Browser(port), Browser(port)
    for path in ("/image/0", "/api/state?person=anna", "/api/results", "/download", "/api/learning?person=anna"):
        assert browser.get(path)[0] == 401
    for token in (None, "", "x", "é", "x" * 1000, 1, ["x"]):
        assert browser.post("/api/enter", {"person": "anna", "token": token})[0] in (400, 401)
    token = access.invite("person")
    status, content = browser.post("/api/enter", {"person": "anna", "token": token})
    assert (status, content["role"]) == (200, "person")
    assert "HttpOnly" in browser.received.getheader("set-cookie")
    assert "SameSite=strict" in browser.received.getheader("set-cookie")
    assert other.post("/api/enter", {"person": "anna", "token": token})[0] == 401
    assert browser.answer(content["state"])["answers"] == 1
    assert browser.get("/image/0")[0] == 200
    for path in ("/api/results", "/download"):
        assert browser.get(path)[0] == 403
    assert browser.post("/api/invite", {})[0] == 403
    assert browser.post("/api/enter", {"person": "anna"})[0] == 200  # a reload


def test_the_operator_invites(guarded):
    access, port = guarded
    operator, guest = Browser(port), Browser(port)
    assert operator.post("/api/enter", {"token": access.invite("operator")})[1] == {"role": "operator", "judge": None}
    status, content = operator.post("/api/invite", {})
    assert status == 200
    token = content["link"].partition("token=")[2]
    assert guest.post("/api/enter", {"person": "guest", "token": token})[1]["role"] == "person"
    assert operator.get("/api/results")[0] == 200


def test_cookies_survive_a_restart_and_are_not_forged(guarded, judging, tmp_path):
    access, port = guarded
    browser = Browser(port)
    browser.post("/api/enter", {"person": "anna", "token": access.invite("person")})
    again = Access(judging.out / ".judge/secret")
    assert (judging.out / ".judge/secret").stat().st_mode & 0o077 == 0
    with serving(judging, again, host="0.0.0.0") as restarted:
        resumed = Browser(restarted, Cookie=browser.headers["Cookie"])
        assert resumed.get("/image/0")[0] == 200
        name, _, value = browser.headers["Cookie"].partition("=")
        forged = [value.replace("person", "operator"), value[:-1], value + "0", "", "operator..", f"operator.{value}"]
        forged.append(Access(tmp_path / "another").cookie("operator"))
        for cookie in forged:
            assert Browser(restarted, Cookie=f"{name}={cookie}").get("/api/results")[0] == 401
        assert resumed.get("/api/results")[0] == 403


def test_host_names_beyond_loopback(guarded):
    """Any address will do, since only names can be rebound."""
    access, port = guarded
    browser = Browser(port)
    browser.post("/api/enter", {"person": "anna", "token": access.invite("person")})
    for host, status in ((f"192.168.7.9:{port}", 200), (f"[fe80::1]:{port}", 200), (f"evil.example:{port}", 421)):
        assert browser.get("/image/0", Host=host)[0] == status


def test_open_invitations_are_limited(guarded, monkeypatch):
    monkeypatch.setattr(guard, "MOST_INVITATIONS", 3)
    access, port = guarded
    operator = Browser(port)
    operator.post("/api/enter", {"token": access.invite("operator")})
    statuses = [operator.post("/api/invite", {})[0] for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
