"""The formats of judgement files, by their columns: a row of `FORMATS` each.

| format | columns | judgements of a row |
|---|---|---|
| comparisons | ref, p0, p1, judge | ref; p0 against p1. judge is the share of votes in [0, 1] that finds p1 closer |
| odd-one-out | x, y, odd | odd is the least similar of three. x; y against odd, and y; x against odd |
| salmon | head, winner, and loser or left, right | head; winner against loser |
| tpips | p0_path, p1_path, p2_path, factors | for each factor and each image as reference; see `_tpips` |
| answers | answer, person, ref, p0, p1, judge | as comparisons; a row with `undo` withdraws an answer |

The first two take a column `votes`, the number of votes, by default 1.
"""

from __future__ import annotations

import html
import math
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastdps.errors import FastDPSError
from fastdps.packing.sources.judgement_rows import FileRow, RowFile

_SRC = re.compile(r"""<(?:img|video)\b[^>]*\bsrc=(["'])(.*?)\1""", re.IGNORECASE | re.DOTALL)
#: The directory of images on a server of Salmon.
_SALMON_TARGETS = "/static/targets/"
#: Longest value that a reason quotes.
_SHOWN = 80


class BadRowError(ValueError):
    """Raised for a row without a valid judgement. The message follows the number of its line."""


class Answer(NamedTuple):
    """One judgement of a row; see `fastdps.shards.judgements.JudgementTable`. Images are paths."""

    ref: str
    a: str
    b: str
    votes_a: float
    votes_b: float


@dataclass(frozen=True)
class JudgementFormat:
    """A row of `FORMATS`.

    Attributes:
        columns: The columns by which a file is recognised.
        optional: Further columns that are read.
        answers: Returns the judgements of a row. Raises `BadRowError`.
        expand: Returns the rows that one row of the file consists of.
        valid: Returns the rows of a file that later rows do not withdraw.
        judge: The column whose value is the judge, unless the user names one.
    """

    columns: tuple[str, ...]
    optional: tuple[str, ...]
    answers: Callable[[Mapping[str, Any]], list[Answer]]
    expand: Callable[[FileRow], Iterable[FileRow]] = lambda row: (row,)
    valid: Callable[[Iterable[FileRow]], Iterable[FileRow]] = lambda rows: rows
    judge: str | None = None


def format_of(file: RowFile, path: object) -> str:
    """Return the name of the format of a file.

    Raises:
        FastDPSError: No format has the columns of the file, or several have.
    """
    fitting = [name for name, known in FORMATS.items() if set(known.columns) <= set(file.columns)]
    found = [name for name in fitting if not any(set(FORMATS[name].columns) < set(FORMATS[x].columns) for x in fitting)]
    if len(found) == 1:
        return found[0]
    if found:
        raise FastDPSError(f"the source {path} has the columns of several formats: {'; '.join(map(_wanted, found))}.")
    nearest = max(FORMATS, key=lambda name: len(set(FORMATS[name].columns) & set(file.columns)))
    missing = [name for name in FORMATS[nearest].columns if name not in file.columns]
    raise FastDPSError(
        f"the source {path} lacks the columns {', '.join(missing)}. It has {', '.join(file.columns) or 'no columns'}; "
        f"it must have {wanted_columns()}."
    )


def wanted_columns() -> str:
    """Return the columns of all formats, for messages."""
    return "; or ".join(map(_wanted, FORMATS))


def _wanted(name: str) -> str:
    return f"{', '.join(FORMATS[name].columns)} ({name})"


def judge_of(cells: Mapping[str, Any], by: str) -> str:
    """Return the judge of a row. Raises `BadRowError`."""
    value = cells.get(by, "")
    if isinstance(value, float) and not math.isfinite(value):
        value = ""
    if not isinstance(value, str | int | float) or value == "":
        raise BadRowError(f"{by} is {_show(value)}, not the name of a judge" if value else f"{by} is missing")
    return str(value)


def _comparison(cells: Mapping[str, Any]) -> list[Answer]:
    share, votes = _number(cells, "judge"), _votes(cells)
    if not 0 <= share <= 1:
        raise BadRowError(f"judge is {_show(cells['judge'])}, not a share of votes in [0, 1]")
    ref, a, b = _different(cells, "ref", "p0", "p1")
    for_b = share * votes
    return [Answer(ref, a, b, votes - for_b, for_b)]


def _not_undone(rows: Iterable[FileRow]) -> list[FileRow]:
    """Return the answers that no later row withdraws, without the rows that withdraw."""
    kept: list[FileRow] = []
    for row in rows:
        undone = row.cells.get("undo")
        if undone is None:
            kept.append(row)
        else:
            kept = [earlier for earlier in kept if earlier.cells.get("answer") != undone]
    return kept


def _odd_one_out(cells: Mapping[str, Any]) -> list[Answer]:
    votes = _votes(cells)
    x, y, odd = _different(cells, "x", "y", "odd")
    return [Answer(x, y, odd, votes, 0.0), Answer(y, x, odd, votes, 0.0)]


def _salmon(cells: Mapping[str, Any]) -> list[Answer]:
    """Return the judgement of a response that Salmon exports: winner is closer to head than loser.

    `head`, `winner`, `loser`, `left` and `right` are indexes there, and `head_filename` and so on, or the HTML of the
    images in `head_html` (`head_object` in older versions), name the files. Files without these columns may have paths
    or HTML in `head` and so on.
    """
    sides = {name: cells[name] for name in ("left", "right") if name in cells}
    winner = _cell(cells, "winner")
    if "loser" not in cells:
        if winner not in sides.values() or len(sides) < 2:
            raise BadRowError("has no loser, and winner is neither left nor right")
        cells = {**cells, "loser": sides["left"] if winner == sides["right"] else sides["right"]}
    files = {}
    for role in ("head", "winner", "loser"):
        same = [side for side, value in sides.items() if value == cells.get(role)]
        files[role] = _salmon_file(cells, role, [role, *same])
    head, a, b = _different(files, "head", "winner", "loser")
    return [Answer(head, a, b, 1.0, 0.0)]


