"""`fastdps completion`: print the script with which a shell completes commands, options and choices.

The script is static: completing starts no Python process, which would take too long at a press of a key.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import shtab

from fastdps.commands import cli

#: Command that installs the script, by shell.
INSTALL = {
    "bash": "fastdps completion bash > ~/.local/share/bash-completion/completions/fastdps",
    "zsh": "fastdps completion zsh > DIR/_fastdps   # DIR in $fpath, before compinit",
    "fish": "fastdps completion fish > ~/.config/fish/completions/fastdps.fish",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps completion`."""
    parser.add_argument("shell", choices=sorted(INSTALL), help="shell to print the script for")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "to install:\n" + "\n".join(f"  {line}" for line in INSTALL.values())


def run_completion(arguments: argparse.Namespace) -> None:
    """Run `fastdps completion`."""
    parser = cli.make_parser(complete=cli.COMMANDS)
    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, arguments.shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the actions of a parser and of its sub-parsers."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _actions(sub)
