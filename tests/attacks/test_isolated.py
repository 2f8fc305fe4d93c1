"""The harness of the attacks: each outcome is found and counted, and none ends the others."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdps.errors import FastDPSError
from helpers.isolated import Case, attack, expect

ENDS: dict[str, Callable[[], object]] = {
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": signal.pause,
    "exit": lambda: os._exit(0),
    "fine": lambda: None,
}


def raises(error: Exception) -> Callable[[], object]:
    def read() -> None:
        raise error

    return read


def make_each_outcome(seed: str, directory: Path) -> Case:
    readings: dict[str, Callable[[], object]] = {
        "sound": lambda: None,
        "named": raises(FastDPSError("x/y is damaged")),
        "nameless": raises(FastDPSError("something is damaged")),
        "silent": lambda: expect(False, "other pixels"),
        "missing": lambda: {}["key"],
        "memory": lambda: bytearray(3 << 30),
        "last": ENDS[seed],
    }
    return Case("each", ("x/y",), readings)


def make_sound(seed: int, directory: Path) -> Case:
    return Case("sound", (), {"fine": lambda: None, "quiet": lambda: print("not an answer")})


def make_none(seed: int, directory: Path) -> Case:
    raise KeyError(seed)


def test_each_outcome_is_counted(capsys):
    with pytest.raises(AssertionError) as failed:
        attack(__file__, "make_each_outcome", ENDS, limit_s=2.0)
    assert capsys.readouterr().out == (
        "\nmake_each_outcome: 4 tried, readings: {'fine': 5, 'named errors': 4, 'silently wrong': 4, 'tracebacks': 12, "
        "'hung': 1, 'crashed': 2}\n"
    )
    text = str(failed.value)
    assert "seed crash, each, last: crashed: status -11" in text
    assert "seed hang, each, last: hung: after 2.0 s" in text
    assert "seed exit, each, last: crashed: status 0" in text
    assert "seed fine, each, nameless: tracebacks: an error that names no file: something is damaged" in text
    assert "seed fine, each, silent: silently wrong: other pixels" in text
    assert "seed fine, each, missing: tracebacks: KeyError: 'key'" in text
    assert "seed fine, each, memory: tracebacks: MemoryError" in text


def test_sound_cases_pass():
    assert attack(__file__, "make_sound", range(3)) == {"fine": 6}


def test_a_case_that_cannot_be_made_is_a_defect():
    with pytest.raises(AssertionError, match=r"making the case raised KeyError\(7\)"):
        attack(__file__, "make_none", [7])
