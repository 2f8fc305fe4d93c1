"""One person at the page: the triplet that is shown, those that follow, answers and undo.

    queue: [shown, preloaded] --answer--> the file of answers (on disk) --> [preloaded, newly chosen]

The queue is kept in a file beside the answers, so that a page that stays open while the server is killed and started
again finds its triplet. Each shown triplet has an id of its own, and an answer counts once, for the triplet with its
id, and only while that triplet is shown.
"""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastdps.judge.answers import CHOICES, AnswerFile, PageAnswer, now
from fastdps.judge.images import PictureSet
from fastdps.judge.triplets import Deck, Triplet
from fastdps.runtime.files import write_errors
from fastdps.runtime.json_files import Maybe, check, parse_json

#: Triplets in the queue: the one that is shown, and one whose images are loaded meanwhile.
QUEUE = 2
#: In every block of answers, this number of hidden repeats: 8 %.
BLOCK, REPEATS_PER_BLOCK = 25, 2
#: Answers before the first repeat, and between an answer and its repeat.
FIRST_REPEAT, REPEAT_DISTANCE = 10, 6
#: One triplet in this number is random whatever chooses the others, for an unbiased score and for common triplets.
RANDOM_EVERY = 4
_QUEUED = {"id": str, "ref": str, "p0": str, "p1": str, "asked": str, "repeats": Maybe(str)}


class StaleError(Exception):
    """Raised for an answer or an undo that does not belong to the state of the session; nothing was changed."""


@dataclass(frozen=True)
class Foreseen:
    """What metrics foresee of an answer: the probability that the second candidate is closer, None if not known.

    Attributes:
        fitted: By the metric that was fitted to the answers so far.
        baseline: By the base.
    """

    fitted: float | None = None
    baseline: float | None = None


class Guide(Protocol):
    """The metric that learns beside the page."""

    def choose(self, person: str, asked: set[tuple[int, int, int]]) -> tuple[Triplet, str] | None:
        """Return a triplet that is not in `asked` and the name of the rule; None to have a random one."""
        ...

    def predict(self, person: str, triplet: Triplet) -> Foreseen:
        """Return what is foreseen of an answer."""
        ...

    def learn(self, person: str) -> None:
        """Take note that the answers of a person changed. Returns at once."""
        ...


@dataclass(frozen=True)
class Shown:
    """A triplet with its id and its sides.

    Attributes:
        id: The id, which becomes that of the answer.
        triplet: The pictures; `a` is on the left and `b` on the right.
        asked: Why it is shown.
        repeats: The id of the answer that it repeats, or None.
    """

    id: str
    triplet: Triplet
    asked: str
    repeats: str | None = None


