"""Charts: what is drawn where, read back from the SVG."""

import itertools
import re
from xml.etree import ElementTree

import pytest

from fastdps.report.charts import (
    MOST_POINTS,
    WIDTH,
    Axis,
    Line,
    axis_over,
    heat_map,
    lines,
    ramp,
    scatter,
    stacked_bars,
    thinned,
)
from fastdps.report.markup import element, signed


def parsed(chart):
    return ElementTree.fromstring(str(chart))


def test_elements_escape_what_they_are_given():
    made = str(element("text", "<b>&", title='" onload="x', font_size=1.25))
    assert made == '<text title="&#34; onload=&#34;x" font-size="1.2">&lt;b&gt;&amp;</text>'
    assert ElementTree.fromstring(made).attrib["title"] == '" onload="x'


@pytest.mark.parametrize(
    ("values", "from_zero"),
    [([0.5], False), ([0.21, 0.97], False), ([3, 3], True), ([0, 0], True), ([1e-7, 2e-7], False), ([5, 123456], True)],
)
def test_an_axis_holds_its_values_with_few_round_ticks(values, from_zero):
    axis = axis_over("", values, from_zero=from_zero)
    slack = 1e-9 * (axis.high - axis.low)
    assert all(axis.low - slack <= value <= axis.high + slack for value in values)
    assert 2 <= len(axis.ticks()) <= 9
    assert all(axis.low - slack <= tick <= axis.high + slack for tick in axis.ticks())
    assert len({axis.text(tick) for tick in axis.ticks()}) == len(axis.ticks())
    assert not from_zero or axis.low == 0


def test_ticks_are_multiples_of_a_round_step():
    assert Axis("", 0.2, 1.0).ticks() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_points_of_a_scatter_are_above_the_diagonal_where_they_are_better():
    points = [(0.3, 0.8, "a"), (0.8, 0.3, "b"), (0.5, 0.5, "c")]
    svg = parsed(scatter(points, "x", "y", "what"))
    diagonal = next(line for line in svg.iter("line") if line.get("class") == "diagonal")
    x1, y1, x2, y2 = (float(diagonal.attrib[key]) for key in ("x1", "y1", "x2", "y2"))
    found = {}
    for dot in svg.iter("circle"):
        x, y = float(dot.attrib["cx"]), float(dot.attrib["cy"])
        above = (y1 + (x - x1) * (y2 - y1) / (x2 - x1)) - y
        found[dot[0].text] = (round(above), dot.get("class"))
    assert found["a"][0] > 0 > found["b"][0]
    assert found["c"][0] == 0
    assert [kind for _, kind in found.values()] == ["better", "worse", "worse"]


def test_curves_are_where_their_values_are():
    svg = parsed(lines([Line("a", [(0, 0), (50, 1), (100, 2)]), Line("b", [(100, 1)])], "x", "y", "what"))
    (curve,) = svg.iter("polyline")
    (dot,) = svg.iter("circle")
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in curve.attrib["points"].split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y2 < y1 < y0
    assert (float(dot.attrib["cx"]), float(dot.attrib["cy"])) == (x2, y1)


@pytest.mark.parametrize("count", [1, MOST_POINTS, MOST_POINTS + 1, 10 * MOST_POINTS + 7])
def test_thinning_keeps_the_end_and_few_points(count):
    points = [(float(n), 0.0) for n in range(count)]
    kept = thinned(points)
    assert kept[-1] == points[-1]
    assert min(count, MOST_POINTS // 2) <= len(kept) <= MOST_POINTS
    assert len({round(b[0] - a[0]) for a, b in itertools.pairwise(kept)}) <= 1


def test_heat_maps_tell_above_from_below_and_leave_out_what_is_not_known():
    svg = parsed(heat_map(["a", "b"], [[None, 0.9], [0.1, None]], "what", middle=0.5, span=0.5))
    cells = {cell[0].text: (cell.get("class"), float(cell.attrib["fill-opacity"])) for cell in svg.iter("rect")}
    assert cells == {
        "a closer than b: 0.90": ("cell above", pytest.approx(0.54)),
        "b closer than a: 0.10": ("cell below", pytest.approx(0.54)),
    }


@pytest.mark.parametrize("count", [2, 6, 9])
def test_heat_maps_stay_within_their_width(count):
    names = ["translate"] * count
    svg = parsed(heat_map(names, [[0.5] * count] * count, "what", middle=0.5, span=0.5))
    assert max(float(cell.attrib["x"]) + float(cell.attrib["width"]) for cell in svg.iter("rect")) < WIDTH


def test_bars_are_as_wide_as_their_shares():
    svg = parsed(stacked_bars([("one", [0.25, 0.75]), ("two", [1.0, 0.0])], ["a", "b"], "what"))
    widths = [float(part.attrib["width"]) for part in svg.iter("rect")]
    assert widths == pytest.approx([WIDTH / 4, 3 * WIDTH / 4, WIDTH, 0])
    titles = [part[0].text for part in svg.iter("rect")]
    assert titles == ["a: 25.0%", "b: 75.0%", "a: 100.0%", "b: 0.0%"]


@pytest.mark.parametrize("count", [1, 2, 5, 14])
def test_colours_of_ordered_things_differ_and_text_on_them_can_be_read(count):
    colours = [ramp(number, count) for number in range(count)]
    assert len({colour for colour, _ in colours}) == count
    for colour, ink in colours:
        assert contrast(colour, "#000000" if ink == "#000" else "#ffffff") > 3


def contrast(a: str, b: str) -> float:
    """The contrast of two colours, by WCAG 2.1."""
    values = []
    for colour in (a, b):
        channels = [int(part, 16) / 255 for part in re.findall("[0-9a-f]{2}", colour)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        values.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(values) + 0.05) / (min(values) + 0.05)


def test_signs():
    assert [signed(v) for v in (0.126, -0.126, 0.001, -0.001)] == ["+0.13", "\N{MINUS SIGN}0.13", "0.00", "0.00"]
