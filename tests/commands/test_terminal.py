"""What a terminal shows at 60, 80 and 120 columns: what matters first, and every number with all of its digits."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from fastdps.commands import tables
from fastdps.evaluation.image_spread import AccuracyIntervals
from fastdps.evaluation.run_scores import (
    ContextScore,
    HumanAgreement,
    PairAccuracy,
    RunScores,
    ScoreSummary,
    SubsetScores,
)
from fastdps.metric.scores import Interval
from fastdps.run_log import Throughput
from fastdps.runtime.console import Column, TextTable
from fastdps.runtime.progress_line import TrainingStatus, progress_line

ROOT = Path(__file__).parents[2]
RANKING = ("color", "translate", "darken", "zoom_in", "rotate", "blur")
STEP = {
    "event": "step",
    "epoch": 12,
    "step": 230,
    "loss": 0.35821,
    "accuracy": 0.71234,
    "images_per_s": 554.3,
    "triplets_per_s": 5_986_440.0,
    "data_wait_fraction": 0.021,
}
MEANS = ("distort", "real", "all", "jnd")
DISPLAY = f"""
from fastdps.runtime.console import Column, TextTable, training_display
with training_display(steps=800, epochs=40, enabled=True) as show:
    show({STEP!r})
    show({{"event": "validation", "epoch": 12, "accuracies": [0.705, 0.715]}})
    show({STEP | {"step": 400}!r})
table = TextTable([Column("ranking", fold=True), *(Column(f"worst context {{n}}", right=True) for n in range(4))])
table.add_row({", ".join(RANKING)!r}, *["0.1234"] * 4)
table.print()
"""


def in_terminal(columns: int, script: str) -> list[str]:
    """Run a script in a pseudo-terminal of some columns; return the lines that it showed, without colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    environment |= {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=theirs, stderr=theirs, stdin=theirs, env=environment
    ) as process:
        os.close(theirs)
        output = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the process has closed it
                break
            if not piece:
                break
            output += piece
    os.close(ours)
    shown = output.decode()
    assert process.returncode == 0, shown
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n").splitlines()


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_training_in_a_terminal(columns):
    lines = in_terminal(columns, DISPLAY)
    assert all(len(line) <= columns for line in lines), lines
    (last, *_) = [line for line in reversed(lines) if "epoch 12/40" in line]
    assert re.match(r"epoch 12/40  [━─]{6,24}  loss 0.358  accuracy 0.712  \d+:\d\d left", last), last
    assert last.count("━") in (last.count("─"), last.count("─") - 1, last.count("─") + 1)  # half of the steps are done
    assert ("validation 0.710" in last) == (columns >= 80)
    assert ("554 images/s" in last) == (columns == 120)
    row = [line for line in lines if "0.1234" in line]
    assert row[0].count("0.1234") == 4


@pytest.mark.parametrize("width", range(20, 200, 7))
def test_a_line_fits_and_what_matters_comes_first(width):
    status = TrainingStatus(steps=800, epochs=40)
    assert len(progress_line(status, None, width)) <= width
    status.update(STEP)
    status.update({"event": "validation", "epoch": 11, "accuracies": [0.75]})
    status.update({"event": "validation", "epoch": 12, "accuracies": [0.5]})
    line = progress_line(status, 7265, width)
    assert len(line) <= width
    parts = ["loss 0.358", "accuracy 0.712", "2h01 left", "validation 0.500", "554 images/s", "wait 2%"]
    shown = [part in line for part in parts]
    assert shown == sorted(shown, reverse=True)
    assert ("(best 0.750, epoch 11)" in line) == (width >= 99)


def subset(value: float) -> SubsetScores:
    return SubsetScores(4720, 0.7654, value, value + 0.01, 0.01, (value,))


@pytest.mark.parametrize("columns", [60, 80])
def test_tables_keep_their_numbers(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    intervals = AccuracyIntervals(*(Interval(value, value - 0.05, value + 0.05) for value in (0.4321, 0.8765, 0.4444)))
    contexts = tuple(ContextScore(RANKING, 0.4321 + n / 1000, 0.8765 + n / 1000, intervals) for n in range(10))
    scores = RunScores(
        *("alexnet", "lin", "spatial", "fast"),
        Throughput(),
        contexts,
        ScoreSummary(10, 1.0, 0.4321, 0.8765, intervals),
        HumanAgreement(
            {"frameinterp": subset(0.6123)},
            {"traditional": subset(0.5678)},
            dict.fromkeys(("distort", "real", "all", "jnd")),
        ),
        pairs=(PairAccuracy("translate, zoom_in", 0.1357, 0.2468),),
    )
    tables.print_scores(scores)
    tables.print_agreement(scores.bapps)
    shown = capsys.readouterr().out
    assert all(len(line) <= columns for line in shown.splitlines())
    numbers = (
        "0.4321",
        "0.8765",
        "0.8855",
        "0.826-0.926",
        "0.826 to 0.926",
        "0.1357",
        "0.2468",
        "0.6123",
        "0.5778",
        "0.7654",
        "4,720",
    )
    for number in numbers:
        assert number in shown, number
    assert "…" not in shown
    assert "hardest" in shown
    assert "easiest" in shown


def test_one_context_is_listed_once(capsys):
    one = (ContextScore(RANKING, 0.4, 0.8),)
    scores = RunScores("alexnet", "lin", "spatial", "fast", Throughput(), one, ScoreSummary(1, 1.0, 0.4, 0.8))
    tables.print_scores(scores)
    shown = capsys.readouterr().out
    assert shown.count("0.4000") == 2  # in the summary and in the table
    assert "95 %" not in shown  # scores of 0.1.0 have no intervals
    assert "mean over" not in shown
    assert "easiest" not in shown


def test_a_wide_table_is_not_narrowed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    table = TextTable([Column("a name", fold=True), Column("worst context", right=True)])
    table.add_row("x", "1")
    table.print()
    assert "worst context" in capsys.readouterr().out
