"""Common parts of the commands: the parser, option types and groups, and the exit status of a command."""

from __future__ import annotations

import argparse
import ast
import contextlib
import errno
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fastdps.errors import ConfigError, FastDPSError, StoppedError, did_you_mean
from fastdps.runtime.files import printable
from fastdps.runtime.signals import Terminated, raise_on_sigterm
from fastdps.shards.storage import Location, locate

if TYPE_CHECKING:
    from fastdps.shards.cache import Cache

#: Exit status when the reader of the output ends before it, as in `fastdps report --help | head`: 128 + SIGPIPE.
BROKEN_PIPE = 141
#: A launcher ends all processes of a job when one has failed. So with an error that all have, the others wait for the
#: main rank, which prints it, to end first, at most this long.
MAIN_RANK_FIRST_S = 10
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_WEIGHT = re.compile(r"(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,2})?", re.IGNORECASE | re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?")


def location(text: str) -> Location:
    """Parse an option that names a directory or a URL. Raises `ArgumentTypeError`."""
    try:
        return locate(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def weighted_location(text: str) -> tuple[Location, float | None]:
    """Parse a location with an optional weight: DIR, or DIR:0.7. Raises `ArgumentTypeError`.

    The weight is what follows the last colon if that is a number above 0. A directory of this very name has none, and
    the port of a URL without a path is none.
    """
    head, _, tail = text.rpartition(":")
    is_port = "/" not in head.partition("://")[2] and "://" in head
    if not head or is_port or not _WEIGHT.fullmatch(tail) or float(tail) <= 0 or os.path.exists(text):
        return location(text), None
    return location(head), float(tail)


def byte_count(text: str) -> int:
    """Parse a number of bytes: 50GB, 1.5TB, 200 MiB, 1000000. Raises `ArgumentTypeError`."""
    found = _SIZE.fullmatch(text.strip().upper())
    if not found or found[2] == "I":
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give it as 50GB, 1.5TB or 200MiB")
    return int(float(found[1]) * _UNITS[found[2]])


def add_quiet(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option --quiet."""
    parser.add_argument("--quiet", action="store_true", help="print errors only, neither progress nor results")


def examples(*commands: str) -> str:
    """Return the epilog of a command: commands that work as they are printed, once their paths are replaced."""
    return "\n".join(["examples:", *(f"  {command}" for command in commands)])


def table_keys(module: str, table: str) -> list[str]:
    """Return the keys of a table of a module that imports torch, without importing it: help must be fast.

    Args:
        module: Path of the module in the package, such as "metric/backbones.py".
        table: Name of the table, a dictionary with texts as keys.

    Example:
        >>> table_keys("contexts/distortions.py", "DISTORTIONS")[:2]
        ['rotate', 'translate']
    """
    tree = ast.parse((Path(__file__).parents[1] / module).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict) and ast.unparse(node.target) == table:
            return [ast.literal_eval(key) for key in node.value.keys if key is not None]
    raise ValueError(f"{module} has no table {table}")


def byte_text(size: int) -> str:
    """Return a number of bytes as text.

    Example:
        >>> byte_text(3_321_000)
        '3.3 MB'
    """
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> counted(1, "shard"), counted(1200, "shard")
        ('1 shard', '1,200 shards')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def is_main_rank() -> bool:
    """Return True on the process of a job that prints results and errors common to all."""
    return os.environ.get("RANK", "0") == "0"


def run_command(command: Callable[[], None], *, can_resume: bool = False) -> int:
    """Run a command and return its exit status.

    Args:
        command: The command.
        can_resume: After a signal, print that the same command resumes.

    Returns:
        0; 1 after a `FastDPSError`, which is printed without a traceback, or if the output cannot be written; 128 + the
        number of the signal that stopped the command; `BROKEN_PIPE` if nobody reads the output any more.
    """
    try:
        with raise_on_sigterm():
            command()
            sys.stdout.flush()  # here, and not at exit, where Python prints a traceback of its own
    except FastDPSError as error:
        stopped = isinstance(error, StoppedError)
        if is_main_rank() or not error.everywhere:
            print(printable(str(error) if stopped else f"error: {error}"), file=sys.stderr)
        elif not stopped:
            time.sleep(MAIN_RANK_FIRST_S)
        return error.exit_status if isinstance(error, StoppedError) else 1
    except OSError as error:
        if not _is_of_output(error):
            raise
        return _output_failed(error)
    except KeyboardInterrupt as stop:
        message, status = ("terminated", 143) if isinstance(stop, Terminated) else ("interrupted", 130)
        print(f"{message}; run the same command again to resume" if can_resume else message, file=sys.stderr)
        return status
    return 0


def _is_of_output(error: OSError) -> bool:
    """Return whether an error is of the standard output: errors of files name them, or are `FastDPSError`."""
    return error.filename is None and error.errno in (None, errno.EPIPE, errno.ENOSPC, errno.EIO)


def _output_failed(error: OSError) -> int:
    """Discard the rest of the output, so that Python does not fail on it at exit, and return the exit status."""
    with contextlib.suppress(OSError, ValueError):  # a test may have replaced the output by one without descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    print(f"error: the output cannot be written: {error.strerror}.", file=sys.stderr)
    return 1


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that read shards by URL."""
    group = parser.add_argument_group("shards of a URL (s3://, gs://, http://, https://)")
    group.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="directory of the shard cache, best on a local disk (default: $FASTDPS_CACHE, or in the user's cache)",
    )
    group.add_argument(
        "--cache-size",
        type=byte_count,
        metavar="SIZE",
        help="largest size of the cache, such as 50GB (default: half of the free space); shards that are not in use "
        "are evicted only when it is full",
    )


def cache_from(arguments: argparse.Namespace) -> Cache | None:
    """Return the cache that the options describe, None without them."""
    if arguments.cache_dir is None and arguments.cache_size is None:
        return None
    from fastdps.shards.cache import make_cache  # slow to import, and not needed for --help

    return make_cache(arguments.cache_dir, arguments.cache_size)


class Help(argparse.RawDescriptionHelpFormatter):
    """Help with the examples of the epilog as they are, and its other paragraphs wrapped."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 26, **options})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = [
            line if line.startswith(" ") else textwrap.fill(line, width, subsequent_indent="  ")
            for line in text.splitlines()
        ]
        return "\n".join(indent + line if line else line for line in "\n".join(filled).splitlines())


class Parser(argparse.ArgumentParser):
    """A parser that suggests the nearest flag, choice or command for an unknown one, in two lines.

    Sub-parsers are of the same class. (From Python 3.14 on argparse can do this for choices, but not for flags.)
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": Help, **options})

    def error(self, message: str) -> NoReturn:
        """Print the error and how to get help, instead of all options, and exit with the status 2."""
        self.exit(2, f"error: {printable(message)}\nTo see all options: {self.prog} --help\n")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """Parse as argparse does, but check flags first, so that a mistyped flag is not reported as a missing one."""
        args = sys.argv[1:] if args is None else list(args)
        known = [option for option in self._option_string_actions if option.startswith("--")]
        for argument in args:
            if argument == "--" or (self._subparsers is not None and not argument.startswith("-")):
                break  # what follows is not a flag, or a flag of a command
            flag = argument.partition("=")[0]
            if flag.startswith("--") and not any(option.startswith(flag) for option in known):
                self.error(f"unknown option {flag}.{did_you_mean(flag, known)}")
        return super().parse_known_args(args, namespace)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """As in argparse, but help that cannot be printed ends as the output of a command does."""
        try:
            sys.stdout.flush()
        except OSError as error:
            status = _output_failed(error)
        super().exit(status, message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Check a value against the choices; argparse calls this for sub-commands too."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = did_you_mean(str(value), map(str, action.choices or ()))
            raise argparse.ArgumentError(action, f"{error.message}.{hint}" if hint else error.message) from None
