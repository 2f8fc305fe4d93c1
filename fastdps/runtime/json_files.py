"""JSON files as input: parsed and checked against a schema, so that damaged ones are one error and no traceback.

A schema is one of

    str, bool, int, float                a value of this type; a float may be an integer, numbers are finite
    Number(low, high)                    a float within bounds
    Maybe(schema)                        a value or null
    [schema], Filled(schema)             a list, a list with at least one item
    {"key": schema, "other?": schema}    an object; keys with "?" may be missing, further keys may have any value, or
                                         that of the key "*"
    Values(schema)                       an object with any keys
    Anything()                           any value
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdps.errors import FastDPSError

#: No real value is larger, and arithmetic with larger ones overflows.
LARGEST = 1e30
#: Escapes that may be half a character, which cannot be written to a file.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NAMES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Anything:
    """The schema of any value."""


@dataclass(frozen=True)
class Number:
    """The schema of a number within bounds, which are included."""

    low: float
    high: float


@dataclass(frozen=True)
class Maybe:
    """The schema of a value that may be null."""

    schema: Any


@dataclass(frozen=True)
class Filled:
    """The schema of a list with at least one item."""

    schema: Any


@dataclass(frozen=True)
class Values:
    """The schema of an object with any keys."""

    schema: Any


def read_object(path: Path, schema: Any, remedy: str) -> dict[str, Any] | None:
    """Read a JSON file that holds an object.

    Args:
        path: The file.
        schema: What it must hold.
        remedy: A sentence that says what to do about a damaged file.

    Returns:
        The object, or None if there is no such file.

    Raises:
        FastDPSError: The file cannot be read, is not JSON or does not fit the schema.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FastDPSError(f"{path} cannot be read as JSON: {error}. {remedy}") from error
    try:
        check(content, schema)
    except ValueError as error:
        raise FastDPSError(f"{path} is damaged: {error}. {remedy}") from error
    return content


def parse_json(text: str) -> Any:
    """Parse JSON. Raises `ValueError`, also for deep nesting and for text that is not valid Unicode."""
    try:
        content = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return content


def check(value: Any, schema: Any, where: str = "") -> None:
    """Raise `ValueError`, which names the place, if a value does not fit a schema."""
    if isinstance(schema, Maybe):
        if value is not None:
            check(value, schema.schema, where)
    elif isinstance(schema, Filled):
        check(value, [schema.schema], where)
        _require(bool(value), where, "a list with at least one item", value)
    elif isinstance(schema, list):
        _require(isinstance(value, list), where, "a list", value)
        for number, item in enumerate(value):
            check(item, schema[0], f"{where}[{number}]")
    elif isinstance(schema, dict | Values):
        _require(isinstance(value, dict), where, "an object", value)
        for key, expected in _fields(value, schema):
            place = f"{where}.{key}" if where else key
            if key not in value:
                raise ValueError(f"{place} is missing")
            check(value[key], expected, place)
    elif not isinstance(schema, Anything):
        _check_scalar(value, schema, where)


def _fields(value: dict[str, Any], schema: dict[str, Any] | Values) -> list[tuple[str, Any]]:
    """Return the keys to check, each with its schema."""
    if isinstance(schema, Values):
        return [(key, schema.schema) for key in value]
    known = {key.removesuffix("?"): expected for key, expected in schema.items() if key != "*"}
    fields = [(key, expected) for key, expected in known.items() if key in value or key in schema]
    return fields + [(key, schema["*"]) for key in value if "*" in schema and key not in known]


def _check_scalar(value: Any, schema: Any, where: str) -> None:
    low, high = (schema.low, schema.high) if isinstance(schema, Number) else (-LARGEST, LARGEST)
    kind = float if isinstance(schema, Number) else schema
    is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    fits = is_number if kind in (int, float) else isinstance(value, kind)
    _require(fits, where, _NAMES[kind], value)
    if is_number and not low <= value <= high:  # also false for NaN
        raise ValueError(f"{where or 'the content'} is {str(value)[:20]}, not between {low:g} and {high:g}")


def _require(fits: bool, where: str, what: str, value: Any) -> None:
    if not fits:
        found = "null" if value is None else type(value).__name__
        raise ValueError(f"{where or 'the content'} must be {what}, not {found}")
