"""The parser of all commands: argparse's, which suggests the nearest name for one that is mistyped."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from fastdps.suggest import did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser that names the nearest flag, choice or command where an unknown one is given.

    Sub-parsers are of the same kind. (From Python 3.14 on argparse can do this for choices, but not for flags.)
    """

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """As in argparse, but flags are looked at first, so that a mistyped one is not reported as one that lacks."""
        args = sys.argv[1:] if args is None else list(args)
        known = [option for option in self._option_string_actions if option.startswith("--")]
        for argument in args:
            if argument == "--" or (self._subparsers is not None and not argument.startswith("-")):
                break  # what follows is no flag, or one of a command
            flag = argument.partition("=")[0]
            if flag.startswith("--") and not any(option.startswith(flag) for option in known):
                self.error(f"unknown option {flag}.{did_you_mean(flag, known)}")
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """The one place that all choices pass, those of sub-commands too."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = did_you_mean(str(value), map(str, action.choices or ()))
            raise argparse.ArgumentError(action, f"{error.message}.{hint}" if hint else error.message) from None
