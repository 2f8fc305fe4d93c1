"""The contexts of a page in a real browser: search, points and rows by pointer, finger and keyboard, downloads."""

import csv
import itertools
import json
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from fastdps.commands.cli import main
from helpers.browser import resize
from helpers.made_up_judges import make_judged_run
from helpers.made_up_runs import NAMES, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of all 720 contexts, with its page."""
    made = make_run(tmp_path_factory.mktemp("runs") / "run", [list(one) for one in itertools.permutations(NAMES)])
    assert main(["report", str(made)]) == 0
    return made


@pytest.fixture
def page(session, run):
    """The page, freshly loaded on a wide screen."""
    resize(session, 1280)
    session.get((run / "report.html").as_uri())
    return session


def contexts_of(run: Path) -> list[dict]:
    return json.loads((run / "scores.json").read_text())["contexts"]


def shown(session) -> set[str]:
    """The rankings of the rows that are shown; the points that are faded must be those of the other rows."""
    rows, faded = session.execute_script("""
      const rows = [...document.querySelectorAll("tr[data-context]")].filter((row) => row.checkVisibility());
      return [rows.map((row) => [row.dataset.context, row.cells[0].textContent]),
              [...document.querySelectorAll("circle.out")].map((dot) => dot.dataset.context)];""")
    assert {number for number, _ in rows} | set(faded) == {str(number) for number in range(720)}
    assert len(rows) + len(faded) == 720
    return {text for _, text in rows}


def readout(session) -> str:
    return session.find_element(By.ID, "readout").text


def focused(session) -> tuple[str, str]:
    """The tag and the context of the element that has the focus."""
    return tuple(
        session.execute_script("const a = document.activeElement; return [a.tagName, a.dataset.context ?? '']")
    )


def test_contexts_are_found_by_names_in_order_and_by_rank(page, run):
    rankings = [tuple(one["ranking"]) for one in contexts_of(run)]
    status = page.find_element(By.CSS_SELECTOR, "#filters [role=status]")
    assert status.text.startswith("720 of 720 contexts; mean 0.")

    def texts(wanted) -> set[str]:
        return {" < ".join(ranking) for ranking in rankings if wanted(ranking)}

    page.find_element(By.CSS_SELECTOR, "input[type=search]").send_keys("Blur < dark")
    assert shown(page) == texts(lambda one: one.index("blur") < one.index("darken"))
    assert status.text.startswith("360 of 720 contexts")
    ranks = page.find_elements(By.CSS_SELECTOR, "#filters select")
    Select(ranks[0]).select_by_visible_text("rotate")
    Select(ranks[5]).select_by_visible_text("darken")
    found = texts(lambda one: one[0] == "rotate" and one[5] == "darken")
    assert shown(page) == found
    means = [
        sum(one[key] for one in contexts_of(run) if " < ".join(one["ranking"]) in found) / len(found)
        for key in ("baseline_accuracy", "adapted_accuracy")
    ]
    said = [float(word) for word in status.text.replace(",", "").split() if word.startswith("0.")]
    assert said == pytest.approx(means, abs=1e-3)
    Select(ranks[0]).select_by_visible_text("darken")
    assert shown(page) == set()
    assert status.text == "0 of 720 contexts"
    page.find_element(By.CSS_SELECTOR, "#filters button").click()
    WebDriverWait(page, 20).until(lambda _: status.text.startswith("720 of 720"))
    assert len(shown(page)) == 720


_BESIDE = """const dot = document.querySelector(`circle[data-context="${arguments[0]}"]`).getBoundingClientRect();
return [dot.x + dot.width / 2, dot.y + dot.height / 2]"""
_IN_SIGHT = """const row = document.querySelector("tr[aria-selected]"), box = row.closest(".scroll");
const [a, b] = [row.getBoundingClientRect(), box.getBoundingClientRect()];
return [row.dataset.context, a.top >= b.top && a.bottom <= b.bottom]"""


def press(session, kind: str, x: float, y: float) -> None:
    """Move the pointer to a place, or tap it."""
    if kind == "move":
        session.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})
    else:
        session.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        session.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def alone(contexts: list[dict]) -> int:
    """The context whose point is the farthest from others."""

    def room(number: int) -> float:
        x, y = (contexts[number][key] for key in ("baseline_accuracy", "adapted_accuracy"))
        return min(
            (x - other["baseline_accuracy"]) ** 2 + (y - other["adapted_accuracy"]) ** 2
            for other in contexts
            if other is not contexts[number]
        )

    return max(range(len(contexts)), key=room)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_point_shows_its_ranking_and_leads_to_its_row(page, run, width):
    contexts = contexts_of(run)
    number = alone(contexts)
    ranking = " < ".join(contexts[number]["ranking"])
    resize(page, width, phone=width < 500)
    assert "Point at a context" in readout(page)
    page.execute_script("document.querySelector('svg.contexts').scrollIntoView({block: 'center', behavior: 'instant'})")
    x, y = page.execute_script(_BESIDE, str(number))
    if width > 500:
        press(page, "move", x + 3, y + 2)
        WebDriverWait(page, 20).until(lambda _: ranking in readout(page))
        assert page.find_element(By.CSS_SELECTOR, "tr.current").get_attribute("data-context") == str(number)
        page.find_element(By.CSS_SELECTOR, f'circle[data-context="{number}"]').click()
    else:
        page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
        press(page, "tap", x + 3, y + 2)
    WebDriverWait(page, 20).until(lambda _: page.find_elements(By.CSS_SELECTOR, "tr[aria-selected]"))
    assert page.execute_script(_IN_SIGHT) == [str(number), True]
    assert ranking in readout(page)
    assert f"{contexts[number]['adapted_accuracy']:.3f} after" in readout(page)
    for place in page.find_elements(By.CSS_SELECTOR, ".chosen"):  # the box "Use this metric"
        assert place.text == ",".join(contexts[number]["ranking"])
    page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_a_row_leads_to_its_point(page):
    row = page.find_element(By.CSS_SELECTOR, "tbody tr:nth-child(4)")
    row.click()
    chosen = page.find_element(By.CSS_SELECTOR, "circle[aria-selected]")
    assert chosen.get_attribute("data-context") == row.get_attribute("data-context")
    ring = page.find_element(By.CSS_SELECTOR, "circle.ring")
    assert [ring.get_attribute(name) for name in ("cx", "cy")] == [chosen.get_attribute(name) for name in ("cx", "cy")]


def test_all_of_it_works_by_keyboard(page, run):
    contexts = contexts_of(run)
    by_after, by_before = (
        [str(n) for n in sorted(range(720), key=lambda n: contexts[n][key])]
        for key in ("adapted_accuracy", "baseline_accuracy")
    )
    body = page.switch_to.active_element
    for _ in range(60):  # from the top of the page to the chart: one stop for all its points
        body.send_keys(Keys.TAB)
        body = page.switch_to.active_element
        if focused(page)[0] == "circle":
            break
    assert focused(page) == ("circle", by_after[0])  # the hardest
    assert " < ".join(contexts[int(by_after[0])]["ranking"]) in readout(page)
    body.send_keys(Keys.ARROW_UP)
    assert round(contexts[int(focused(page)[1])]["adapted_accuracy"], 3) == round(
        contexts[int(by_after[1])]["adapted_accuracy"], 3
    )
    page.switch_to.active_element.send_keys(Keys.END)
    last = focused(page)[1]
    assert contexts[int(last)]["adapted_accuracy"] == pytest.approx(
        contexts[int(by_after[-1])]["adapted_accuracy"], abs=1e-3
    )
    page.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    place = by_before.index(last)
    assert contexts[int(focused(page)[1])]["baseline_accuracy"] == pytest.approx(
        contexts[int(by_before[place - 1])]["baseline_accuracy"], abs=2e-3
    )
    chosen = focused(page)[1]
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert focused(page) == ("TR", chosen)
    assert page.execute_script(_IN_SIGHT) == [chosen, True]
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert page.execute_script(outline) == "solid"
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    below = focused(page)
    assert below[0] == "TR"
    assert below[1] != chosen
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert focused(page) == ("circle", below[1])


@pytest.mark.slow
def test_roles_and_names_are_those_that_assistive_technology_reads(page):
    nodes = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            found.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert len(found["option"]) >= 720
    assert sum(" before, " in name for name in found["option"]) == 720
    assert "Contexts" in found["search"]
    assert all(found["button"])
    assert all(found["link"])
    assert found["main"] == [""]
    assert len([name for name in found["ComboBoxSelect" if "ComboBoxSelect" in found else "combobox"] if name]) == 6
    assert all(found["searchbox"])
    assert {"navigation", "grid", "status", "listbox"} <= set(found)


def test_nothing_moves_by_itself(page):
    """For people who prefer reduced motion, and for all others."""
    moving = """return [...document.querySelectorAll("*")].filter((one) => {
      const style = getComputedStyle(one);
      return style.scrollBehavior !== "auto" || style.animationName !== "none" || style.transitionDuration !== "0s";
    }).length"""
    assert page.execute_script(moving) == 0


def saved(session, directory: Path, button, name: str) -> str:
    """Click a button that saves a file, and return its content."""
    behaviour = {"behavior": "allow", "downloadPath": str(directory)}
    session.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    session.execute_script("arguments[0].click()", button)
    file = directory / name
    WebDriverWait(session, 30).until(lambda _: file.exists() and file.stat().st_size > 0)
    return file.read_bytes().decode()


def test_tables_and_scores_are_saved_from_the_page(page, run, tmp_path):
    scores = json.loads((run / "scores.json").read_text())
    everything, table = (
        page.find_element(By.CSS_SELECTOR, f'button[data-file="{name}"]') for name in ("run.json", "run-contexts.csv")
    )
    content = json.loads(saved(page, tmp_path, everything, "run.json"))
    assert content == {"run": "run", "settings": content["settings"], **scores}
    rows = list(csv.DictReader(saved(page, tmp_path, table, "run-contexts.csv").splitlines()))
    assert len(rows) == 720
    for row, context in zip(rows, scores["contexts"], strict=True):
        assert row["ranking"].split(",") == context["ranking"]
        assert float(row["adapted_accuracy"]) == context["adapted_accuracy"]
        assert float(row["intervals.change.low"]) == context["intervals"]["change"]["low"]


@pytest.mark.slow
def test_names_of_judges_are_saved_whatever_they_hold(session, tmp_path):
    judges = ['a "quoted", name', "two\nlines", "plain"]
    run = make_judged_run(tmp_path / "run", judges)
    assert main(["report", str(run)]) == 0
    session.get((run / "report.html").as_uri())
    button = session.find_element(By.CSS_SELECTOR, 'button[data-file="run-judges.csv"]')
    text = saved(session, tmp_path, button, "run-judges.csv")
    rows = list(csv.DictReader(text.splitlines(keepends=True)))
    assert [row["name"] for row in rows] == judges
    scores = json.loads((run / "scores.json").read_text())["judgements"]["judges"]
    assert [float(row["votes.after.value"]) for row in rows] == [
        scores[name]["votes"]["after"]["value"] for name in judges
    ]
