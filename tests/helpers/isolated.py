"""Run attacks in processes of their own, with bounds of time and memory.

    test --seeds--> server, which has imported everything --fork--> one process per case --outcomes--> server --> test

Importing takes seconds and forking some milliseconds, so the server imports the file of the test once. A process
that crashes, hangs or exhausts its memory is counted and ends neither the server nor the test.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdps.errors import FastDPSError
from helpers.warm_python import WarmProcess

FINE, NAMED = "fine", "named errors"
#: Outcomes that are defects.
SILENT, TRACEBACK, HUNG, CRASHED = "silently wrong", "tracebacks", "hung", "crashed"
LIMIT_S = 30.0
LIMIT_BYTES = 2 << 30  # of private memory, above what the server has


class SilentlyWrongError(Exception):
    """Raised by a reading whose result is wrong although nothing reported it."""


@dataclass(frozen=True)
class Case:
    """An attack.

    Attributes:
        what: A description of the damage.
        names: Texts of which a named error contains one, such as the directory that was attacked.
        readings: What is attempted, by name.
    """

    what: str
    names: tuple[str, ...]
    readings: dict[str, Callable[[], object]]


def expect(condition: object, what: str) -> None:
    """Raise `SilentlyWrongError` unless the condition holds."""
    if not condition:
        raise SilentlyWrongError(what)


def outcome(read: Callable[[], object], names: Iterable[str]) -> str:
    """Return the outcome of a reading, with the text of its error after a colon."""
    try:
        read()
    except SilentlyWrongError as error:
        return f"{SILENT}: {error}"
    except FastDPSError as error:
        found = any(name in str(error) for name in names)
        return f"{NAMED}: {error}" if found else f"{TRACEBACK}: an error that names no file: {error}"
    except BaseException as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        return f"{TRACEBACK}: {type(error).__name__}: {error} ({at.filename}:{at.lineno})"[:600]
    return FINE


def attack(file: str, make: str, seeds: Iterable[int | str], limit_s: float = LIMIT_S) -> Counter[str]:
    """Run a case for each seed, each in a process of its own; print the counts, and fail if there is a defect.

    Args:
        file: `__file__` of the test. The server imports it, and calls its function `prepare` if there is one.
        make: The name of a function in it that makes the `Case` of a seed and a temporary directory.
        seeds: The seeds.
        limit_s: The seconds that a case may take.

    Returns:
        The number of readings by outcome.
    """
    counts: Counter[str] = Counter()
    defects = []
    seeds = list(seeds)
    for seed, (what, found) in zip(seeds, _served(file, make, seeds, limit_s), strict=True):
        for reading, result in found:
            kind = result.partition(":")[0]
            counts[kind] += 1
            if kind not in (FINE, NAMED):
                defects.append(f"seed {seed}, {what}, {reading}: {result}")
    shown = {kind: counts[kind] for kind in (FINE, NAMED, SILENT, TRACEBACK, HUNG, CRASHED)}
    print(f"\n{make}: {len(seeds)} tried, readings: {shown}")
    assert not defects, f"{len(defects)} defects:\n" + "\n".join(defects[:50])
    return counts


def _served(
    file: str, make: str, seeds: list[int | str], limit_s: float
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the description and the outcomes of each case."""
    answers, writer = os.pipe()
    reader, questions = os.pipe()
    server = WarmProcess([__file__, file, make, limit_s], stdin=reader, stdout=writer)
    os.close(reader)
    os.close(writer)
    with server, open(answers) as received, open(questions, "w") as sent:
        for seed in seeds:
            sent.write(json.dumps(seed) + "\n")
            sent.flush()
            line = received.readline()
            assert line, "the server of the attacks ended"
            yield tuple(json.loads(line))
        sent.close()
        assert server.wait(timeout=60) == 0


def _serve(file: str, make: str, limit_s: float) -> None:
    """Fork a process for each seed on standard input, and write its outcomes to standard output."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    getattr(module, "prepare", lambda: None)()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the cases print is not an answer
    for line in sys.stdin:
        print(json.dumps(_in_child(getattr(module, make), json.loads(line), limit_s)), file=answers, flush=True)


def _in_child(make: Callable[[Any, Path], Case], seed: Any, limit_s: float) -> tuple[str, list[tuple[str, str]]]:
    """Run one case in a forked process; return its description and the outcome of each reading."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="fastdps-attack-", ignore_cleanup_errors=True) as directory:
        receiver, sender = os.pipe()
        if (child := os.fork()) == 0:
            _run_and_exit(make, seed, Path(directory), sender)
        os.close(sender)
        data, is_hung = _read_until(receiver, time.monotonic() + limit_s)
        os.close(receiver)
        if is_hung:
            os.killpg(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what it started
    what, *messages = [json.loads(line) for line in data.split(b"\n")[:-1]] or ["before the attack"]
    found = [(name, result) for name, result in messages if result is not None]
    is_open = bool(messages) and messages[-1][1] is None
    if is_hung or status or is_open:
        open_reading = messages[-1][0] if is_open else "between readings"
        found.append((open_reading, f"{HUNG}: after {limit_s} s" if is_hung else f"{CRASHED}: status {status}"))
    return what, found


def _read_until(descriptor: int, end: float) -> tuple[bytes, bool]:
    """Return what is read up to the end of the file, and True if the time ended before."""
    data = b""
    while True:
        if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
            return data, True
        part = os.read(descriptor, 1 << 16)
        if not part:
            return data, False
        data += part


def _run_and_exit(make: Callable[[Any, Path], Case], seed: Any, directory: Path, sender: int) -> None:
    """Run the readings of a case, and send a line before and after each one."""

    def send(message: object) -> None:
        os.write(sender, json.dumps(message).encode() + b"\n")

    status = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders write to it
        _limit_memory()
        case = make(seed, directory)
        send(case.what)
        for name, read in case.readings.items():
            send((name, None))
            send((name, outcome(read, case.names)))
        status = 0
    except BaseException as error:
        send(f"making the case raised {error!r}")
    finally:
        os._exit(status)


def _limit_memory() -> None:
    """Limit the private memory of this process. Address space that is only reserved, as by threads, does not count."""
    with open("/proc/self/status") as file:
        used_kB = next(int(line.split()[1]) for line in file if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (used_kB * 1024 + LIMIT_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    from helpers import isolated  # the module that the file of the test imports, with the same classes

    isolated._serve(sys.argv[1], sys.argv[2], float(sys.argv[3]))
