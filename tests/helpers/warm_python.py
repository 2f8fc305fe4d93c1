"""Processes of Python that have imported torch, DALI and fastdps: importing takes seconds, forking milliseconds.

    test --command, environment, files--> server, which has imported everything --fork--> process --status--> test

A process has its own arguments, environment, working directory and files, and ends as an interpreter does. A test of
what is imported, or of a launcher, needs a process from scratch.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parents[2]
#: What the server imports: most of what the processes need.
MODULES = ("fastdps.commands.train", "fastdps.commands.evaluate", "fastdps.loading.dali", "fastdps.packing.pack")
LIMIT_S = 600.0


class WarmProcess:
    """A process of Python as the server forks it, with the part of `subprocess.Popen` that tests need.

    Args:
        arguments: What follows `python` on the command line: `-c CODE`, `-m MODULE` or a script, and its arguments.
        env: The environment, by default that of the test.
        cwd: The working directory, by default that of the test.
        stdin: The standard input, by default empty.
        stdout: The standard output, by default that of the test.
        stderr: The error output, by default that of the test.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        stdin: IO[Any] | int | None = None,
        stdout: IO[Any] | int = 1,
        stderr: IO[Any] | int = 2,
    ) -> None:
        request = {"arguments": [str(part) for part in arguments], "env": dict(env or os.environ)}
        request["cwd"] = str(cwd or os.getcwd())
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(_server_address())
        with open(os.devnull, "rb") as nothing, tempfile.TemporaryFile() as content:
            content.write(json.dumps(request).encode())
            content.flush()
            files = [nothing if stdin is None else stdin, stdout, stderr]
            descriptors = [content.fileno(), *(file if isinstance(file, int) else file.fileno() for file in files)]
            socket.send_fds(self._connection, [b"start"], descriptors)
            self.pid = int(self._connection.recv(100))
        self.returncode: int | None = None

    def __enter__(self) -> WarmProcess:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the process unless it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, negative for a signal; raise `subprocess.TimeoutExpired` if it takes too long."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self.returncode = int(self._connection.recv(100))
            self._connection.close()
        return self.returncode


def run_warm(*arguments: object, timeout: float = LIMIT_S, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python to its end, as `subprocess.run` does with `capture_output` and `text`.

    Args:
        *arguments: What follows `python` on the command line.
        timeout: The seconds after which the process is killed, which raises `subprocess.TimeoutExpired`.
        **options: Those of `WarmProcess`.
    """
    return run_ranks([arguments], [{}], timeout=timeout, **options)[0]


def launch_warm(
    processes: int, *arguments: object, env: Mapping[str, str] | None = None, timeout: float = LIMIT_S, **options: Any
) -> list[subprocess.CompletedProcess[str]]:
    """Run a command on several ranks of one machine, with the variables and the store of torchrun.

    Returns:
        The result of each rank.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # outlives the ranks, as the launcher's
    together = {"MASTER_ADDR": store.host, "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
    together |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    variables = [{**together, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0} for rank in range(processes)]
    return run_ranks([arguments] * processes, variables, env=env, timeout=timeout, **options)


def run_ranks(
    commands: Sequence[Sequence[object]],
    variables: Sequence[Mapping[str, object]],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = LIMIT_S,
    **options: Any,
) -> list[subprocess.CompletedProcess[str]]:
    """Run commands at the same time, each with further variables in its environment; return their results."""
    results = []
    with contextlib.ExitStack() as stack:
        started = []
        for arguments, own in zip(commands, variables, strict=True):
            output, error = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2))
            environment = {**(env or os.environ), **{name: str(value) for name, value in own.items()}}
            files = {"stdout": output, "stderr": error, **options}
            process = stack.enter_context(WarmProcess(arguments, env=environment, **files))
            started.append((process, output, error))
        for arguments, (process, output, error) in zip(commands, started, strict=True):
            status = process.wait(timeout)
            output.seek(0)
            error.seek(0)
            results.append(subprocess.CompletedProcess([*arguments], status, output.read(), error.read()))
    return results


@functools.cache
def _server_address() -> str:
    """Start the server of this test process, which ends with it; return its address."""
    directory = tempfile.TemporaryDirectory(prefix="fastdps-warm-")
    atexit.register(directory.cleanup)
    address = f"{directory.name}/socket"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    server = subprocess.Popen(
        [sys.executable, __file__, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert server.stdin
    assert server.stdout
    atexit.register(server.wait)
    atexit.register(server.stdin.close)  # runs before: the server ends at the end of its input
    assert server.stdout.readline() == b"ready\n", "the server of warm processes ended"
    return address


def _serve(address: str) -> None:
    """Import the modules, and fork for each connection until standard input ends. Returns in forked processes only."""
    for name in MODULES:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the test ends the server
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection = listener.accept()[0]
            if os.fork() == 0:
                break
            connection.close()
        else:
            os._exit(0)
    _supervise(connection)


def _supervise(connection: socket.socket) -> None:
    """Fork the process, and report its id and its exit status. Returns in the process only."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, descriptors, _, _ = socket.recv_fds(connection, 100, 4)
    with open(descriptors[0], "rb") as file:
        file.seek(0)
        request = json.load(file)
    if process := os.fork():
        connection.send(str(process).encode())
        _, status = os.waitpid(process, 0)
        with contextlib.suppress(OSError):
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    connection.close()
    _become(request, descriptors[1:])


def _become(request: dict[str, Any], files: Sequence[int]) -> NoReturn:
    """Turn this process into the one of a request, and end it as the interpreter does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate(files):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        form = {"encoding": getattr(sys, name).encoding, "errors": getattr(sys, name).errors}
        stream = open(number, "w" if number else "r", closefd=False, **form)  # noqa: SIM115  # ends with the process
        stream.reconfigure(line_buffering=name == "stderr" or os.isatty(number))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    _execute(request["arguments"])
    sys.exit()


def _execute(arguments: list[str]) -> None:
    """Run `-c CODE`, `-m MODULE` or a script."""
    first, *rest = arguments
    if first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif first == "-m":
        sys.argv, sys.path[0] = ["-m", *rest[1:]], os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    _serve(sys.argv[1])
