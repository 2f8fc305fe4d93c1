"""Watchdog of a distributed job: if a process dies or hangs, all processes exit with an error that names it.

    every process --its state, every two seconds--> the launcher's store --> rank 0 watches all, all watch rank 0

The launcher detects processes of its own node that die. It does not detect a process that is stopped, hangs, or was on
a node that failed. The other processes would silently wait for it until the timeout of the process group.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from fastdps.errors import FastDPSError, TrainingError

BEAT_S = 2.0
#: Time without a heartbeat after which a process counts as dead. Its thread sends heartbeats also during long work.
SILENT_S = 20.0
#: The phase in which a process waits for the others, so that it is not reported as the hung one.
EXCHANGES = "exchanges gradients"
DONE = "done"


@dataclass
class _LastSeen:
    """The last state received from a process.

    Attributes:
        state: The state.
        beat_s: When the heartbeat last changed, by the clock of the watcher.
        phase_s: When the phase or the step last changed.
    """

    state: dict[str, Any]
    beat_s: float
    phase_s: float

    def update(self, state: dict[str, Any], now_s: float) -> None:
        if state["beat"] != self.state.get("beat"):
            self.beat_s = now_s
        if (state["step"], state["phase"]) != (self.state.get("step"), self.state.get("phase")):
            self.phase_s = now_s
        self.state = state


class Heartbeat:
    """A context manager in which this process sends heartbeats and watches the others.

    It does nothing for a single process.

    Args:
        rank: The rank of this process.
        world_size: The number of processes.
        stalled_s: How long a process may stay in the same phase of the same step.
        silent_s: How long a process may send no heartbeat.
        fail: Called in a thread with the error message, to end the process; by default it exits.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        *,
        stalled_s: float,
        silent_s: float = SILENT_S,
        fail: Callable[[str], None] | None = None,
    ) -> None:
        self._rank, self._world_size = rank, world_size
        self._stalled_s, self._silent_s = stalled_s, silent_s
        self._fail = fail or _exit
        self._state: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "step": 0, "phase": ""}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._beats = 0

    def __enter__(self) -> Self:
        if self._world_size > 1:
            # A separate connection: a store serves one request at a time, and one of the training may wait for minutes.
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = TCPStore(host, port, timeout=timedelta(seconds=self._silent_s), wait_for_workers=False)
            self._store = PrefixStore("fastdps-heartbeat", store)
            self._publish()
            self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join(timeout=self._silent_s)
        if error is not None and not (isinstance(error, FastDPSError) and error.everywhere):
            self._tell(f"{self._name(self._rank, self._state)} ended: {error or kind}")
        self.beat(DONE)
        self._publish()

    def beat(self, phase: str, step: int | None = None) -> None:
        """Set the phase of this process. Costs nothing: the thread sends it.

        Args:
            phase: What this process does now, as a verb ("computes"); "" for a phase without a time limit.
            step: The current step, None if unchanged.
        """
        self._state = {**self._state, "phase": phase, **({} if step is None else {"step": step})}

    def wait_for_all(self) -> None:
        """Wait, without a time limit, until every process has reached this call."""
        self.beat(DONE)
        while self._thread is not None and any(state["phase"] != DONE for state in self._others()):
            time.sleep(0.2)

    def _others(self) -> list[dict[str, Any]]:
        states = self._store.multi_get([str(rank) for rank in range(self._world_size) if rank != self._rank])
        return [json.loads(state) for state in states]

    def _publish(self) -> None:
        self._beats += 1
        self._store.set(str(self._rank), json.dumps({**self._state, "beat": self._beats}))

    def _tell(self, message: str) -> None:
        self._store.set("verdict", message)

    def _watch(self) -> None:
        watched = range(self._world_size) if self._rank == 0 else [0]
        now_s = time.monotonic()
        seen = {rank: _LastSeen({}, now_s, now_s) for rank in watched}
        while not self._ended.wait(BEAT_S):
            try:
                self._publish()
                for rank in watched:
                    if self._store.check([str(rank)]):
                        seen[rank].update(json.loads(self._store.get(str(rank))), time.monotonic())
                verdict = self._store.get("verdict").decode() if self._store.check(["verdict"]) else None
                if verdict is None and (verdict := self._find_fault(seen)):
                    self._tell(verdict)
            except (distributed.DistError, RuntimeError) as error:
                verdict = f"the launcher of rank 0 at {os.environ['MASTER_ADDR']} does not respond: {error}"
            if verdict and not self._ended.is_set():
                self._fail(verdict)
                return

    def _find_fault(self, seen: dict[int, _LastSeen]) -> str | None:
        """Return the error message for a process that is dead or hangs, or None."""
        now_s = time.monotonic()
        working = {rank: last for rank, last in seen.items() if last.state.get("phase") != DONE}
        for rank, last in working.items():
            if now_s - last.beat_s > self._silent_s:
                step = f"; its last step was {last.state['step']}" if last.state else ""
                return f"{self._name(rank, last.state)} has sent no heartbeat for {now_s - last.beat_s:.0f} s{step}"
        stalled = {
            rank: last
            for rank, last in working.items()
            if last.state["phase"] and now_s - last.phase_s > self._stalled_s
        }
        for rank, last in stalled.items():
            if last.state["phase"] != EXCHANGES:
                what = f"{last.state['phase']} at step {last.state['step']}"
                return f"{self._name(rank, last.state)} hangs: for {now_s - last.phase_s:.0f} s it {what}"
        if self._rank == 0 and len(stalled) == self._world_size:
            return f"all processes have been waiting for each other for {self._stalled_s:.0f} s: the network hangs"
        return None

    def _name(self, rank: int, state: dict[str, Any]) -> str:
        where = f" (host {state['host']}, process {state['pid']})" if state else ""
        return f"rank {rank} of {self._world_size}{where}"

    def explain(self, error: RuntimeError) -> TrainingError:
        """Return the error of a failed collective, after waiting for the watchdog to name a lost process and exit."""
        if self._thread is not None:
            self._thread.join(timeout=self._silent_s + 3 * BEAT_S)
        return TrainingError(f"the exchange with the other processes failed: {error}")


def _exit(message: str) -> None:
    """Exit although the main thread waits for a process that will not respond."""
    what = message.rstrip(".")
    print(f"error: {what}. The job ends; the same command resumes from the last checkpoint.", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
