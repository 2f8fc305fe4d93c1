"""Findings about the machine, and their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastdps.runtime.console import Column, Styled, TextTable, print_line

State = Literal["ok", "note", "bad"]
_STYLES: dict[State, str] = {"ok": "green", "note": "yellow", "bad": "bold red"}


@dataclass(frozen=True)
class Check:
    """One finding about the machine.

    Attributes:
        name: What was checked.
        state: "ok", "note" if something could be better, or "bad" if training would fail.
        found: What was found.
        advice: What to do about it, if anything.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def print_checks(checks: Sequence[Check]) -> None:
    """Print findings in a table, and below it the advice."""
    table = TextTable([Column("check", fold=True), Column(), Column("found", fold=True)], title="This machine")
    for check in checks:
        table.add_row(check.name, Styled(check.state, _STYLES[check.state]), check.found)
    table.print()
    for check in checks:
        if check.advice:
            print_line(f"{check.name}: {check.advice}", wrap=False)
