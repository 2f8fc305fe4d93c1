"""A session: each triplet is asked as planned, each answer counts once, and a restart continues where it was."""

import json
import secrets
from collections import Counter

import pytest

from fastdps.errors import FastDPSError
from fastdps.judge.answers import CHOICES, AnswerFile
from fastdps.judge.session import FIRST_REPEAT, RANDOM_EVERY, REPEAT_DISTANCE, Foreseen, Session, StaleError
from fastdps.judge.triplets import GivenTriplets, ImageTriplets, Triplet
from helpers.judging import NoMetric


class Numbers:
    """PictureSet without pixels."""

    def __init__(self, count):
        self.count = count
        self.written = set()

    def numbers(self):
        return {self.path_of(number): number for number in range(self.count)}

    def path_of(self, number):
        return f"images/{number}.png"

    def write(self, number):
        self.written.add(number)


class Chooses(NoMetric):
    """A metric that wants the triplets with the largest numbers first, and counts the answers."""

    def __init__(self):
        self.learned = 0

    def choose(self, person, asked):
        options = (Triplet(n, n - 1, n - 2) for n in range(39, 1, -1))
        return next(((triplet, "information") for triplet in options if triplet.key not in asked), None)

    def predict(self, person, triplet):
        return Foreseen(0.75, 0.25)

    def learn(self, person):
        self.learned += 1


@pytest.fixture
def begin(tmp_path):
    """Begin or resume the session of a person."""

    def make(person="anna", *, deck=None, pictures=None, guide=None):
        pictures = pictures or Numbers(40)
        file = AnswerFile(tmp_path / f"{person}.jsonl")
        return Session(
            person, file, tmp_path / f"{person}.json", deck or ImageTriplets(40, 0), pictures, guide or NoMetric()
        )

    return make


def give(session, count, choice=lambda n: "left"):
    """Give answers, and return the triplets that were shown."""
    shown = []
    for number in range(count):
        current = session.state()["current"]
        shown.append(current)
        assert session.answer(current["id"], choice(number), 1.0)
    return shown


def keys(shown):
    return [Triplet(one["ref"], one["left"], one["right"]).key for one in shown]


def test_an_answer_is_on_disk_with_what_was_shown(begin):
    session = begin(guide=Chooses())
    choices = list(CHOICES)
    shown = give(session, 12, lambda n: choices[n % 3])
    saved = list(AnswerFile(session.file.path).answers.values())
    assert [answer.answer for answer in saved] == [one["id"] for one in shown]
    for number, (answer, one) in enumerate(zip(saved, shown, strict=True)):
        assert (answer.ref, answer.p0, answer.p1) == tuple(
            f"images/{one[role]}.png" for role in ("ref", "left", "right")
        )
        assert answer.judge == (0.0, 1.0, 0.5)[number % 3]
        assert (answer.person, answer.predicted, answer.baseline) == ("anna", 0.75, 0.25)
    assert session._pictures.written == {number for one in shown for number in (one["ref"], one["left"], one["right"])}
    assert session._guide.learned == 12


def test_the_next_triplet_is_known_before_the_answer(begin):
    """So that its images are loaded meanwhile."""
    session = begin()
    for _ in range(40):
        following = session.state()["next"]
        give(session, 1)
        assert session.state()["current"] == following


def test_hidden_repeats(begin):
    """Eight in a hundred, of decided and undecided answers, with swapped sides, and not soon after the first time."""
    session = begin()
    shown = give(session, 100, lambda n: list(CHOICES)[n % 3])
    answers = session.answers
    place = {answer.answer: number for number, answer in enumerate(answers)}
    repeats = [(number, place[answer.repeats]) for number, answer in enumerate(answers) if answer.repeats]
    assert len(repeats) == 8
    assert min(number for number, _ in repeats) >= FIRST_REPEAT
    for number, first in repeats:
        assert number - first >= REPEAT_DISTANCE
        assert (answers[number].p0, answers[number].p1) == (answers[first].p1, answers[first].p0)
        assert answers[number].asked == "repeat"
        assert answers[first].repeats is None
    assert len({first for _, first in repeats}) == 8
    others = [key for answer, key in zip(answers, keys(shown), strict=True) if not answer.repeats]
    assert len(set(others)) == len(others) == 92
    assert set(shown[0]) == {"id", "ref", "left", "right"}  # the page is not told


def test_sides_are_random(begin):
    shown = give(begin(guide=Chooses()), 36)
    on_the_left = Counter(one["left"] > one["right"] for one in shown)
    assert min(on_the_left.values()) >= 8


