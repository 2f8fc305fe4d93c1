"""Charts as SVG that stands in a page: no script, colours from the page's style, a title under the pointer.

All are about as wide as a phone, so that their text keeps its size there; a page puts them side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fastdps.report.markup import element, signed

WIDTH, HEIGHT = 360.0, 250.0
#: Free space around the area of a plot: left, right, top, bottom.
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 12.0, 40.0
#: Colours of lines: `line-0`, `line-1`, ... of the page's style.
COLOURS = 6
#: A line has no more points than can be told apart.
MOST_POINTS = 300
#: Colours of ordered things, from the first to the last: viridis (Smith & van der Walt 2015), without its ends.
RAMP = ((65, 68, 135), (42, 120, 142), (34, 168, 132), (122, 209, 81), (224, 227, 60))
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve: its name in the legend and its points, by rising x."""

    name: str
    points: Sequence[Point]
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """From where to where an axis goes, and what it shows."""

    label: str
    low: float
    high: float

    def ticks(self) -> list[float]:
        """About five round numbers."""
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def text(self, value: float) -> str:
        """A tick's text."""
        if abs(value) >= 10_000:
            return f"{value / 1000:,.0f}k"
        digits = max(0, -math.floor(math.log10(_round_step((self.high - self.low) / 5)) + 1e-9))
        return f"{value:,.{digits}f}"


