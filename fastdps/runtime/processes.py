"""Processes of a job: the only module that imports Accelerate.

    accelerate launch --> join_processes() --> Distributed: rank, device, collectives, watchdog, trackers
                                                    |
                                                    '--> SingleProcess: one rank that trains contexts of its own

Training and evaluation see `Processes`, and neither Accelerate nor the watchdog (`fastdps.runtime.heartbeat`).
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, LoggerType, broadcast_object_list, gather_object
from torch import Tensor, nn

from fastdps.errors import ConfigError, FastDPSError, did_you_mean
from fastdps.runtime.console import print_notice
from fastdps.runtime.heartbeat import EXCHANGES, Heartbeat
from fastdps.runtime.machine import keep_freed_memory
from fastdps.runtime.timeouts import STALL_TIMEOUT_S

#: Extra timeout of collectives over the watchdog's, so that the watchdog names the hung rank first.
_COLLECTIVE_GRACE_S = 120.0


def join_processes(
    *, stall_timeout_s: float = math.inf, trackers: Sequence[str] = (), directory: Path | None = None
) -> Distributed:
    """Join the processes that `accelerate launch` started, or run as a single process.

    Uses CUDA where there is one, and the CPU with gloo otherwise. The result is a context manager: on entry the
    watchdog starts, on a normal exit trackers and the process group are closed.

    Args:
        stall_timeout_s: Seconds in one phase after which a process counts as hung; infinite switches that off. A
            process that dies is found in any case.
        trackers: Names of Accelerate's experiment trackers, such as "tensorboard".
        directory: Directory for the files of the trackers.

    Returns:
        The processes of the job, seen from this one.

    Raises:
        ConfigError: A tracker is unknown or not installed, or the launcher started more processes than Accelerate
            sees: each of them would train alone, and all would write the same files.

    Example:
        >>> with join_processes() as processes:  # doctest: +SKIP
        ...     total = processes.reduce(torch.ones((), device=processes.device))
    """
    check_trackers(trackers)
    keep_freed_memory()
    collective_timeout_s = (
        stall_timeout_s if math.isfinite(stall_timeout_s) else STALL_TIMEOUT_S
    ) + _COLLECTIVE_GRACE_S
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        log_with=list(trackers) or None,
        project_dir=directory,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=collective_timeout_s))],
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ConfigError(
            f"{launched} processes were launched, but Accelerate sees {accelerator.num_processes}. "
            "Without GPUs launch with `accelerate launch --multi_gpu --num_processes N`."
        )
    heartbeat = Heartbeat(accelerator.process_index, accelerator.num_processes, stalled_s=stall_timeout_s)
    return Distributed(accelerator, heartbeat)


def check_trackers(names: Sequence[str]) -> None:
    """Raise `ConfigError` if an experiment tracker is unknown to Accelerate, or its package is not installed."""
    known = [str(tracker.value) for tracker in LoggerType if tracker is not LoggerType.ALL]
    installed = {str(tracker.value) for tracker in get_available_trackers()}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--log-with: unknown tracker {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}."
            )
        if name not in installed:
            raise ConfigError(f"--log-with {name}: that package is not installed. Install {name}, or log without it.")


class Distributed:
    """All processes of the job working on the same thing, and the watchdog over them. Made by `join_processes`.

    Attributes:
        num_processes: The number of processes, 1 without a launcher.
        process_index: The rank of this process.
        device: The device of this process.
        is_main_process: True on rank 0.
    """

    def __init__(self, accelerator: Accelerator, heartbeat: Heartbeat) -> None:
        self._accelerator, self._heartbeat = accelerator, heartbeat
        self.num_processes: int = accelerator.num_processes
        self.process_index: int = accelerator.process_index
        self.device: torch.device = accelerator.device
        self.is_main_process: bool = accelerator.is_main_process

    def __enter__(self) -> Self:
        self._heartbeat.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._heartbeat.__exit__(kind, error, traceback)
        if error is None:
            self._accelerator.end_training()

    def beat(self, phase: str, step: int | None = None) -> None:
        """Report the present phase of this process to the watchdog, see `Heartbeat.beat`."""
        self._heartbeat.beat(phase, step)

    def prepare(self, module: nn.Module) -> nn.Module:
        """Return the module with its gradients averaged over processes, all starting with the parameters of rank 0."""
        return self._accelerator.prepare(module)

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which gradients are accumulated without being averaged over processes."""
        return self._accelerator.no_sync(module)

    def backward(self, loss: Tensor) -> None:
        """Compute gradients. Raises `TrainingError` if another process no longer takes part."""
        self._exchange(lambda: self._accelerator.backward(loss))

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:
        """Return the sum (or "mean") of a tensor over all processes. Raises `TrainingError`, as `backward` does."""
        return self._exchange(lambda: self._accelerator.reduce(tensor, reduction=reduction))

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors (n, ...) of all processes concatenated by rank, (n * num_processes, ...)."""
        return self._exchange(lambda: self._accelerator.gather(tensor))

    def gather_objects(self, item: Any) -> list[Any]:
        """Return one Python object per process, in the order of the ranks."""
        return self._exchange(lambda: gather_object([item]))

    def broadcast(self, make: Callable[[], Any]) -> Any:
        """Call `make` on the main process and return its result on all; a `FastDPSError` is raised on all of them."""
        made: list[Any] = [None]
        if self.is_main_process:
            try:
                made = [make()]
            except FastDPSError as error:
                made = [error]
        self._exchange(lambda: broadcast_object_list(made))
        if isinstance(made[0], FastDPSError):
            made[0].everywhere = True
            raise made[0]
        return made[0]

    def one_per_node_first(self) -> AbstractContextManager[None]:
        """Return a context that one process of each node passes through before the others enter it."""
        self._heartbeat.beat("")
        return self._accelerator.local_main_process_first()

    def notify(self, message: str) -> None:
        """Print a message for the user, once for all processes."""
        if self.is_main_process:
            print_notice(message)

    def warn(self, message: str) -> None:
        """Print a warning for the user, with `--quiet` too, once for all processes."""
        if self.is_main_process:
            print(message, file=sys.stderr, flush=True)

    def start_trackers(self, config: Mapping[str, Any]) -> None:
        """Start the trackers with the settings of the run; does nothing without trackers."""
        self._accelerator.init_trackers("fastdps", config={key: str(value) for key, value in config.items()})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send scalars to the trackers."""
        self._accelerator.log(dict(values), step=step)

    def free_memory(self) -> None:
        """Release the prepared modules."""
        self._accelerator.free_memory()

    def wait_for_all(self) -> None:
        """Wait without a time limit until every process has called this, as long as all are alive."""
        self._heartbeat.wait_for_all()

    def _exchange(self, talk: Callable[[], Any]) -> Any:
        self._heartbeat.beat(EXCHANGES)
        try:
            return talk()
        except RuntimeError as error:
            if self.num_processes == 1 or not _is_network_error(error):
                raise
            raise self._heartbeat.explain(error) from error


