"""The people at the page: their sessions, and what is told about all of them."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastdps.errors import ConfigError
from fastdps.judge.answers import STATE_DIRECTORY, AnswerFile, PageAnswer, person_name
from fastdps.judge.fitting import Judged
from fastdps.judge.images import PictureSet
from fastdps.judge.learner import Learner
from fastdps.judge.session import Session
from fastdps.judge.summary import agreement, person_summary
from fastdps.judge.triplets import Deck
from fastdps.runtime.files import write_errors

#: Most people with answers in one directory.
MOST_PEOPLE = 200
ANSWERS_SUFFIX = ".jsonl"


class Judging:
    """Everything that the page shows and keeps.

    Args:
        out: The directory of the answers, which exists. So does its `STATE_DIRECTORY`.
        pictures: The pictures.
        deck: The triplets.
        learner: The metric that learns.
        default_person: Who judges unless the page is given another name.

    Attributes:
        version: Identifies the pictures and their numbers.

    Raises:
        FastDPSError: The answers of a person cannot be read.
    """

    def __init__(
        self, out: Path, pictures: PictureSet, deck: Deck, learner: Learner, default_person: str | None = None
    ) -> None:
        self.out, self.pictures, self._deck, self._learner = out, pictures, deck, learner
        self.default_person = None if default_person is None else person_name(default_person)
        digest = hashlib.sha256()
        for number in range(len(pictures)):
            digest.update(pictures.path_of(number).encode() + b"\0")
        self.version = digest.hexdigest()[:12]
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        for path in sorted(out.glob(f"*{ANSWERS_SUFFIX}")):
            self.enter(path.name.removesuffix(ANSWERS_SUFFIX))
        learner.start(self.judged)

    def session(self, person: str) -> Session | None:
        """Return the session of a person, None if it has not begun. Names differ by more than case."""
        return self._sessions.get(person.casefold())

    def enter(self, person: str) -> Session:
        """Return the session of a person, and begin it if there is none.

        Raises:
            ConfigError: It cannot be a name, or there are too many people.
            FastDPSError: The answers of the person cannot be read.
        """
        name = person_name(person)
        with self._lock:
            if (found := self.session(name)) is not None:
                return found
            if len(self._sessions) >= MOST_PEOPLE:
                raise ConfigError(f"{self.out} has answers of {MOST_PEOPLE} people. Start another directory.")
            session = Session(
                name,
                AnswerFile(self.out / f"{name}{ANSWERS_SUFFIX}"),
                self.out / STATE_DIRECTORY / f"{name}.json",
                self._deck,
                self.pictures,
                self._learner,
            )
            self._sessions[name.casefold()] = session
            return session

    @property
    def people(self) -> Mapping[str, list[PageAnswer]]:
        """The answers that count by person, for the people who have given any."""
        found = {session.person: session.answers for session in list(self._sessions.values())}
        return {name: answers for name, answers in sorted(found.items()) if answers}

    def judged(self) -> Judged:
        """Return the triplets and judgements of each person, for the metric: those whose pictures are in use."""
        found = {}
        for session in list(self._sessions.values()):
            pairs = [(session.triplet_of(answer), answer.judge) for answer in session.answers]
            found[session.person] = [(triplet, judge) for triplet, judge in pairs if triplet is not None]
        return {name: rows for name, rows in sorted(found.items()) if rows}

    def learning(self, session: Session, probe: int) -> dict[str, Any]:
        """Return what the metric has learned from a person, and the pictures nearest to a picture."""
        figures = person_summary(session.answers)
        kept = {name: figures[name] for name in ("answers", "foreseen", "foreseen_by_base", "consistency")}
        return {
            **kept,
            **self._learner.describe(session.person),
            "nearest": self._learner.nearest(session.person, probe),
        }

    def results(self) -> dict[str, Any]:
        """Return the figures of all people."""
        people = self.people
        return {
            "directory": _shown(self.out),
            "pictures": len(self.pictures),
            "answers": sum(map(len, people.values())),
            "people": [
                {"person": name, **person_summary(answers), "learned": self._learner.describe(name)}
                for name, answers in people.items()
            ],
            "agreement": agreement(people),
            "run": None if self._learner.saved is None else _shown(Path(self._learner.saved)),
        }

    def archive(self) -> Path:
        """Write all answers and the images that they are about as a zip file, which is a source of judgements.

        Raises:
            FastDPSError: It cannot be written.
        """
        path = self.out / STATE_DIRECTORY / "judgements.zip"
        lines: list[str] = []
        names: dict[str, str] = {}
        for answers in self.people.values():
            for answer in answers:
                changed = {role: _inside(names, getattr(answer, role)) for role in ("ref", "p0", "p1")}
                lines.append(json.dumps({**asdict(answer), **changed}, ensure_ascii=False) + "\n")
        temporary = path.with_suffix(".new")
        with write_errors(path), self._lock:
            with zipfile.ZipFile(temporary, "w") as archive:
                archive.writestr("judgements.jsonl", "".join(lines))
                for original, name in names.items():
                    file = self.out / original
                    if file.is_file():
                        archive.write(file, name)
            temporary.replace(path)
        return path


def _shown(path: Path) -> str:
    """Return a path as it is named in the directory of this process, if it is below that."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _inside(names: dict[str, str], path: str) -> str:
    """Return the name of an image in the archive, and note it."""
    if path not in names:
        names[path] = f"images/{len(names):06d}{Path(path).suffix.lower()}"
    return names[path]
