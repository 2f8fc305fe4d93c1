"""The table of `fastdps doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

State = Literal["ok", "note", "bad"]
_SHOWN: dict[State, Text] = {
    "ok": Text("ok", "green"),
    "note": Text("note", "yellow"),
    "bad": Text("bad", "bold red"),
}


@dataclass(frozen=True)
class Check:
    """One finding: "ok", "note" where something could be better, or "bad" where training would fail; and advice."""

    name: str
    state: State
    found: str
    advice: str = ""


def print_checks(checks: Sequence[Check]) -> None:
    """Print findings, a row each, and below them their advice. Names and paths are never taken for markup."""
    table = Table(title="This machine", title_justify="left")
    table.add_column("what", overflow="fold")
    table.add_column("")
    table.add_column("found", overflow="fold")
    for check in checks:
        table.add_row(Text(check.name), _SHOWN[check.state], Text(check.found))
    console = Console()
    console.print(table)
    for check in checks:
        if check.advice:
            console.print(Text(f"{check.name}: {check.advice}"), soft_wrap=True)
