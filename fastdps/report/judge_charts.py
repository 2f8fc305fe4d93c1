"""Charts of agreement with judges, as inline SVG: values with intervals, calibration, and losses of a choice."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fastdps.report.charts import WIDTH, Axis, Plot, Point, axis_over, svg
from fastdps.report.markup import element

#: Widest name beside a row, in columns of about 6 pixels; longer names are cut, and their tooltip is complete.
NAME_COLUMNS = 16
#: Layout of rows in pixels: right margin, height of a row, of an axis, distance of the marks of a row.
_RIGHT, _PITCH, _AXIS, _APART = 14.0, 27.0, 34.0, 7.0


@dataclass(frozen=True)
class Mark:
    """A value with its interval.

    Attributes:
        kind: "before", "pooled" or "own", which decides shape and colour.
        value: The value.
        low: Lower end of its interval.
        high: Upper end.
        title: Its tooltip.
    """

    kind: str
    value: float
    low: float
    high: float
    title: str


@dataclass(frozen=True)
class IntervalRow:
    """The values of one judge.

    Attributes:
        name: The name of the judge.
        marks: Its values, drawn from top to bottom.
        ceiling: The largest possible value, None if it is not drawn.
        is_separate: Draw a line below the row.
    """

    name: str
    marks: Sequence[Mark]
    ceiling: float | None = None
    is_separate: bool = False


def shorten(name: str, columns: int = NAME_COLUMNS) -> str:
    """Return a name of at most this many columns, cut with an ellipsis. East Asian characters take two.

    Characters without a shape are left out: some change the direction of the text.
    """
    used, name = 0, "".join(character for character in name if character.isprintable())
    for place, character in enumerate(name):
        used += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used > columns:
            return name[: max(1, place - 1)] + "\N{HORIZONTAL ELLIPSIS}"
    return name


def interval_rows(
    rows: Sequence[IntervalRow], x_label: str, description: str, *, gap: tuple[int, str] | None = None
) -> Markup:
    """Draw the values of judges, one row each, with their intervals.

    Args:
        rows: The rows, at least one.
        x_label: Label of the axis.
        description: Text for screen readers.
        gap: Number of rows above a gap that stands for judges that are not shown, and its text; None without a gap.

    Returns:
        The SVG element.
    """
    left = 12 + 6.6 * max(len(shorten(row.name)) for row in rows)
    values = [end for row in rows for mark in row.marks for end in (mark.low, mark.high)]
    span = max(values) - min(values)
    # A far ceiling would squeeze the values; it is drawn as an arrow.
    near = [row.ceiling for row in rows if row.ceiling is not None and row.ceiling <= max(values) + span / 2]
    axis = axis_over(x_label, [*values, *near])
    gap_after, gap_text = gap or (len(rows), "")
    height = _PITCH * (len(rows) + bool(gap)) + _AXIS + 4

    def at(value: float) -> float:
        return left + (value - axis.low) / (axis.high - axis.low) * (WIDTH - left - _RIGHT)

    bottom = height - _AXIS
    parts = [_x_axis(axis, at, bottom, left)]
    for number, row in enumerate(rows):
        y = 4 + _PITCH * (number + 0.5 + (number >= gap_after))
        parts.append(_row(row, at, y, left, beyond=row.ceiling is not None and row.ceiling > axis.high))
    if gap:
        y, middle = 4 + _PITCH * (gap_after + 0.5), WIDTH / 2
        half = 3.2 * len(gap_text) + 6
        for x1, x2 in ((6.0, middle - half), (middle + half, WIDTH - _RIGHT)):
            parts += [element("line", class_="diagonal", x1=x1, x2=x2, y1=y, y2=y)]
        parts.append(element("text", gap_text, class_="tick", x=middle, y=y + 3.5, text_anchor="middle"))
    return svg(description, height, *parts)


def _x_axis(axis: Axis, at: Callable[[float], float], bottom: float, left: float) -> Markup:
    parts = []
    for tick in axis.ticks():
        x = at(tick)
        parts.append(element("line", class_="grid", x1=x, x2=x, y1=2.0, y2=bottom))
        parts.append(element("text", axis.text(tick), class_="tick", x=x, y=bottom + 13, text_anchor="middle"))
    middle = (left + WIDTH - _RIGHT) / 2
    parts.append(element("text", axis.label, class_="label", x=middle, y=bottom + 28, text_anchor="middle"))
    return Markup("").join(parts)


def _row(row: IntervalRow, at: Callable[[float], float], y: float, left: float, *, beyond: bool) -> Markup:
    name = element("text", element("title", row.name), shorten(row.name), x=left - 8, y=y + 3.8, text_anchor="end")
    parts = [name]
    first = y - _APART * (len(row.marks) - 1) / 2
    if row.ceiling is not None:
        title = element("title", f"{row.name}: the largest possible value is {row.ceiling:.1f}")
        half = _PITCH / 2 - 3
        if beyond:
            x = WIDTH - _RIGHT
            arrow = f"{x + 3:.1f},{y - 4:.1f} {x + 10:.1f},{y:.1f} {x + 3:.1f},{y + 4:.1f}"
            parts.append(element("polygon", title, class_="ceiling", points=arrow))
        else:
            x = at(row.ceiling)
            parts.append(element("line", title, class_="ceiling", x1=x, x2=x, y1=y - half, y2=y + half))
    for number, mark in enumerate(row.marks):
        place = first + _APART * number
        line = element("line", class_="interval", x1=at(mark.low), x2=at(mark.high), y1=place, y2=place)
        shape = _shape(mark.kind, at(mark.value), place)
        parts.append(element("g", element("title", mark.title), line, shape, class_=f"mark {mark.kind}"))
    if row.is_separate:
        edge = y + _PITCH / 2
        parts.append(element("line", class_="rule", x1=6.0, x2=WIDTH - _RIGHT, y1=edge, y2=edge))
    return element("g", *parts)


def _shape(kind: str, x: float, y: float) -> Markup:
    """Return the symbol of a kind, which differs in shape as well as in colour."""
    if kind == "pooled":
        return element("rect", x=x - 2.7, y=y - 2.7, width=5.4, height=5.4)
    return element("circle", cx=x, cy=y, r=3.2)


def key(kind: str) -> Markup:
    """Return the symbol of a kind of mark, or of the ceiling, for a legend."""
    if kind == "ceiling":
        content = element("line", class_="ceiling", x1=12.0, x2=12.0, y1=0.0, y2=11.0)
    else:
        line = element("line", class_="interval", x1=1.0, x2=23.0, y1=5.5, y2=5.5)
        content = element("g", line, _shape(kind, 12.0, 5.5), class_=f"mark {kind}")
    return element("svg", content, viewBox="0 0 24 11", aria_hidden="true")


def calibration(bins: Sequence[tuple[float, float, float]], description: str) -> Markup:
    """Draw observed against predicted shares in percent, with the diagonal where both are equal.

    Args:
        bins: Predicted and observed share in percent, and number of votes, of each bin.
        description: Text for screen readers.

    Returns:
        The SVG element. The area of a dot is proportional to its votes.
    """
    both = axis_over("", [50.0, 100.0, *(observed for _, observed, _ in bins)])
    x_axis = Axis("probability that the metric gives to its choice, %", both.low, both.high)
    plot = Plot(x_axis, Axis("votes that agree, %", both.low, both.high), height=WIDTH)
    (x1, y1), (x2, y2) = plot.at(both.low, both.low), plot.at(both.high, both.high)
    most = max(votes for *_, votes in bins)
    places = [plot.at(predicted, observed) for predicted, observed, _ in bins]
    dots = []
    for (cx, cy), (predicted, observed, votes) in zip(places, bins, strict=True):
        title = f"predicted {predicted:.1f} %, observed {observed:.1f} %, {votes:,.0f} votes"
        radius = max(1.5, 6 * math.sqrt(votes / most))
        dots.append(element("circle", element("title", title), class_="bin", cx=cx, cy=cy, r=radius))
    return svg(
        description,
        WIDTH,
        plot.frame(),
        element("line", class_="diagonal", x1=x1, y1=y1, x2=x2, y2=y2),
        _polyline(places),
        *dots,
    )


@dataclass(frozen=True)
class _Categories(Axis):
    """An axis of named places 0, 1, 2, ..."""

    names: Sequence[str] = ()

    def ticks(self) -> list[float]:
        return [float(place) for place in range(len(self.names))]

    def text(self, value: float) -> str:
        return self.names[int(value)]


def choice(values: Sequence[tuple[str, float]], chosen: str, x_label: str, description: str) -> Markup:
    """Draw the loss of each candidate of a setting, and mark the chosen one.

    Args:
        values: Name and loss of each candidate, at least one.
        chosen: Name of the chosen one.
        x_label: Label of the x axis.
        description: Text for screen readers.

    Returns:
        The SVG element.
    """
    names = [name for name, _ in values]
    x_axis = _Categories(x_label, -0.5, len(names) - 0.5, names)
    plot = Plot(x_axis, axis_over("", [value for _, value in values]), height=200.0)
    places = [plot.at(place, value) for place, (_, value) in enumerate(values)]
    dots = []
    for (cx, cy), (name, value) in zip(places, values, strict=True):
        kind, radius = ("bin chosen", 6.0) if name == chosen else ("bin", 3.0)
        title = f"{name}: {value:.4f}" + (", chosen" if name == chosen else "")
        dots.append(element("circle", element("title", title), class_=kind, cx=cx, cy=cy, r=radius))
    return svg(description, 200.0, plot.frame(), _polyline(places), *dots)


def _polyline(places: Sequence[Point]) -> Markup:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return element("polyline", class_="curve line-0", points=points)
