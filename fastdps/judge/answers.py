"""The answers of one person: an append-only file of JSON lines that is also a source of judgements.

    {"answer": id, "person", "ref", "p0", "p1", "judge", "time", "seconds", "asked", "repeats", "predicted", "baseline"}
    {"undo": id, "person", "time"}

p0 was shown on the left and p1 on the right. `judge` is 0 if the person found p0 closer to ref, 1 for p1, and 0.5 for
"cannot say". Paths are relative to the file. `asked` says why this triplet was shown, `repeats` names the earlier
answer that a hidden repeat repeats, `predicted` and `baseline` are the probabilities of p1 by the metric that was
fitted to the answers so far and by the base. A line is on disk before its answer counts.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastdps.contexts.judgements import POOLED
from fastdps.errors import ConfigError, FastDPSError
from fastdps.runtime.files import fsync_directory, write_errors
from fastdps.runtime.json_files import Maybe, Number, check, parse_json

#: The directory, within that of the answers, of what the page needs to resume.
STATE_DIRECTORY = ".judge"
#: Longest name of a person in characters.
LONGEST_NAME = 40
#: The value of `judge` by the choice that is made on the page.
CHOICES: Mapping[str, float] = {"left": 0.0, "right": 1.0, "neither": 0.5}
_NAME = re.compile(r"\w[\w .-]*")
_SHARE = Number(0, 1)
_ANSWER = {
    "answer": str,
    "person": str,
    "ref": str,
    "p0": str,
    "p1": str,
    "judge": _SHARE,
    "time": str,
    "seconds": Maybe(Number(0, 1e9)),
    "asked": str,
    "repeats": Maybe(str),
    "predicted": Maybe(_SHARE),
    "baseline": Maybe(_SHARE),
}


@dataclass(frozen=True)
class PageAnswer:
    """One answer; see the top of this module.

    Attributes:
        answer: Its id.
        person: The name of the person.
        ref: Path of the reference.
        p0: Path of the image on the left.
        p1: Path of the image on the right.
        judge: 0, 1 or 0.5.
        time: Time of the answer in UTC, ISO 8601.
        seconds: Time that the person took, None if the page did not measure it.
        asked: Why the triplet was shown: "random", "repeat", "given", or a rule that chooses triplets.
        repeats: The id of the answer that this one repeats, or None.
        predicted: The probability of p1 by the fitted metric before this answer, None before the first fit.
        baseline: The probability of p1 by the base, None before its features are computed.
    """

    answer: str
    person: str
    ref: str
    p0: str
    p1: str
    judge: float
    time: str
    seconds: float | None
    asked: str
    repeats: str | None
    predicted: float | None
    baseline: float | None

    @property
    def is_decided(self) -> bool:
        """Whether the person chose one of the two."""
        return self.judge != CHOICES["neither"]


def person_name(text: str) -> str:
    """Return the name of a person as files have it.

    Raises:
        ConfigError: It is empty, too long, reserved, or has characters that a file name should not have.

    Example:
        >>> person_name("  Anna  B. ")
        'Anna B'
    """
    name = " ".join(unicodedata.normalize("NFC", text).split()).rstrip(".")
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME or name.casefold() == POOLED:
        raise ConfigError(
            f"{text[: 2 * LONGEST_NAME]!r} cannot be the name of a person. Use 1 to {LONGEST_NAME} letters, digits, "
            f"spaces, dots and dashes, beginning with a letter or digit, and not {POOLED!r}."
        )
    return name


def now() -> str:
    """Return the time in UTC as answers have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class AnswerFile:
    """The answers of one person, in memory and on disk.

    Args:
        path: The file. Its directory exists; the file is created by the first answer.

    Attributes:
        answers: The answers that count, by id, oldest first.
        undone: The ids of answers that were undone.

    Raises:
        FastDPSError: The file cannot be read, or a line of it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, PageAnswer] = {}
        self.undone: set[str] = set()
        for number, line in enumerate(_complete_lines(path), start=1):
            try:
                self._take(parse_json(line.decode()))
            except ValueError as error:
                raise FastDPSError(
                    f"{path} is damaged: line {number}: {error}. Remove that line, or move the file away."
                ) from error

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def last(self) -> PageAnswer | None:
        """The newest answer that counts."""
        return next(reversed(self.answers.values()), None)

    def append(self, answer: PageAnswer) -> None:
        """Write an answer to disk, and count it. Raises `FastDPSError` if it cannot be written; it does not count then.

        Raises:
            ValueError: An answer of this id exists.
        """
        if answer.answer in self.answers or answer.answer in self.undone:
            raise ValueError(f"there is an answer {answer.answer}")
        self._write(asdict(answer))
        self.answers[answer.answer] = answer

    def undo(self, answer_id: str) -> PageAnswer:
        """Withdraw an answer that counts, and return it. Raises as `append`; `KeyError` for an unknown id."""
        answer = self.answers[answer_id]
        self._write({"undo": answer_id, "person": answer.person, "time": now()})
        self.undone.add(answer_id)
        return self.answers.pop(answer_id)

    def _take(self, line: Any) -> None:
        """Take over one line. Raises `ValueError`."""
        if isinstance(line, dict) and "undo" in line:
            check(line, {"undo": str})
            if self.answers.pop(line["undo"], None) is None:
                raise ValueError(f"it withdraws an answer {line['undo']!r} that does not exist")
            self.undone.add(line["undo"])
            return
        check(line, _ANSWER)
        answer = PageAnswer(**{key: line[key] for key in _ANSWER})
        if answer.answer in self.answers or answer.answer in self.undone:
            raise ValueError(f"it repeats the answer {answer.answer!r}")
        self.answers[answer.answer] = answer

    def _write(self, record: dict[str, Any]) -> None:
        """Append a line and flush it to disk; of a line that cannot be written completely, nothing stays."""
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        with write_errors(self.path):
            is_new = not self.path.exists()
            with self.path.open("ab", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                try:
                    if file.write(line) != len(line):
                        raise OSError("the disk is full")
                    os.fsync(file.fileno())
                except OSError:
                    os.ftruncate(file.fileno(), end)
                    raise
            if is_new:
                fsync_directory(self.path.parent)


def _complete_lines(path: Path) -> list[bytes]:
    """Return the complete lines of a file, and remove an incomplete last one, which was never acknowledged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FastDPSError(f"{path} cannot be read: {error.strerror}. Make it readable, or move it away.") from error
    lines = content.split(b"\n")
    if lines[-1]:
        with write_errors(path):
            os.truncate(path, len(content) - len(lines[-1]))
    return lines[:-1]
