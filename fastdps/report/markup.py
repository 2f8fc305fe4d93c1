"""Elements of pages, with everything that comes from data escaped, and templates that escape likewise."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def element(name: str, *children: str, **attributes: object) -> Markup:
    """One element of SVG or HTML; children and values of attributes that are not `Markup` are escaped.

    In names of attributes "_" stands for "-", and one at the end is dropped: `class_`. Floats are rounded to tenths.

    >>> str(element("text", "a < b", class_="tick", text_anchor="end", x=1.23))
    '<text class="tick" text-anchor="end" x="1.2">a &lt; b</text>'
    """
    given = Markup("").join(
        Markup(' {}="{}"').format(key.removesuffix("_").replace("_", "-"), _number(value))
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), given, Markup("").join(children))


def _number(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def ranking_text(ranking: object) -> str:
    """A ranking as people read it, the least disruptive distortion first."""
    return " < ".join(map(str, ranking if isinstance(ranking, list | tuple) else [ranking]))


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, which one that is rounded to zero does not have."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}") if round(value, digits) else f"{0:.{digits}f}"


def picture(png: bytes) -> str:
    """The content of a PNG as an address that needs no file."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def render(template: str, **values: object) -> str:
    """A page from one of the templates, whole in itself: styles and script are inside.

    Browsers are told to fetch nothing, and to run no script but that one, known by its hash.
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
        "ranking": ranking_text,
    }
    return environment


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _text(name: str) -> str:
    return files("fastdps.report").joinpath("templates", name).read_text(encoding="utf-8")
