"""Elements and templates of pages; both escape all text that comes from data."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape


def element(name: str, *children: str, **attributes: object) -> Markup:
    """Return an element of SVG or HTML.

    Args:
        name: Name of the element.
        *children: Content. It is escaped unless it is `Markup`.
        **attributes: Attributes. In their names "_" stands for "-", and a final "_" is dropped (`class_`). Values are
            escaped unless they are `Markup`, and floats are rounded to one decimal.

    Example:
        >>> str(element("text", "a < b", class_="tick", text_anchor="end", x=1.23))
        '<text class="tick" text-anchor="end" x="1.2">a &lt; b</text>'
    """
    given = "".join(
        [f' {key.removesuffix("_").replace("_", "-")}="{escape(_number(value))}"' for key, value in attributes.items()]
    )
    return Markup(f"<{name}{given}>{''.join(map(escape, children))}</{name}>")  # `Markup.format` is four times slower


def _number(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def ranking_text(ranking: object) -> str:
    """Return a ranking as text, the least disruptive distortion first."""
    return " < ".join(map(str, ranking if isinstance(ranking, list | tuple) else [ranking]))


def signed(value: float, digits: int = 2) -> str:
    """Return a rounded number with its sign; 0 has none."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}") if round(value, digits) else f"{0:.{digits}f}"


def picture(png: bytes) -> str:
    """Return the content of a PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def render(template: str, **values: object) -> str:
    """Render a template as a self-contained page, with its styles and its script inside.

    Its content security policy forbids all requests, and all scripts but this one, which it identifies by hash.

    Args:
        template: File name of the template.
        **values: Variables of the template.

    Returns:
        The HTML page.
    """
    script = _text("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        _templates()
        .get_template(template)
        .render(style=Markup(_text("style.css")), script=Markup(script), policy=policy, **values)
    )


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("fastdps.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "accuracy": lambda value: f"{value:.3f}",
        "signed": lambda value: signed(value, 3),
        "count": lambda value: f"{value:,.0f}",
        "votes": lambda value: f"{value:,.2f}".rstrip("0").rstrip("."),
        "seconds": lambda value: f"{value:,.1f} s" if value < 100 else f"{value:,.0f} s",
        "points": _points,
        "file_name": lambda name: name.rstrip("/").rpartition("/")[2] or name,
        "signed_points": lambda value: signed(100 * value, 1),
        "ranking": ranking_text,
    }
    return environment


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _points(change: Mapping[str, float]) -> str:
    """Return a change of a share with its interval, in percentage points."""
    value, low, high = (signed(100 * change[name], 1) for name in ("value", "low", "high"))
    return f"{value} points (95 %: {low} to {high})"


def _text(name: str) -> str:
    return files("fastdps.report").joinpath("templates", name).read_text(encoding="utf-8")
