"""Elements and templates of pages; both escape all text that comes from data."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

#: Files of the script of all pages. Each is a block of its own, and does nothing where its elements are missing.
SCRIPTS = ("sort.js", "contexts.js", "downloads.js")
#: The place of the table of contents in the template.
CONTENTS = "<!--contents-->"


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


def render(template: str, *, data: Mapping[str, object] | None = None, **values: object) -> str:
    """Render a template as a self-contained page, with its styles, its script and its data inside.

    Its content security policy forbids all requests, and all scripts but this one, which it identifies by hash. Its
    headings of the second level get an address each, and a table of contents.

    Args:
        template: File name of the template.
        data: JSON types that the page offers as a download; None without.
        **values: Variables of the template.

    Returns:
        The HTML page.
    """
    script = "".join(_text(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    common = {"style": Markup(_text("style.css")), "script": Markup(script), "policy": policy, "data": _json(data)}
    return _with_contents(_templates().get_template(template).render(**common, **values))


def _json(data: Mapping[str, object] | None) -> Markup | None:
    """Return data as JSON that no element can end: "<", ">" and "&" are escaped."""
    if data is None:
        return None
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _with_contents(page: str) -> str:
    """Give each heading of the second level an address, and list them at the place of `CONTENTS`.

    All text that comes from data is escaped, so only a template can have such a heading.
    """
    entries: dict[str, str] = {}

    def addressed(heading: re.Match[str]) -> str:
        own = "-".join(re.findall(r"[a-z0-9]+", heading[1].lower())) or "part"
        while own in entries:
            own += "-2"
        entries[own] = heading[1]
        return f'<h2 id="{own}">{heading[1]}</h2>'

    page = re.sub(r"<h2>(.*?)</h2>", addressed, page)
    links = "".join(f'<li><a href="#{own}">{title}</a></li>' for own, title in entries.items())
    return page.replace(CONTENTS, f"<ul>{links}</ul>" if len(entries) > 1 else "", 1)


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
        "half_width": _half_width,
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


def _half_width(interval: Mapping[str, float]) -> float:
    """Return the distance of the farther end of an interval from its value."""
    return max(interval["value"] - interval["low"], interval["high"] - interval["value"])


def _text(name: str) -> str:
    return files("fastdps.report").joinpath("templates", name).read_text(encoding="utf-8")
