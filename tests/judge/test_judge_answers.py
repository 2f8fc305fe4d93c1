"""The file of answers: what is on disk counts, and what does not count is not on disk."""

import json
import os
import resource
from dataclasses import replace

import pytest

from fastdps.errors import ConfigError, FastDPSError
from fastdps.judge.answers import AnswerFile, PageAnswer, person_name
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.judgements import JudgementFile
from helpers.judgement_files import judgements_of, write_images

FIRST = PageAnswer(
    answer="a1", person="anna", ref="images/000.png", p0="images/001.png", p1="images/002.png", judge=1.0,
    time="2026-11-28T10:00:00+00:00", seconds=1.5, asked="random", repeats=None, predicted=None, baseline=None,
)  # fmt: skip


def numbered(number, **changes):
    return replace(FIRST, answer=f"a{number}", **changes)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "anna.jsonl"


def test_what_is_appended_is_found_again(path):
    file = AnswerFile(path)
    answers = [numbered(n, judge=n / 2, p1=f"images/{n}é.png") for n in range(3)]
    for answer in answers:
        file.append(answer)
    assert file.undo("a1") == answers[1]
    again = AnswerFile(path)
    assert list(again.answers.values()) == list(file.answers.values()) == [answers[0], answers[2]]
    assert again.undone == {"a1"}
    assert again.last == answers[2]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 4


def test_lines_are_only_ever_appended(path):
    file, before = AnswerFile(path), b""
    for step in range(20):
        file.append(numbered(step)) if step % 5 < 4 else file.undo(f"a{step - 1}")
        content = path.read_bytes()
        assert content.startswith(before)
        assert len(content) > len(before)
        before = content


@pytest.mark.parametrize("keep", [1, 10, -2])
def test_an_incomplete_line_of_a_killed_server_is_removed(path, keep):
    file = AnswerFile(path)
    file.append(numbered(1))
    complete = path.read_bytes()
    file.append(numbered(2))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(complete) + keep] if keep > 0 else whole[:keep])
    assert list(AnswerFile(path).answers) == ["a1"]
    assert path.read_bytes() == complete


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 2: .*Expecting"),
        ("[]", "line 2: the content must be an object"),
        (json.dumps({"undo": "a9"}), "withdraws an answer 'a9' that does not exist"),
        (json.dumps({"answer": "a1"}), "person is missing"),
        (None, "repeats the answer 'a1'"),
        (json.dumps({**vars(FIRST), "answer": "a2", "judge": 2}), "judge is 2, not between 0 and 1"),
        (json.dumps({**vars(FIRST), "answer": "a2", "predicted": "x"}), "predicted must be a number"),
        ("\xff", "line 2"),
    ],
)
def test_damage_is_an_error_that_names_the_line(path, line, why):
    AnswerFile(path).append(numbered(1))
    with path.open("ab") as file:
        file.write(path.read_bytes() if line is None else line.encode("latin-1") + b"\n")
    with pytest.raises(FastDPSError, match=why):
        AnswerFile(path)


@pytest.fixture
def full_disk():
    """Have files grow by at most five bytes beyond a size, as on a full disk, where a write is cut short."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("undone", [False, True])
def test_an_answer_that_is_not_on_disk_does_not_count(path, undone, full_disk):
    file = AnswerFile(path)
    file.append(numbered(1))
    before = path.read_bytes()
    full_disk(len(before))
    with pytest.raises(FastDPSError, match=r"anna\.jsonl cannot be written"):
        file.undo("a1") if undone else file.append(numbered(2))
    assert path.read_bytes() == before
    assert list(file.answers) == list(AnswerFile(path).answers) == ["a1"]


def test_an_answer_that_cannot_be_flushed_does_not_count(path, monkeypatch):
    file = AnswerFile(path)

    def broken(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(FastDPSError, match="Input/output error"):
        file.append(numbered(1))
    assert len(file) == 0
    assert path.read_bytes() == b""


def test_an_id_is_used_once(path):
    file = AnswerFile(path)
    file.append(numbered(1))
    file.undo("a1")
    with pytest.raises(ValueError, match="a1"):
        file.append(numbered(1))


def test_the_file_is_a_source_of_judgements(path):
    """Ties are one divided vote, repeats are votes of their own, and undone answers are left out."""
    names = list(write_images(path.parent, 6))
    file = AnswerFile(path)
    for number, judge in enumerate([0, 1, 0.5, 1]):
        file.append(numbered(number, judge=float(judge), ref=names[number], p0=names[4], p1=names[5]))
    file.append(numbered(4, ref=names[0], p0=names[5], p1=names[4], repeats="a0"))
    file.undo("a4")
    file.append(numbered(5, ref=names[0], p0=names[5], p1=names[4], repeats="a0"))
    file.undo("a5")
    file.append(numbered(6, ref=names[0], p0=names[4], p1=names[5], judge=0.0, repeats="a0"))
    pack(JudgementFile(path), path.parent / "set", PackOptions(size=8), workers=1)
    rows = judgements_of(path.parent / "set" / "train")
    wanted = [
        (answer.ref, answer.p0, answer.p1, 1 - answer.judge, answer.judge, "anna") for answer in file.answers.values()
    ]
    assert [tuple(row[key] for key in ("ref", "a", "b", "votes_a", "votes_b", "judge")) for row in rows] == wanted
    assert len(wanted) == 5


@pytest.mark.parametrize(
    ("given", "name"), [("anna", "anna"), ("  Anna  B. ", "Anna B"), ("Zoe\u0308", "Zo\u00eb"), ("7", "7")]
)
def test_names(given, name):
    assert person_name(given) == name


@pytest.mark.parametrize(
    "given", ["", " ", "..", "../x", "a/b", "a\\b", "-a", ".a", "a\0", "x" * 41, "Pooled", "a\u202eb", "<b>"]
)
def test_what_is_not_a_name(given):
    with pytest.raises(ConfigError, match="cannot be the name"):
        person_name(given)
