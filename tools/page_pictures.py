"""Draw the pictures of the page of `fastdps judge` in the docs: a real session on generated images, in Chromium.

    python tools/page_pictures.py --out docs

A simulated person judges distorted versions by a ranking of the distortions, by keyboard. Needs Chromium, its driver
and the package selenium (the extra `test`), and the pretrained weights of AlexNet.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from chromium import browser
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from fastdps.contexts.distortions import NAMES
from fastdps.judge.answers import STATE_DIRECTORY
from fastdps.judge.guard import Access
from fastdps.judge.images import open_images
from fastdps.judge.learner import Learner
from fastdps.judge.people import Judging
from fastdps.judge.server import PageServer, PageThread, guarded, listen
from fastdps.judge.session import Session
from fastdps.judge.triplets import VersionTriplets
from fastdps.judge.versions import VERSIONS, DistortedPictures
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.training.bases import open_base

#: Generated images, and their side in pixels.
IMAGES, SIDE = 48, 128
#: How the person ranks distortions, the least disruptive first.
RANKING = ("blur", "darken", "color", "zoom_in", "rotate", "translate")
#: Answers before the pictures are drawn.
ANSWERS = 42
TIMEOUT_S = 600
#: Colours of the pictures, which keep them small.
COLOURS = 256


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the page of `fastdps judge`.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the pictures")
    parser.add_argument("--answers", type=int, default=ANSWERS, help=f"answers before them (default: {ANSWERS})")
    arguments = parser.parse_args(argv)
    draw(arguments.out, arguments.answers)


def draw(out: Path, answers: int) -> None:
    """Judge generated images, and write the pictures."""
    out = out.resolve()
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        photos = Path("photos")
        photos.mkdir()
        source = DeadLeaves(IMAGES, SIDE, seed=1)
        for number in source.items():
            pixels = source.read(number)["image"]
            Image.fromarray(np.asarray(pixels)).save(photos / f"{number:03d}.png")
        with (
            served(photos, Path(temporary).resolve() / "judged") as (address, judging, learner),
            browser(Path(temporary) / "profile") as session,
        ):
            take(session, address, judging, learner, out, answers)


@contextmanager
def served(photos: Path, out: Path) -> Iterator[tuple[str, Judging, Learner]]:
    """Serve the page in a thread, and yield its address."""
    (out / STATE_DIRECTORY).mkdir(parents=True)
    pictures = DistortedPictures(open_images(photos), out, size=SIDE, seed=0)
    deck = VersionTriplets(IMAGES, 0)
    learner = Learner(open_base("alexnet"), pictures, deck, out / "run", size=SIDE)
    judging, access = Judging(out, pictures, deck, learner), Access(None)
    bound = listen("127.0.0.1", 0)
    port = bound.getsockname()[1]
    with PageThread(guarded(PageServer(judging, access), access, "127.0.0.1", port), bound):
        yield f"http://127.0.0.1:{port}/", judging, learner
    learner.close()


def _has_more(session: Session, answers: int) -> bool:
    return len(session.answers) > answers


def take(session: webdriver.Chrome, address: str, judging: Judging, learner: Learner, out: Path, answers: int) -> None:
    """Answer as the simulated person, and write the pictures."""

    def until(condition: Callable[[], Any]) -> None:
        WebDriverWait(session, TIMEOUT_S, poll_frequency=0.05).until(lambda _: condition())

    def script(text: str) -> Any:
        return session.execute_script(text)

    def press(key: str) -> None:
        session.find_element(By.TAG_NAME, "body").send_keys(key)

    until(lambda: learner.describe("Anna")["status"] == "ready")
    view(session, 1280, 800)
    session.get(address)
    until(lambda: session.find_element(By.ID, "enter").is_displayed())
    session.find_element(By.ID, "name").send_keys("Anna" + Keys.ENTER)
    is_ready = "return !judge.hidden && !/waiting|fresh/.test(judge.className)"
    until(lambda: script(is_ready))
    save(session, out / "judge-practice.png")
    press(Keys.ESCAPE)
    for number in range(answers):
        until(lambda: script(is_ready) and judging.session("Anna"))
        person = judging.session("Anna")
        assert person is not None
        press(choice(person.state()["current"]))
        until(functools.partial(_has_more, person, number))
    until(lambda: learner.describe("Anna").get("judged") == answers)
    time.sleep(5)  # for the last notice to disappear, and the strip to be in order
    until(lambda: script("return document.querySelectorAll('#strip img').length > 0"))
    save(session, out / "judge.png")
    scheme(session, "dark")
    view(session, 390, 844)
    save(session, out / "judge-phone.png")
    view(session, 1280, 800)
    scheme(session, "light")
    session.get(address + "results")
    until(lambda: "Anna" in session.page_source)
    save(session, out / "judge-results.png")


def choice(shown: dict[str, Any]) -> str:
    """Return the key of the version whose distortion is less disruptive."""
    left, right = (RANKING.index(NAMES[shown[role] % VERSIONS - 1]) for role in ("left", "right"))
    return Keys.ARROW_LEFT if left < right else Keys.ARROW_RIGHT


def view(session: webdriver.Chrome, width: int, height: int) -> None:
    """Set the size of the page."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
    session.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def scheme(session: webdriver.Chrome, name: str) -> None:
    """Prefer dark or light pages."""
    features = [{"name": "prefers-color-scheme", "value": name}]
    session.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def save(session: webdriver.Chrome, path: Path) -> None:
    """Write a picture of the page, once its images are complete."""
    time.sleep(0.6)  # transitions
    shot = Image.open(io.BytesIO(session.get_screenshot_as_png())).convert("RGB")
    shot.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
