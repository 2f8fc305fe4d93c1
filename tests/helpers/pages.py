"""Pages of reports as tests read them: texts, elements and attributes."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"
VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """The text, the data, the elements and their attributes of a page; checks that elements are closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data: Any = None
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] not in (["style"], ["script"]):
            self.texts.append(data)
        elif self.elements[-1][1].get("type") == "application/json":
            self.data = json.loads(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def scripts(self) -> int:
        """Number of scripts that run."""
        return sum("type" not in attributes for attributes in self.all("script"))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]
