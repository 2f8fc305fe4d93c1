"""What somebody may have meant: the nearest of some known names."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with a space before it that suggests the nearest known name, or nothing if none is near.

    >>> did_you_mean("colour", ["blur", "color"])
    " Did you mean 'color'?"
    >>> did_you_mean("xyz", ["blur", "color"])
    ''
    """
    near = get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
