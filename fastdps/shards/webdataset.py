"""webdataset's conventions: which members of a tar are one sample, what braces in a path mean, how an image is decoded.

The package imports torch. It is imported when it is used, so that commands start fast.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, TypeVar

Value = TypeVar("Value")
#: Members that webdataset skips: those that describe the tar.
_META = re.compile(r"__[^/]*__($|/)")


def group_members(members: Iterable[tuple[str, Value]]) -> Iterator[tuple[str, dict[str, Value]]]:
    """Group the members of a tar into samples, as `webdataset.WebDataset` does.

    Args:
        members: Name and any value of each member, in the order of the tar.

    Yields:
        The key of each sample, and its values by extension, which is all that follows the first dot, in lower case.

    Raises:
        ValueError: A sample has two members with one extension.

    Example:
        >>> list(group_members([("a.jpg", 1), ("a.json", 2), ("b.JPG", 3)]))
        [('a', {'jpg': 1, 'json': 2}), ('b', {'jpg': 3})]
    """
    from webdataset.tariterators import group_by_keys

    files = ({"fname": name, "data": value, "__url__": ""} for name, value in members if not _META.match(name))
    for sample in group_by_keys(files):
        yield sample["__key__"], {name: value for name, value in sample.items() if not name.startswith("__")}


def expand_braces(text: str) -> list[str]:
    """Return the paths that a pattern with braces names.

    Example:
        >>> expand_braces("laion/{00000..00002}.tar")
        ['laion/00000.tar', 'laion/00001.tar', 'laion/00002.tar']
    """
    from webdataset.shardlists import expand_urls

    found: list[str] = expand_urls(text)
    return found


def decode_pil(name: str, data: bytes) -> Any:
    """Decode an image with Pillow, as `decode("pilrgb")` does.

    Args:
        name: The name of the member; its extension tells the format.
        data: Its content.

    Returns:
        The image in RGB; None for an extension that is none of an image.
    """
    return _handler()(name, data)


@cache
def _handler() -> Any:
    import webdataset

    return webdataset.imagehandler("pilrgb")