class Session:
    """The session of one person. All methods may be called from any thread.

    Args:
        person: The name.
        file: The answers.
        queue_file: Where the queue is kept.
        deck: The triplets.
        pictures: The pictures.
        guide: The metric that learns.

    Raises:
        FastDPSError: The file of answers cannot be read.
    """

    def __init__(
        self, person: str, file: AnswerFile, queue_file: Path, deck: Deck, pictures: PictureSet, guide: Guide
    ) -> None:
        self.person, self.file = person, file
        self._deck, self._pictures, self._guide = deck, pictures, guide
        self._numbers = pictures.numbers()
        self._queue_file = queue_file
        self._lock = threading.RLock()
        self._queue = self._kept_queue()
        self._fill()

    @property
    def answers(self) -> list[PageAnswer]:
        """The answers that count, oldest first."""
        with self._lock:
            return list(self.file.answers.values())

    def triplet_of(self, answer: PageAnswer) -> Triplet | None:
        """Return the pictures of an answer; None if one is not among those of this session."""
        found = [self._numbers.get(path) for path in (answer.ref, answer.p0, answer.p1)]
        return None if None in found else Triplet(*(number for number in found if number is not None))

    def state(self) -> dict[str, Any]:
        """Return the state as the page gets it."""
        with self._lock:
            shown, following = [*(_public(shown) for shown in self._queue[:QUEUE]), None, None][:QUEUE]
            last = self.file.last
            return {
                "person": self.person,
                "answers": len(self.file),
                "count": self._deck.count,
                "current": shown,
                "next": following,
                "undo": last.answer if last else None,
            }

    def answer(self, shown_id: str, choice: str, seconds: float | None) -> bool:
        """Count an answer to the triplet that is shown.

        Args:
            shown_id: The id of the triplet.
            choice: One of `CHOICES`.
            seconds: Time that the person took.

        Returns:
            True if it counts, False if the same answer to this triplet counted before, as of a request sent twice.

        Raises:
            StaleError: Another triplet is shown.
            FastDPSError: The answer cannot be written. It does not count, and the triplet stays.
        """
        judge = CHOICES[choice]
        with self._lock:
            if earlier := self.file.answers.get(shown_id):
                if earlier.judge != judge:
                    raise StaleError("This triplet has another answer.")
                return False
            shown = self._queue[0] if self._queue else None
            if shown is None or shown.id != shown_id:
                raise StaleError("Another triplet is shown.")
            for number in shown.triplet:
                self._pictures.write(number)
            prediction = self._guide.predict(self.person, shown.triplet)
            ref, p0, p1 = (self._pictures.path_of(number) for number in shown.triplet)
            self.file.append(
                PageAnswer(
                    answer=shown.id,
                    person=self.person,
                    ref=ref,
                    p0=p0,
                    p1=p1,
                    judge=judge,
                    time=now(),
                    seconds=None if seconds is None else round(seconds, 2),
                    asked=shown.asked,
                    repeats=shown.repeats,
                    predicted=prediction.fitted,
                    baseline=prediction.baseline,
                )
            )
            self._queue.pop(0)
            self._guide.learn(self.person)
            self._fill()
            return True

    def undo(self, answer_id: str) -> bool:
        """Withdraw the last answer, and show its triplet again.

        Args:
            answer_id: The id of the last answer.

        Returns:
            False if this answer was withdrawn before.

        Raises:
            StaleError: It is not the last answer.
            FastDPSError: It cannot be written. The answer still counts.
        """
        with self._lock:
            if answer_id in self.file.undone:
                return False
            last = self.file.last
            if last is None or last.answer != answer_id:
                raise StaleError("This is not the last answer.")
            self.file.undo(answer_id)
            if triplet := self.triplet_of(last):
                self._queue.insert(0, Shown(secrets.token_hex(8), triplet, last.asked, last.repeats))
            self._guide.learn(self.person)
            self._fill()
            return True

    def _fill(self) -> None:
        """Choose triplets until the queue is long enough, and write it down."""
        while len(self._queue) < QUEUE and (shown := self._choose()):
            self._queue.append(shown)
        self._keep_queue()

    def _choose(self) -> Shown | None:
        """Return what comes after the queue; None after the last triplet."""
        position = len(self.file) + len(self._queue)
        if repeated := self._repeat_at(position):
            return repeated
        answers = [(self.triplet_of(answer), answer.asked) for answer in self.file.answers.values()]
        answers += [(shown.triplet, shown.asked) for shown in self._queue]
        asked = {triplet.key for triplet, _ in answers if triplet}
        if self._deck.count is not None and len(asked) >= self._deck.count:
            return None
        rule = "random"
        found = None if position % RANDOM_EVERY == 0 else self._guide.choose(self.person, asked)
        if found is None:
            number = sum(why == rule for _, why in answers)
            while (triplet := self._deck.random(number)).key in asked:
                number += 1
        else:
            triplet, rule = found
        if self._dice(f"side {position} {len(self.file.undone)}").random() < 0.5:
            triplet = Triplet(triplet.ref, triplet.b, triplet.a)
        return Shown(secrets.token_hex(8), triplet, rule)

    def _repeat_at(self, position: int) -> Shown | None:
        """Return a hidden repeat, with its sides swapped, if this is the place of one."""
        block = position // BLOCK
        places = self._dice(f"repeats {block}").sample(range(BLOCK), REPEATS_PER_BLOCK)
        if block == 0:  # not among the first answers
            places = self._dice("first repeats").sample(range(FIRST_REPEAT, BLOCK), REPEATS_PER_BLOCK)
        if position % BLOCK not in places:
            return None
        answers = list(self.file.answers.values())
        repeated = {answer.repeats for answer in answers} | {shown.repeats for shown in self._queue}
        fitting = [
            (answer, triplet)
            for answer in answers[: max(0, position - REPEAT_DISTANCE)]
            if answer.repeats is None and answer.answer not in repeated and (triplet := self.triplet_of(answer))
        ]
        if not fitting:
            return None
        answer, triplet = self._dice(f"repeat {position}").choice(fitting)
        return Shown(secrets.token_hex(8), Triplet(triplet.ref, triplet.b, triplet.a), "repeat", answer.answer)

    def _dice(self, purpose: str) -> random.Random:
        return random.Random(f"{self._deck.seed} {self.person} {purpose}")

    def _keep_queue(self) -> None:
        """Write the queue. It need not survive a power failure, after which the page is given another triplet."""
        paths = [tuple(self._pictures.path_of(number) for number in shown.triplet) for shown in self._queue]
        content = [
            {"id": shown.id, "ref": ref, "p0": p0, "p1": p1, "asked": shown.asked, "repeats": shown.repeats}
            for shown, (ref, p0, p1) in zip(self._queue, paths, strict=True)
        ]
        temporary = self._queue_file.with_suffix(".new")
        with write_errors(self._queue_file):
            temporary.write_text(json.dumps(content), encoding="utf-8")
            temporary.replace(self._queue_file)

    def _kept_queue(self) -> list[Shown]:
        """Return the queue that an earlier server left, without what was answered or does not exist any more."""
        with contextlib.suppress(OSError, ValueError):
            content = parse_json(self._queue_file.read_text(encoding="utf-8"))
            check(content, [_QUEUED])
            return [shown for entry in content if (shown := self._shown_of(entry))]
        return []

    def _shown_of(self, entry: dict[str, Any]) -> Shown | None:
        """Return an entry of the file of the queue, None if it was answered or does not exist any more."""
        is_over = entry["id"] in self.file.answers or entry["id"] in self.file.undone
        numbers = [self._numbers.get(entry[role]) for role in ("ref", "p0", "p1")]
        if is_over or None in numbers or not (entry["repeats"] is None or entry["repeats"] in self.file.answers):
            return None
        triplet = Triplet(*(number for number in numbers if number is not None))
        return Shown(entry["id"], triplet, entry["asked"], entry["repeats"])


def _public(shown: Shown) -> dict[str, Any]:
    """Return a triplet as the page gets it: it does not say what is a repeat."""
    ref, left, right = shown.triplet
    return {"id": shown.id, "ref": ref, "left": left, "right": right}
