"""`fastdps completion`: what a shell needs to complete commands, options and choices.

It is printed once and read by the shell; completing starts no Python, which would import torch at every press of a key.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import shtab

from fastdps.commands import cli

#: How each shell is told, once.
INSTALL = {
    "bash": "fastdps completion bash > ~/.local/share/bash-completion/completions/fastdps",
    "zsh": "fastdps completion zsh > DIR/_fastdps   # DIR in $fpath, before compinit",
    "fish": "fastdps completion fish > ~/.config/fish/completions/fastdps.fish",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastdps completion`."""
    parser.add_argument("shell", choices=sorted(INSTALL), help="whose completion")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "to install:\n" + "\n".join(f"  {line}" for line in INSTALL.values())


def run_completion(arguments: argparse.Namespace) -> None:
    """Print the script."""
    parser = cli.make_parser(complete=cli.COMMANDS)
    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, arguments.shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _actions(sub)