def axis_over(label: str, values: Sequence[float], *, from_zero: bool = False) -> Axis:
    """An axis that holds all values, with round ends."""
    low, high = (0.0 if from_zero else min(values)), max(values)
    if high <= low:
        low, high = (low, low + 1) if from_zero else (low - 0.5, high + 0.5)
    step = _round_step((high - low) / 5)
    return Axis(label, math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


class _Plot:
    """The frame of a chart: axes with ticks and labels, and where a value lies."""

    def __init__(self, x: Axis, y: Axis, height: float = HEIGHT) -> None:
        self._x, self._y, self._height = x, y, height

    def at(self, x: float, y: float) -> Point:
        """The place of a value."""
        across = (x - self._x.low) / (self._x.high - self._x.low)
        up = (y - self._y.low) / (self._y.high - self._y.low)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            self._height - BOTTOM - up * (self._height - TOP - BOTTOM),
        )

    def frame(self) -> Markup:
        """Grid, ticks and labels."""
        left, bottom = self.at(self._x.low, self._y.low)
        right, top = self.at(self._x.high, self._y.high)
        parts = []
        for tick in self._y.ticks():
            y = self.at(self._x.low, tick)[1]
            parts.append(element("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
            parts.append(element("text", self._y.text(tick), class_="tick", x=left - 5, y=y + 3.5, text_anchor="end"))
        for tick in self._x.ticks():
            x = self.at(tick, self._y.low)[0]
            parts.append(element("line", class_="grid", x1=x, x2=x, y1=top, y2=bottom))
            parts.append(element("text", self._x.text(tick), class_="tick", x=x, y=bottom + 14, text_anchor="middle"))
        middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
        turned = f"rotate(-90 11 {middle_y:.1f})"
        parts.append(
            element("text", self._x.label, class_="label", x=middle_x, y=self._height - 6, text_anchor="middle")
        )
        parts.append(
            element("text", self._y.label, class_="label", x=11, y=middle_y, text_anchor="middle", transform=turned)
        )
        return Markup("").join(parts)


def _chart(description: str, height: float, *children: str, width: float = WIDTH) -> Markup:
    return element("svg", *children, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=description)


def scatter(points: Sequence[tuple[float, float, str]], x_label: str, y_label: str, description: str) -> Markup:
    """Points (x, y, title) over one common range, with the diagonal on which both are equal."""
    both = axis_over("", [value for x, y, _ in points for value in (x, y)])
    plot = _Plot(Axis(x_label, both.low, both.high), Axis(y_label, both.low, both.high), height=WIDTH)
    (x1, y1), (x2, y2) = plot.at(both.low, both.low), plot.at(both.high, both.high)
    dots = []
    for x, y, title in points:
        cx, cy = plot.at(x, y)
        kind = "better" if y > x else "worse"
        dots.append(element("circle", element("title", title), class_=kind, cx=cx, cy=cy, r=3))
    return _chart(
        description,
        WIDTH,
        plot.frame(),
        element("line", class_="diagonal", x1=x1, y1=y1, x2=x2, y2=y2),
        element("g", *dots, class_="dots"),
    )


def lines(curves: Sequence[Line], x_label: str, y_label: str, description: str, *, y_from_zero: bool = False) -> Markup:
    """Curves over one common range; the n-th has the n-th colour."""
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    x_axis = Axis(x_label, min(0.0, *xs), max(xs)) if max(xs) > 0 else axis_over(x_label, xs)
    plot = _Plot(x_axis, axis_over(y_label, ys, from_zero=y_from_zero))
    drawn = []
    for number, curve in enumerate(curves):
        places = [plot.at(x, y) for x, y in thinned(curve.points)]
        shape = f"curve line-{number % COLOURS}" + (" dashed" if curve.dashed else "")
        title = element("title", curve.name)
        if len(places) == 1:
            (cx, cy) = places[0]
            drawn.append(element("circle", title, class_=f"dot {shape}", cx=cx, cy=cy, r=3))
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            drawn.append(element("polyline", title, class_=shape, points=path))
    return _chart(description, HEIGHT, plot.frame(), *drawn)


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many of the points, evenly, the last one among them."""
    stride = max(1, -(-len(points) // most))
    return list(points[::-1][::stride][::-1])


def heat_map(
    names: Sequence[str], values: Sequence[Sequence[float | None]], description: str, *, middle: float, span: float
) -> Markup:
    """A square of cells, row by row. Colours tell what is above `middle` from what is below, up to `span` from it."""
    label, top, height = 60.0, 58.0, 30.0
    cell = (WIDTH - label - 26) / len(names)  # the last slanted name needs room on the right
    parts = []
    for i, name in enumerate(names):
        x, y = label + (i + 0.5) * cell, top + (i + 0.5) * height
        parts.append(element("text", name, class_="tick", x=label - 5, y=y + 3.5, text_anchor="end"))
        parts.append(
            element("text", name, class_="tick", x=x - 4, y=top - 6, transform=f"rotate(-45 {x - 4:.1f} {top - 6:.1f})")
        )
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value is None:
                continue
            x, y = label + j * cell, top + i * height
            strength = min(1.0, abs(value - middle) / span)
            # Where a cell is filled to the full, text on it still has contrast enough, in dark and light.
            kind = "above" if value >= middle else "below"
            text = signed(value) if middle == 0 else f"{value:.2f}"
            box = element(
                "rect",
                element("title", f"{names[i]} closer than {names[j]}: {text}"),
                class_=f"cell {kind}",
                x=x + 1,
                y=y + 1,
                width=cell - 2,
                height=height - 2,
                fill_opacity=f"{0.06 + 0.6 * strength:.2f}",
            )
            number = element("text", text, class_="value", x=x + cell / 2, y=y + height / 2 + 3.5, text_anchor="middle")
            parts += [box, number]
    return _chart(description, top + height * len(names) + 4, *parts)


def stacked_bars(rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], description: str) -> Markup:
    """One bar a row below its title; its parts are shares that add up to one, in the order of `names`."""
    pitch, thick = 42.0, 18.0
    parts = []
    for number, (title, shares) in enumerate(rows):
        y, x = number * pitch, 0.0
        size = min(10.5, 1.85 * WIDTH / max(1, len(title)))  # so that a long title fits
        parts.append(element("text", title, class_="tick", x=0, y=y + 13, style=f"font-size:{size:.1f}px"))
        for part, share in enumerate(shares):
            width = share * WIDTH
            colour, ink = ramp(part, len(shares))
            box = element(
                "rect",
                element("title", f"{names[part]}: {share:.1%}"),
                class_="part",
                style=f"fill:{colour}",
                x=x,
                y=y + 18,
                width=width,
                height=thick,
            )
            parts.append(box)
            if share > 0.085:
                text = f"{100 * share:.0f} %"
                place = {"x": x + width / 2, "y": y + 31, "text_anchor": "middle", "style": f"fill:{ink}"}
                parts.append(element("text", text, class_="value", **place))
            x += width
    return _chart(description, pitch * len(rows), *parts)


def ramp(number: int, count: int) -> tuple[str, str]:
    """The colour of one of `count` ordered things, and that of text on it."""
    at = number / max(1, count - 1) * (len(RAMP) - 1)
    low = min(int(at), len(RAMP) - 2)
    rgb = [a + (b - a) * (at - low) for a, b in zip(RAMP[low], RAMP[low + 1], strict=True)]
    luminance = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    return "#" + "".join(f"{round(value):02x}" for value in rgb), "#000" if luminance > 115 else "#fff"