class SingleProcess:
    """One process of a job that trains contexts of its own: the interface of `Distributed` without communication."""

    num_processes = 1
    process_index = 0

    def __init__(self, distributed: Distributed) -> None:
        self._distributed = distributed
        self.device = distributed.device
        self.is_main_process = distributed.is_main_process

    def beat(self, phase: str, step: int | None = None) -> None:
        """Report the present phase of this process to the watchdog."""
        self._distributed.beat(phase, step)

    def prepare(self, module: nn.Module) -> nn.Module:
        """Return the module as it is."""
        return module

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:  # noqa: ARG002, the interface of Distributed
        """Return a context that changes nothing."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Compute gradients."""
        loss.backward()

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:  # noqa: ARG002
        """Return the tensor as it is."""
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensor as it is."""
        return tensor

    def gather_objects(self, item: Any) -> list[Any]:
        """Return a list of the one object."""
        return [item]

    def broadcast(self, make: Callable[[], Any]) -> Any:
        """Return what `make` returns."""
        return make()

    def notify(self, message: str) -> None:
        """Print a message for the user, on the main process of the job only."""
        self._distributed.notify(message)

    def warn(self, message: str) -> None:
        """Print a warning for the user, on the main process of the job only."""
        self._distributed.warn(message)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send scalars to the trackers, which only the main process of the job has."""
        self._distributed.log(values, step)

    def free_memory(self) -> None:
        """Do nothing: no module was prepared."""


#: What training works with: all processes together, or one on its own.
Processes = Distributed | SingleProcess


def _is_network_error(error: RuntimeError) -> bool:
    """Return True if a collective failed because of another process, not for a reason of this one's own."""
    words = ("gloo", "nccl", "connection")
    return isinstance(error, torch.distributed.DistError) or any(word in str(error).lower() for word in words)
