"""Charts as inline SVG: without scripts, coloured by the style sheet of the page, with tooltips.

Each is about as wide as a phone, so that its text is not scaled down there; a page puts them side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fastdps.report.markup import element, signed

WIDTH, HEIGHT = 360.0, 250.0
#: Margins of a plot: left, right, top, bottom.
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 12.0, 40.0
#: Number of line colours: the classes `line-0`, `line-1`, ... of the style sheet.
COLOURS = 6
#: Largest number of points of a line; more could not be distinguished.
MOST_POINTS = 300
#: Colour ramp of ordered items: viridis (Smith & van der Walt 2015), without its ends.
RAMP = ((65, 68, 135), (42, 120, 142), (34, 168, 132), (122, 209, 81), (224, 227, 60))
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: Its name in the legend.
        points: Its points (x, y), x ascending.
        dashed: Draw a dashed line.
    """

    name: str
    points: Sequence[Point]
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """The label and the range of an axis.

    Attributes:
        label: The quantity and its unit.
        low: Value at the start.
        high: Value at the end.
    """

    label: str
    low: float
    high: float

    def ticks(self) -> list[float]:
        """Return about five round numbers in the range."""
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def text(self, value: float) -> str:
        """Return the text of a tick."""
        if abs(value) >= 10_000:
            return f"{value / 1000:,.0f}k"
        digits = max(0, -math.floor(math.log10(_round_step((self.high - self.low) / 5)) + 1e-9))
        return f"{value:,.{digits}f}"


def axis_over(label: str, values: Sequence[float], *, from_zero: bool = False) -> Axis:
    """Return an axis with round ends that covers all values, and 0 if `from_zero`."""
    low, high = (0.0 if from_zero else min(values)), max(values)
    if high <= low:
        low, high = (low, low + 1) if from_zero else (low - 0.5, high + 0.5)
    step = _round_step((high - low) / 5)
    return Axis(label, math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step)


def _round_step(step: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


class Plot:
    """The frame of a chart: axes with ticks and labels, and the position of a value.

    Args:
        x: The x axis.
        y: The y axis.
        height: Height of the chart.
    """

    def __init__(self, x: Axis, y: Axis, height: float = HEIGHT) -> None:
        self._x, self._y, self._height = x, y, height

    def at(self, x: float, y: float) -> Point:
        """Return the position of a value in the chart."""
        across = (x - self._x.low) / (self._x.high - self._x.low)
        up = (y - self._y.low) / (self._y.high - self._y.low)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            self._height - BOTTOM - up * (self._height - TOP - BOTTOM),
        )

    def frame(self) -> Markup:
        """Draw grid, ticks and labels."""
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


def svg(description: str, height: float, *children: str, width: float = WIDTH, class_: str | None = None) -> Markup:
    """Return a chart of a height, with a text for screen readers."""
    attributes = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria_label": description}
    return element("svg", *children, **attributes, **({"class_": class_} if class_ else {}))


def scatter(
    points: Sequence[tuple[float, float, str]],
    x_label: str,
    y_label: str,
    description: str,
    *,
    numbers: Sequence[int] | None = None,
) -> Markup:
    """Draw points over one range for both axes, with the diagonal on which x = y.

    Args:
        points: x, y and tooltip of each point.
        x_label: Label of the x axis.
        y_label: Label of the y axis.
        description: Text for screen readers.
        numbers: Number of the context of each point, by which the script of the page finds its row; None without.

    Returns:
        The SVG element.
    """
    both = axis_over("", [value for x, y, _ in points for value in (x, y)])
    plot = Plot(Axis(x_label, both.low, both.high), Axis(y_label, both.low, both.high), height=WIDTH)
    (x1, y1), (x2, y2) = plot.at(both.low, both.low), plot.at(both.high, both.high)
    dots = []
    for place, (x, y, title) in enumerate(points):
        cx, cy = plot.at(x, y)
        own = {} if numbers is None else {"data_context": numbers[place]}
        kind = "better" if y > x else "worse"
        dots.append(element("circle", element("title", title), class_=kind, cx=cx, cy=cy, r=3, **own))
    return svg(
        description,
        WIDTH,
        plot.frame(),
        element("line", class_="diagonal", x1=x1, y1=y1, x2=x2, y2=y2),
        element("g", *dots, class_="dots"),
        class_=None if numbers is None else "contexts",
    )


def lines(curves: Sequence[Line], x_label: str, y_label: str, description: str, *, y_from_zero: bool = False) -> Markup:
    """Draw curves over common axes; curve n has colour n.

    Args:
        curves: The curves, at least one.
        x_label: Label of the x axis.
        y_label: Label of the y axis.
        description: Text for screen readers.
        y_from_zero: Start the y axis at 0.

    Returns:
        The SVG element.
    """
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    x_axis = Axis(x_label, min(0.0, *xs), max(xs)) if max(xs) > 0 else axis_over(x_label, xs)
    plot = Plot(x_axis, axis_over(y_label, ys, from_zero=y_from_zero))
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
    return svg(description, HEIGHT, plot.frame(), *drawn)


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most `most` of the points, evenly spaced, including the last."""
    stride = max(1, -(-len(points) // most))
    return list(points[::-1][::stride][::-1])


def heat_map(
    names: Sequence[str], values: Sequence[Sequence[float | None]], description: str, *, middle: float, span: float
) -> Markup:
    """Draw a square matrix of values as coloured cells.

    Args:
        names: Names of the rows, and of the columns.
        values: The values, row by row; None leaves a cell empty.
        description: Text for screen readers.
        middle: Value without colour; higher and lower values have different hues.
        span: Distance from `middle` at which the colour is strongest.

    Returns:
        The SVG element.
    """
    label, top, height = 60.0, 58.0, 30.0
    cell = (WIDTH - label - 26) / len(names)  # the last slanted name needs space on the right
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
            # The strongest fill still leaves enough contrast for the text, in dark and light mode.
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
    return svg(description, top + height * len(names) + 4, *parts)


def stacked_bars(rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], description: str) -> Markup:
    """Draw one bar per row below its title.

    Args:
        rows: Title and shares of each bar; the shares add up to one, in the order of `names`.
        names: Names of the parts.
        description: Text for screen readers.

    Returns:
        The SVG element.
    """
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
    return svg(description, pitch * len(rows), *parts)


def ramp(number: int, count: int) -> tuple[str, str]:
    """Return the colour of item `number` of `count` ordered items, and the colour of text on it."""
    at = number / max(1, count - 1) * (len(RAMP) - 1)
    low = min(int(at), len(RAMP) - 2)
    rgb = [a + (b - a) * (at - low) for a, b in zip(RAMP[low], RAMP[low + 1], strict=True)]
    luminance = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    return "#" + "".join(f"{round(value):02x}" for value in rgb), "#000" if luminance > 115 else "#fff"
