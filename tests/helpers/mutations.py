"""Mutations of bytes and JSON documents from a seeded generator."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

#: Values that no file should hold at most places.
ODD = [
    None,
    True,
    -1,
    1.5,
    10**400,
    float("nan"),
    float("inf"),
    -1e300,
    "",
    "\ud800",
    "\0",
    "../../x",
    [],
    {},
    [[]],
    "a" * 9999,
]
#: A JSON document that is deeper than Python's parser follows.
DEEP = "[" * 100_000
_PATTERNS = [
    b"\0",
    b"\xff",
    b"\xff\xff",
    b"\0\0\0",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\xff\xd8",
    b"\xff\xda",
    b"\xff\xd9",
]


def mutated(
    data: bytes, draw: random.Random, *, head: int = 1 << 30, others: Sequence[bytes] = ()
) -> tuple[str, bytes]:
    """Return the name of a mutation, and the mutated bytes.

    Args:
        data: Bytes to mutate.
        draw: The generator.
        head: Half of the mutations are within this number of bytes at the beginning.
        others: Further contents, parts of which are inserted.
    """
    end = min(head, len(data)) if draw.random() < 0.5 else len(data)
    at = draw.randrange(end)
    length = draw.choice([1, 2, 4, draw.randrange(1, 64), draw.randrange(1, len(data))])
    kind = draw.choice(["flip", "flip", "flips", "set", "cut", "remove", "insert", "repeat", "zero", "splice", "swap"])
    if kind in ("flip", "flips"):
        changed = bytearray(data)
        for _ in range(1 if kind == "flip" else draw.choice([2, 5, 50])):
            changed[draw.randrange(end)] ^= 1 << draw.randrange(8)
        return kind, bytes(changed)
    pattern = draw.choice([*_PATTERNS, draw.randbytes(length)])
    if kind == "set":
        return kind, data[:at] + pattern + data[at + len(pattern) :]
    if kind == "cut":
        return kind, data[:at]
    if kind == "remove":
        return kind, data[:at] + data[at + length :]
    if kind == "insert":
        return kind, data[:at] + pattern + data[at:]
    if kind == "repeat":
        return kind, data[: at + length] + data[at:]
    if kind == "zero":
        return kind, data[:at] + bytes(min(length, len(data) - at)) + data[at + length :]
    other = draw.choice([data, *others])
    start = draw.randrange(len(other))
    if kind == "splice":
        return kind, data[:at] + other[start:]
    return kind, data[:at] + other[start : start + length] + data[at + length :]


def places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """Yield the paths of all values in a JSON document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def mutated_json(content: Any, draw: random.Random) -> Any:
    """Return the document with one value replaced, removed, doubled or renamed."""
    content = copy.deepcopy(content)
    *parents, key = draw.choice([path for path in places(content) if path])
    owner = content
    for parent in parents:
        owner = owner[parent]
    kind = draw.choice(["replace", "replace", "replace", "remove", "double", "add"])
    if kind == "replace":
        owner[key] = draw.choice(ODD)
    elif kind == "remove":
        del owner[key]
    elif kind == "double" and isinstance(owner, list):
        owner.append(owner[key])
    elif isinstance(owner, dict):
        owner[draw.choice(["x", "é", "{{ 7 * 7 }}"])] = draw.choice(ODD)
    return content
