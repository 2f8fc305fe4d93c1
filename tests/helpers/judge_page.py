"""The page of `fastdps judge` in a real browser, served by the command in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

KEYS = {"left": Keys.ARROW_LEFT, "right": Keys.ARROW_RIGHT, "neither": Keys.SPACE}
TIMEOUT_S = 60


def free_port() -> int:
    """Return a port that nothing listens on."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class JudgeServer:
    """`fastdps judge` with some arguments, which can be killed and started again at the same address."""

    def __init__(self, images: Path, out: Path, *arguments: str) -> None:
        self.port = free_port()
        self._command = [
            sys.executable,
            "-m",
            "fastdps",
            "judge",
            str(images),
            "--out",
            str(out),
            "--port",
            str(self.port),
        ]
        self._command += arguments
        self._log = out.with_suffix(".log")

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with self._log.open("ab") as log:
            begin = log.tell()
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        while not re.search(rb"Judge at (\S+)", self._log.read_bytes()[begin:]):
            assert self._process.poll() is None, self._log.read_text()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)
        self.address = re.findall(rb"Judge at (\S+)", self._log.read_bytes())[-1].decode()

    def stop(self, number: int = signal.SIGTERM) -> str:
        """End it by a signal, and return what it has printed."""
        self._process.send_signal(number)
        self._process.wait(TIMEOUT_S)
        return self._log.read_text()


@contextmanager
def judge_server(images: Path, out: Path, *arguments: str) -> Iterator[JudgeServer]:
    """Start the command, and end it if it still runs."""
    server = JudgeServer(images, out, *arguments)
    server.start()
    try:
        yield server
    finally:
        if server._process.poll() is None:
            server.stop(signal.SIGKILL)


class PageOf:
    """The page in the current tab of a browser, as a person uses it.

    Attributes:
        given: The answers so far, as (id of the triplet, choice), without those that were undone.
    """

    def __init__(
        self, session: webdriver.Chrome, address: str, person: str, given: list[tuple[str, str]] | None = None
    ):
        self.session, self.person = session, person
        self.given = [] if given is None else given
        session.get(address)
        self.wait(lambda: self.element("judge").is_displayed() or self.element("enter").is_displayed())
        if self.element("enter").is_displayed():
            self.element("name").send_keys(person + Keys.ENTER)
        self.wait(lambda: self.triplet)

    def element(self, name: str):
        return self.session.find_element(By.ID, name)

    def wait(self, condition) -> None:
        WebDriverWait(self.session, TIMEOUT_S, poll_frequency=0.02).until(lambda _: condition())

    def press(self, key: str) -> None:
        self.session.find_element(By.TAG_NAME, "body").send_keys(key)

    @property
    def triplet(self) -> str:
        """The id of the triplet that is shown, "" while none is, or while it cannot be answered yet."""
        return self.session.execute_script(
            "return judge.hidden || /waiting|fresh/.test(judge.className) ? '' : judge.dataset.triplet || ''"
        )

    @property
    def count(self) -> str:
        return self.element("count").text

    def skip_practice(self) -> None:
        self.press(Keys.ESCAPE)
        self.wait(lambda: self.triplet not in ("", "practice"))

    def answer(self, choice: str, *, wait: bool = True) -> None:
        """Press the key of a choice, and wait for the next triplet."""
        shown = self.triplet
        assert shown not in ("", "practice")
        self.press(KEYS[choice])
        self.given.append((shown, choice))
        if wait:
            self.wait(lambda: self.triplet not in ("", shown))

    def undo(self) -> None:
        shown = self.triplet
        self.press("z")
        self.wait(lambda: self.triplet not in ("", shown))
        self.given.pop()
