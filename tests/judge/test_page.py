"""The page in a real browser: whole sessions by keyboard and touch, tabs, people, and a server that is killed."""

import io
import json
import random
import re
import signal

import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import fastdps
from fastdps.judge.answers import CHOICES, AnswerFile
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from helpers.browser import chromium, prefer, resize
from helpers.judge_page import PageOf, judge_server
from helpers.packed import encoded, photo

pytestmark = pytest.mark.slow
PRACTICE = (Keys.ARROW_LEFT, Keys.ARROW_RIGHT, Keys.SPACE, "z")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def materials(tmp_path_factory):
    """A folder of images, and a base metric of random weights."""
    root = tmp_path_factory.mktemp("materials")
    (root / "photos").mkdir()
    for number in range(24):
        (root / f"photos/{number:02d}.png").write_bytes(encoded(photo(90, 120, seed=number), "PNG"))
    metric = PerceptualMetric(Backbone("alexnet", pretrained=False))
    metric.save(root / "base.safetensors", include_backbone=True)
    return root


@pytest.fixture(scope="module")
def server(materials):
    with judge_server(materials / "photos", materials / "judged", "--base", str(materials / "base.safetensors"),
                      "--size", "64") as running:  # fmt: skip
        yield running


def saved(materials, person):
    """Return the answers of a person on disk as (id, choice)."""
    names = {judge: choice for choice, judge in CHOICES.items()}
    answers = AnswerFile(materials / "judged" / f"{person}.jsonl").answers.values()
    return [(answer.answer, names[answer.judge]) for answer in answers]


def test_a_whole_session_loses_no_answer_and_counts_none_twice(browser, server, materials):
    """Thirty answers by keyboard, with undo, a reload, two tabs, two people, and kill -9 of the server."""
    resize(browser, 1280, 800)
    dice = random.Random(0)
    choices = [dice.choice(list(CHOICES)) for _ in range(60)]
    anna = PageOf(browser, server.address, "anna")
    _practise(anna)
    for choice in choices[:7]:
        anna.answer(choice)
    anna.undo()
    anna.undo()
    for choice in choices[7:12]:
        anna.answer(choice)
    assert saved(materials, "anna") == anna.given

    shown = anna.triplet
    browser.refresh()
    anna.wait(lambda: anna.triplet == shown)  # no practice again, and the same triplet
    for choice in choices[12:15]:
        anna.answer(choice)
    first, second = _answer_in_two_tabs(browser, server, anna)
    assert saved(materials, "anna") == anna.given

    browser.switch_to.window(second)
    browser.execute_script("sessionStorage.clear()")
    ben = PageOf(browser, server.address, "ben")
    ben.skip_practice()
    for choice in choices[15:20]:
        ben.answer(choice)
    browser.close()
    browser.switch_to.window(first)
    while len(anna.given) < 20:
        anna.answer(choices[len(anna.given)])

    _answer_while_the_server_is_down(server, anna, choices[20])
    while len(anna.given) < 30:
        anna.answer(choices[len(anna.given)])
    assert anna.count == "30 of 50"
    assert saved(materials, "anna") == anna.given
    assert saved(materials, "ben") == ben.given
    assert len({answer for answer, _ in anna.given}) == 30
    assert "35 answers in" in server.stop(signal.SIGTERM)  # the metric of the last answers is saved
    server.start()
    metrics = [fastdps.load(materials / "judged/run", context) for context in (None, "anna", "ben")]
    assert [metric.judge for metric in metrics] == ["pooled", "anna", "ben"]


def _practise(page):
    assert page.triplet == "practice"
    for key in PRACTICE:
        page.wait(lambda: page.triplet == "practice")
        page.press(key)
    page.wait(lambda: page.triplet not in ("", "practice"))


def _answer_in_two_tabs(browser, server, anna):
    """Answer two triplets in a second tab, the first of them in the other tab as well. Return both tabs."""
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    second = browser.current_window_handle
    same = PageOf(browser, server.address, "anna", anna.given)
    stale = same.triplet
    assert stale == anna_triplet(browser, first)
    same.answer("left")
    same.answer("right")
    browser.switch_to.window(first)
    press = "if (judge.dataset.triplet === arguments[0]) document.getElementById('right').click()"
    browser.execute_script(press, stale)  # in the other tab the answer was left; this one may have noticed by itself
    anna.wait(lambda: anna.triplet not in ("", stale))
    return first, second


def _answer_while_the_server_is_down(server, page, choice):
    """Kill the server, answer, and start it again: the page sends the answer then."""
    server.stop(signal.SIGKILL)
    before = page.triplet
    page.answer(choice, wait=False)
    page.wait(lambda: "No connection" in page.element("banner").text)
    server.start()
    page.wait(lambda: page.triplet not in ("", before))


def anna_triplet(browser, window):
    """Return the triplet that another tab shows, and come back."""
    here = browser.current_window_handle
    browser.switch_to.window(window)
    shown = browser.execute_script("return judge.dataset.triplet")
    browser.switch_to.window(here)
    return shown