def test_random_triplets_are_common_to_all_people(begin):
    """One in four, whatever chooses the others."""
    anna = _answers(begin("anna", guide=Chooses()), 30)
    ben = _answers(begin("ben"), 30)
    common = [answer for answer in anna if answer.asked == "random"]
    assert len(common) == pytest.approx(30 / RANDOM_EVERY, abs=2)
    sets = [[(answer.ref, {answer.p0, answer.p1}) for answer in given] for given in (common, ben)]
    assert all(one in sets[1] for one in sets[0])
    assert {answer.asked for answer in anna} == {"random", "information", "repeat"}


def _answers(session, count):
    give(session, count)
    return session.answers


def test_an_answer_counts_once(begin):
    session = begin()
    (first,) = give(session, 1)
    assert session.answer(first["id"], "left", 1.0) is False  # a double click, or a request that was sent again
    with pytest.raises(StaleError, match="another answer"):
        session.answer(first["id"], "right", 1.0)
    state = session.state()
    for stale in (state["next"]["id"], "unknown", ""):
        with pytest.raises(StaleError, match="Another triplet"):
            session.answer(stale, "left", 1.0)
    assert session.state() == state
    assert len(AnswerFile(session.file.path)) == 1


def test_undo_shows_the_triplet_again(begin):
    session = begin()
    first, second = give(session, 2)
    state = session.state()
    assert session.undo(state["undo"])
    assert session.undo(second["id"]) is False  # sent again
    again = session.state()["current"]
    assert {**again, "id": second["id"]} == second
    assert again["id"] != second["id"]
    with pytest.raises(StaleError, match="last"):
        session.undo("unknown")
    assert session.undo(first["id"])
    assert session.state()["answers"] == 0
    assert session.state()["undo"] is None
    assert keys(give(session, 3)) == [*keys([first, second]), *keys([state["current"]])]
    with pytest.raises(StaleError):
        session.answer(second["id"], "left", 1.0)
    assert len(AnswerFile(session.file.path)) == 3


def test_a_restart_at_any_time_changes_nothing(begin, tmp_path):
    """A server that is killed and started again shows the same triplets, with the same ids."""
    session = begin(guide=Chooses())
    for step in range(30):
        state = session.state()
        session = begin(guide=Chooses())
        assert session.state() == state
        if step % 7 == 6:
            session.undo(state["undo"])
        else:
            give(session, 1)


def test_killed_between_the_answer_and_the_queue(begin, tmp_path):
    session = begin()
    give(session, 3)
    before = (tmp_path / "anna.json").read_bytes()
    state = session.state()
    give(session, 1)
    (tmp_path / "anna.json").write_bytes(before)
    session = begin()
    assert session.answer(state["current"]["id"], "left", 1.0) is False  # the page sends it again
    assert session.state()["current"] == state["next"]
    assert session.state()["answers"] == 4


@pytest.mark.parametrize("content", ["", "{}", "[1]", '[{"id": "x"}]', "[" * 10000])
def test_a_damaged_queue_is_chosen_again(begin, tmp_path, content):
    give(begin(), 3)
    (tmp_path / "anna.json").write_text(content)
    session = begin()
    assert session.state()["answers"] == 3
    give(session, 3)


def test_a_queue_of_other_images_is_chosen_again(begin):
    give(begin(), 3)
    session = begin(pictures=Numbers(4), deck=ImageTriplets(4, 0))
    assert all(session.state()["current"][role] < 4 for role in ("ref", "left", "right"))


def test_given_triplets_are_asked_once_each(begin):
    triplets = [Triplet(n, n + 1, n + 2) for n in range(12)]
    session = begin(deck=GivenTriplets([*triplets, Triplet(0, 2, 1)], 0))
    state = session.state()
    assert state["count"] == 12
    shown = []
    while session.state()["current"]:
        shown += give(session, 1)
    counts = Counter(keys(shown))
    assert set(counts) == {triplet.key for triplet in triplets}
    assert len(shown) - len(counts) == sum(answer.repeats is not None for answer in session.answers)
    assert session.undo(session.state()["undo"])
    give(session, 1)
    assert session.state()["current"] is None


def test_an_answer_that_cannot_be_written_leaves_the_triplet(begin, monkeypatch):
    session = begin()
    state = session.state()

    def full(record):
        raise FastDPSError("the disk is full")

    monkeypatch.setattr(session.file, "_write", full)
    with pytest.raises(FastDPSError):
        session.answer(state["current"]["id"], "left", 1.0)
    assert session.state() == state
    monkeypatch.undo()
    assert session.answer(state["current"]["id"], "left", 1.0)


def test_ids_are_not_guessed(begin):
    shown = give(begin(), 20)
    assert len({one["id"] for one in shown}) == 20
    assert all(len(one["id"]) == 2 * len(secrets.token_bytes(8)) for one in shown)


def test_the_queue_is_small(begin, tmp_path):
    give(begin(), 5)
    assert len(json.loads((tmp_path / "anna.json").read_text())) == 2
