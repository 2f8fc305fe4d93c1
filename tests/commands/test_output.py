"""What commands print: names are never markup and always printable, and an output that fails is no traceback."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastdps.commands.options import MAIN_RANK_FIRST_S, run_command
from fastdps.errors import ConfigError
from fastdps.runtime.console import counter, print_line, print_notice, print_result
from helpers.warm_python import run_warm

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "200", "PYTHONUNBUFFERED": ""}
HOSTILE = ["{x}", "{task.id}", "[/red]", "[bold]", "a\udcffb", "\ud800", "%s"]
DISPLAY = """
import sys
from fastdps.commands.options import run_command
from fastdps.runtime.console import counter
with counter(ascii_name := sys.argv[1].encode().decode("unicode_escape"), unit=ascii_name) as count:
    count.start(2)
    count.advance(2)
"""


def in_terminal(*command: str) -> tuple[int, str]:
    """Run a command whose error output is a terminal; return its exit status and output."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=ENVIRONMENT) as process:
        os.close(theirs)
        output = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the last one has closed it
                break
            if not piece:
                break
            output += piece
    os.close(ours)
    return process.returncode, output.decode()


@pytest.mark.parametrize("name", HOSTILE)
def test_names_in_progress_displays_are_no_markup(name):
    escaped = name.encode("unicode_escape").decode()
    status, output = in_terminal(sys.executable, "-c", DISPLAY, escaped)
    assert status == 0, output
    assert "Traceback" not in output
    if name.isascii():
        assert name in output


@pytest.mark.parametrize("name", HOSTILE)
def test_names_can_be_printed(name, capsys):
    print_result(name)
    print_notice(name)
    print_line(name)
    with counter(name, unit="x") as count:
        count.start(1)
        count.advance(1)
    printed = capsys.readouterr()
    shown = {"a\udcffb": r"a\xffb", "\ud800": r"\ud800"}.get(name, name)
    assert printed.out == f"{shown}\n{shown}\n"
    assert printed.err.startswith(f"{shown}\n{shown} 1/1")


@pytest.mark.parametrize("options", ["completion bash", "completion --help", "doctor"])
def test_a_reader_that_ends_first_is_no_error(options):
    reader, writer = os.pipe()
    os.close(reader)
    result = run_warm("-m", "fastdps", *options.split(), stdout=writer, env=ENVIRONMENT)
    os.close(writer)
    assert "Error" not in result.stderr
    assert result.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("options", ["completion bash", "completion --help", "doctor"])
def test_an_output_that_is_full_is_one_error(options):
    with open("/dev/full", "w") as full:
        result = run_warm("-m", "fastdps", *options.split(), stdout=full, env=ENVIRONMENT)
    assert result.stderr.splitlines()[-1] == "error: the output cannot be written: No space left on device."
    assert "Traceback" not in result.stderr
    assert result.returncode == 1


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device")])
def test_an_unbuffered_output_that_fails_is_no_traceback(error, capsys):
    """Then the error comes from `print`, and nothing is left to flush."""

    def command():
        raise error

    assert run_command(command) == (141 if isinstance(error, BrokenPipeError) else 1)
    assert "Traceback" not in capsys.readouterr().err


def test_other_errors_of_files_are_not_hidden():
    def command():
        raise OSError(28, "No space left on device", "file")

    with pytest.raises(OSError, match="file"):
        run_command(command)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_main_rank_says_what_all_processes_found_and_ends_first(rank, capsys, monkeypatch):
    """A launcher ends the others when one has ended, maybe before the main rank has printed the error."""
    slept = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(time, "sleep", slept.append)

    def command():
        raise ConfigError("no such context", everywhere=True)

    assert run_command(command) == 1
    assert capsys.readouterr().err == ("error: no such context\n" if rank == "0" else "")
    assert slept == ([] if rank == "0" else [MAIN_RANK_FIRST_S])