def test_an_answer_on_its_way_survives_closing_the_page(browser, server, materials):
    """The server is killed, the person answers and closes the page, and comes back after the server has."""
    browser.execute_script("sessionStorage.clear()")
    carl = PageOf(browser, server.address, "carl")
    carl.skip_practice()
    carl.answer("left")
    server.stop(signal.SIGKILL)
    carl.answer("right", wait=False)
    carl.wait(lambda: carl.element("banner").is_displayed())
    browser.get("about:blank")
    server.start()
    again = PageOf(browser, server.address, "carl")
    again.wait(lambda: again.count == "2 of 10")
    assert saved(materials, "carl") == carl.given


def test_the_page_and_the_results_make_no_foreign_requests(browser, server):
    browser.execute_script("sessionStorage.clear()")
    browser.get_log("browser"), browser.get_log("performance")
    dora = PageOf(browser, server.address, "dora")
    dora.skip_practice()
    dora.answer("left")
    dora.wait(lambda: browser.find_elements(By.CSS_SELECTOR, "#strip li"))
    browser.get(server.address + "results")
    dora.wait(lambda: "dora" in browser.page_source)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert all(url.startswith((server.address, "data:", "chrome")) for url in asked), asked
    assert browser.get_log("browser") == []


@pytest.mark.parametrize(("width", "height"), [(360, 640), (390, 844), (768, 1024), (1280, 720), (1920, 1080)])
def test_everything_to_judge_by_is_in_view(browser, server, width, height):
    resize(browser, width, height, phone=width < 700)
    browser.execute_script("sessionStorage.clear()")
    page = PageOf(browser, server.address, f"eve {width}")
    page.skip_practice()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for name in ("ref", "left", "right", "undo", "neither"):
        box = page.element(name).rect
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= height, name
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width, name
        assert min(box["width"], box["height"]) >= (40 if width < 700 else 20), name
    shown = page.triplet
    page.element("left").click()
    page.wait(lambda: page.triplet not in ("", shown))
    page.element("neither").click()
    page.wait(lambda: page.count == "2 of 10")
    page.element("undo").click()
    page.wait(lambda: page.count == "1 of 10")
    resize(browser, 1280, 800)


def test_text_can_be_read_in_dark_and_in_light(browser, server):
    """The contrast of text to its ground is at least 4.5, as WCAG 2 asks (level AA)."""
    for path in ("", "results"):
        for scheme in ("light", "dark"):
            prefer(browser, scheme)
            browser.get(server.address + path)
            colours = browser.execute_script(_COLOURS)
            grounds = {luminance(colours[name]) for name in ("ground", "card")}
            assert all((ground < 0.2) == (scheme == "dark") for ground in grounds)
            for ink in ("ink", "faint", "accent", "warn"):
                for ground in grounds:
                    low, high = sorted((luminance(colours[ink]), ground))
                    assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, ink)
    prefer(browser, "light")


_COLOURS = """const style = getComputedStyle(document.documentElement);
return Object.fromEntries(["ground", "card", "ink", "faint", "accent", "warn"].map(
  (name) => [name, style.getPropertyValue("--" + name).trim()]))"""


def luminance(colour):
    """Return the relative luminance of #rrggbb (WCAG 2)."""
    values = [int(part, 16) / 255 for part in re.findall("..", colour.removeprefix("#"))]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_beyond_loopback_the_link_works_once(browser, materials, tmp_path):
    with judge_server(materials / "photos", tmp_path / "judged", "--base", str(materials / "base.safetensors"),
                      "--size", "64", "--host", "0.0.0.0") as guarded:  # fmt: skip
        token = guarded.address.partition("?")[2]
        address = f"http://127.0.0.1:{guarded.port}/"
        browser.get(address)
        browser.execute_script("sessionStorage.clear()")
        browser.get(address)
        page = PageOf(browser, f"{address}?{token}", "anna")
        assert "token" not in browser.current_url
        page.skip_practice()
        page.answer("left")
        browser.refresh()
        page.wait(lambda: page.count == "1 of 10")
        browser.delete_all_cookies()
        browser.execute_script("sessionStorage.clear()")
        browser.get(f"{address}?{token}")
        page.wait(lambda: "used already" in page.element("banner").text)
        assert not page.element("judge").is_displayed()


def test_screens_are_not_empty(browser, server):
    """A screenshot has the colours of the images."""
    browser.execute_script("sessionStorage.clear()")
    browser.get(server.address)
    page = PageOf(browser, server.address, "fred")
    page.skip_practice()
    page.wait(
        lambda: browser.execute_script("return [...document.querySelectorAll('#judge img')].every((i) => i.complete)")
    )
    picture = Image.open(io.BytesIO(page.element("ref").screenshot_as_png)).convert("RGB")
    assert len(picture.getcolors(1 << 24)) > 1000