def _salmon_file(cells: Mapping[str, Any], role: str, names: Sequence[str]) -> str:
    """Return the path of an image. `names` are the prefixes of the columns that may name it."""
    columns = [f"{name}_{kind}" for kind in ("filename", "html", "object") for name in names]
    for column in (*columns, role):
        value = cells.get(column)
        if isinstance(value, str) and value and not (column == role and value.strip().isdigit()):
            found = _SRC.search(value)
            return (html.unescape(found[2]) if found else value).removeprefix(_SALMON_TARGETS)
    if role not in cells:
        raise BadRowError(f"{role} is missing")
    raise BadRowError(f"{role} is {_show(cells[role])}, an index; the column {role}_filename must name its image")


def _tpips_factors(row: FileRow) -> Iterator[FileRow]:
    """Yield one row for each factor of a line. Like TPIPS's reader, skip factors without a label."""
    factors = row.cells.get("factors")
    if row.fault or not isinstance(factors, list):
        yield row if row.fault else FileRow(row.number, row.cells, "factors is not a list")
        return
    for factor in factors:
        if not isinstance(factor, dict):
            yield FileRow(row.number, row.cells, f"factors has {_show(factor)}, not an object")
        elif factor.get("label") is not None:
            yield FileRow(row.number, {**row.cells, "factor": factor.get("name", ""), "answer": factor})


def _tpips(cells: Mapping[str, Any]) -> list[Answer]:
    """Return the judgements of one factor of TPIPS (`tpips.data`, version 0.1.2), whose data are odd-one-out.

    `label` ("p0", "p1" or "p2") is the image that is the odd one with respect to the factor, and `probs` are the
    probabilities, or shares of votes, of each of the three being the odd one. Image k is the odd one if the other two
    are the most similar pair. So with p0 as reference, p1 is closer with the weight probs[2] and p2 with probs[1];
    likewise for p1 and p2 as references. A factor without `probs` has the probability 1 for its label. A reference
    without any weight gives no judgement.
    """
    answer = cells["answer"]
    where = f"factor {_show(cells['factor'])}"
    names = ("p0", "p1", "p2")
    if answer["label"] not in names:
        raise BadRowError(f"{where}: label is {_show(answer['label'])}, not p0, p1 or p2")
    label = names.index(answer["label"])
    probs = answer.get("probs", [float(number == label) for number in range(3)])
    if not isinstance(probs, list) or len(probs) != 3 or not all(map(_is_share, probs)) or abs(sum(probs) - 1) > 0.01:
        raise BadRowError(f"{where}: probs is {_show(probs)}, not three probabilities that add up to 1")
    if probs[label] < max(probs) - 1e-6:
        raise BadRowError(f"{where}: label is {answer['label']}, and not the largest of probs, {_show(probs)}")
    images = _different(cells, *(f"{name}_path" for name in names))
    found = []
    for ref, a, b in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
        if probs[a] + probs[b] > 0:
            found.append(Answer(images[ref], images[a], images[b], float(probs[b]), float(probs[a])))
    return found


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


FORMATS: dict[str, JudgementFormat] = {
    "comparisons": JudgementFormat(("ref", "p0", "p1", "judge"), ("votes",), _comparison),
    "odd-one-out": JudgementFormat(("x", "y", "odd"), ("votes",), _odd_one_out),
    "salmon": JudgementFormat(
        ("head", "winner"),
        tuple(
            f"{role}{kind}"
            for role in ("head", "winner", "loser", "left", "right")
            for kind in ("", "_filename", "_html", "_object")
        ),
        _salmon,
    ),
    "tpips": JudgementFormat(("p0_path", "p1_path", "p2_path", "factors"), (), _tpips, _tpips_factors, judge="factor"),
    "answers": JudgementFormat(
        ("answer", "person", "ref", "p0", "p1", "judge"), ("undo",), _comparison, valid=_not_undone, judge="person"
    ),
}


def _different(cells: Mapping[str, Any], *names: str) -> tuple[str, str, str]:
    """Return three different images. Raises `BadRowError`."""
    first, second, third = (_image(cells, name) for name in names)
    for one, other, left, right in ((first, second, 0, 1), (first, third, 0, 2), (second, third, 1, 2)):
        if one == other:
            raise BadRowError(f"{names[left]} and {names[right]} are the same image, {_show(one)}")
    return first, second, third


def _image(cells: Mapping[str, Any], name: str) -> str:
    value = _cell(cells, name)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise BadRowError(f"{name} is {_show(value)}, not the path of an image")
    return posixpath.normpath(value)


def _votes(cells: Mapping[str, Any]) -> float:
    if "votes" not in cells:
        return 1.0
    votes = _number(cells, "votes")
    if not 1 <= votes < math.inf:
        raise BadRowError(f"votes is {_show(cells['votes'])}, not a number of votes of at least 1")
    return votes


def _number(cells: Mapping[str, Any], name: str) -> float:
    value = _cell(cells, name)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadRowError(f"{name} is {_show(value)}, not a number") from None


def _cell(cells: Mapping[str, Any], name: str) -> Any:
    value = cells.get(name, "")
    if isinstance(value, str) and value == "":
        raise BadRowError(f"{name} is missing")
    return value


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
