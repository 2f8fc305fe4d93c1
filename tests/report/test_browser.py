"""Pages in a real browser: no errors, no network, nothing wider than a phone, readable in dark, light and print."""

import base64
import json

import pytest
from axe_core_python.selenium import Axe
from selenium.webdriver.common.by import By

from fastdps.commands.cli import main
from helpers.browser import prefer, resize
from helpers.made_up_judges import make_judged_run
from helpers.made_up_runs import make_run, make_sweep

#: Phones, tablets and screens.
WIDTHS = (360, 390, 700, 1024, 1280, 1920)
#: Texts that are wider than their tile, by the boxes of their lines.
_TOO_WIDE = """return [...document.querySelectorAll(".tile")].flatMap((tile) => {
  const range = document.createRange();
  range.selectNodeContents(tile);
  const right = Math.max(...[...range.getClientRects()].map((box) => box.right));
  return right > tile.getBoundingClientRect().right ? [tile.textContent] : [];
});"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of each kind: whole, with only a config, of a name that is markup, of many judges, of several runs."""
    root = tmp_path_factory.mktemp("runs")
    whole = make_run(root / "whole")
    bare = make_run(root / "bare", scored=False, bapps=False, validation=False)
    for name in ("log.jsonl", "metric.safetensors"):
        (bare / name).unlink()
    hostile = make_run(root / "<img src=x onerror=alert(1)>", [["<svg onload=alert(2)>", "b"], ["b", "c" * 200]])
    names = [f"person-{number}" for number in range(40)] + ["<img src=x onerror=alert(3)>", "x" * 300, "\u202eevil"]
    judged = make_judged_run(root / "judged", names, names=("y" * 300, "<b>.jpg", "c.jpg"))
    sweep = make_sweep(root / "sweep")
    for run in (whole, bare, hostile, judged, sweep):
        assert main(["report", str(run)]) == 0
    assert (
        main(["report", str(whole), str(bare), str(hostile), str(judged), "--out", str(root / "comparison.html")]) == 0
    )
    kinds = {"whole": whole, "bare": bare, "hostile": hostile, "judged": judged, "sweep": sweep}
    reports = {name: run / "report.html" for name, run in kinds.items()}
    return reports | {"comparison": root / "comparison.html"}


@pytest.mark.parametrize("kind", ["whole", "bare", "hostile", "judged", "comparison", "sweep"])
def test_pages_work_in_a_browser(session, pages, kind):
    session.get_log("browser"), session.get_log("performance")  # what came before is not this page's
    session.get(pages[kind].as_uri())
    for width in WIDTHS:
        resize(session, width, phone=width <= 390)
        assert session.execute_script("return document.documentElement.scrollWidth") <= width
        assert session.execute_script(_TOO_WIDE) == []
    assert session.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in session.get_log("performance")]
    requests = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    asked = [r["request"]["url"] for r in requests if r["documentURL"] == pages[kind].as_uri()]  # not by a new tab
    assert {url for url in asked if not url.startswith("data:")} == {pages[kind].as_uri()}
    for picture in session.find_elements(By.TAG_NAME, "img"):
        assert picture.get_attribute("alt")
        assert int(picture.get_attribute("naturalWidth")) > 0


def test_tables_sort_by_a_click(session, pages):
    session.get(pages["whole"].as_uri())
    table = session.find_element(By.CSS_SELECTOR, "table.sortable")
    change = table.find_elements(By.TAG_NAME, "button")[3]
    read = "return [...arguments[0].tBodies[0].rows].map((row) => row.cells[3].textContent.replace('\u2212', '-'))"
    for sort, reverse in (("ascending", False), ("descending", True)):
        session.execute_script("arguments[0].click()", change)
        values = [float(text) for text in session.execute_script(read, table)]
        assert values == sorted(values, reverse=reverse)
        assert len(set(values)) > 10
        assert table.find_elements(By.TAG_NAME, "th")[3].get_attribute("aria-sort") == sort


def test_text_can_be_read_in_dark_and_in_light(session, pages):
    brightness = {}
    for scheme in ("light", "dark"):
        prefer(session, scheme)
        session.get(pages["whole"].as_uri())
        brightness[scheme] = [
            sum(session.execute_script(_COLOUR, selector, name)) for selector, name in (("body", "color"), *_GROUNDS)
        ]
    for scheme, darker in (("light", 0), ("dark", 1)):
        ink, *grounds = brightness[scheme]
        assert all((ground < ink) == bool(darker) and abs(ground - ink) > 450 for ground in grounds)


_GROUNDS = (("body", "background-color"), ("figure", "background-color"), (".tile", "background-color"))
_COLOUR = """const style = getComputedStyle(document.querySelector(arguments[0]));
return style.getPropertyValue(arguments[1]).match(/[0-9]+/g).slice(0, 3).map(Number)"""


@pytest.mark.parametrize("kind", ["whole", "judged"])
def test_a_page_prints_on_few_sheets(session, pages, kind):
    session.get(pages[kind].as_uri())
    printed = session.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    sheets = base64.b64decode(printed["data"]).count(b"/Type /Page\n")
    assert 2 <= sheets <= 6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "hostile", "judged", "comparison", "sweep"])
def test_axe_finds_no_barriers(session, pages, kind):
    """Contrast, names, roles, order of headings and more, on a light screen and on a dark phone."""
    session.set_script_timeout(120)
    for width, scheme in ((1280, "light"), (390, "dark")):
        prefer(session, scheme)
        resize(session, width, phone=width == 390)
        session.get(pages[kind].as_uri())
        found = Axe().run(session)
        assert {one["id"]: one["nodes"][0]["html"] for one in found["violations"]} == {}
        assert len(found["passes"]) > 20
