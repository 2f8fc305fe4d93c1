"""Parts that pages consist of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Figure:
    """A chart of a page.

    Attributes:
        title: Its title.
        chart: The SVG element.
        legend: Pairs of a class or a colour of the style sheet, and a name.
    """

    title: str
    chart: Markup
    legend: Sequence[tuple[str, str]] = ()
