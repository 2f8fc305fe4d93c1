"""Watching the processes of a job, so that one that dies or hangs ends all of them with an error that names it.

    every process --its state, every two seconds--> the launcher's store --> rank 0 watches all, all watch rank 0

The launcher sees processes of its own node die. It does not see one that is stopped, hangs, or was on a node that has
gone; then the others would wait for it, without a word, until the time limit of the process group.
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
#: A process that nothing was heard of for so long has gone. Its thread beats even while its work takes long.
SILENT_S = 20.0
#: What a process does while it waits for the others, so that it is not the one to blame.
EXCHANGES = "exchanges gradients"
DONE = "done"


@dataclass
class _Heard:
    """What was last heard of a process, and when that last changed, by the clock of the listener."""

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
    """A context in which this process is watched by the others, and watches them.

    `stalled_s` is how long one may stay at the same thing. `fail` ends the process: it is called in a thread, with
    the error. Alone (`world_size` 1) it does nothing.
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
            # A connection of its own, because a store takes one request at a time and the work's may wait for minutes.
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
        """Say what this process does now, and at which step it is; "" is what may take as long as it wants.

        Costs nothing: the thread tells the others.
        """
        self._state = {**self._state, "phase": phase, **({} if step is None else {"step": step})}

    def wait_for_all(self) -> None:
        """Wait, for as long as it takes, until every process has come to this call."""
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
        heard = {rank: _Heard({}, now_s, now_s) for rank in watched}
        while not self._ended.wait(BEAT_S):
            try:
                self._publish()
                for rank in watched:
                    if self._store.check([str(rank)]):
                        heard[rank].update(json.loads(self._store.get(str(rank))), time.monotonic())
                verdict = self._store.get("verdict").decode() if self._store.check(["verdict"]) else None
                if verdict is None and (verdict := self._judge(heard)):
                    self._tell(verdict)
            except (distributed.DistError, RuntimeError) as error:
                verdict = f"the launcher of rank 0 at {os.environ['MASTER_ADDR']} does not answer any more: {error}"
            if verdict and not self._ended.is_set():
                self._fail(verdict)
                return

    def _judge(self, heard: dict[int, _Heard]) -> str | None:
        now_s = time.monotonic()
        working = {rank: of for rank, of in heard.items() if of.state.get("phase") != DONE}
        for rank, of in working.items():
            if now_s - of.beat_s > self._silent_s:
                last = f"; last it was at step {of.state['step']}" if of.state else ""
                return f"{self._name(rank, of.state)} has not been heard of for {now_s - of.beat_s:.0f} s{last}"
        stalled = {
            rank: of for rank, of in working.items() if of.state["phase"] and now_s - of.phase_s > self._stalled_s
        }
        for rank, of in stalled.items():
            if of.state["phase"] != EXCHANGES:
                what = f"{of.state['phase']} at step {of.state['step']}"
                return f"{self._name(rank, of.state)} hangs: for {now_s - of.phase_s:.0f} s it {what}"
        if self._rank == 0 and len(stalled) == self._world_size:
            return f"all processes have been waiting for each other for {self._stalled_s:.0f} s: the network hangs"
        return None

    def _name(self, rank: int, state: dict[str, Any]) -> str:
        where = f" (host {state['host']}, process {state['pid']})" if state else ""
        return f"rank {rank} of {self._world_size}{where}"

    def explain(self, error: RuntimeError) -> TrainingError:
        """What to raise for an exchange that failed: usually another process has gone, and is named before long."""
        if self._thread is not None:
            self._thread.join(timeout=self._silent_s + 3 * BEAT_S)  # the watch ends this process, if it finds who
        return TrainingError(f"the exchange with the other processes failed: {error}")


def _exit(message: str) -> None:
    """End this process while its main thread waits for one that will not answer."""
    what = message.rstrip(".")
    print(f"error: {what}. The job ends; the same command goes on from its last checkpoint.", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
