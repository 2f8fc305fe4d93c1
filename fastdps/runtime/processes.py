"""The door to Accelerate: which processes take part, on which device, and what they have to say to each other."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import filter_trackers
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor, nn

from fastdps.errors import ConfigError, FastDPSError
from fastdps.runtime.console import print_notice
from fastdps.runtime.heartbeat import EXCHANGES, Heartbeat
from fastdps.runtime.machine import keep_freed_memory

#: How long a process may stay at the same thing before the job is ended.
STALLED_S = 600.0
#: How much longer an exchange waits, so that who is to blame is found first.
_GRACE_S = 120.0


def join_processes(
    *, stalled_s: float = STALLED_S, log_with: Sequence[str] = (), directory: Path | None = None
) -> Accelerator:
    """Join the processes that `accelerate launch` started, or run alone; over gloo where CUDA is absent.

    `log_with` names trackers of experiments, which keep their files in `directory`. Raises `ConfigError` for a tracker
    that is not known or not installed, and when the launcher started more processes than Accelerate sees: each would
    train alone and all would write the same files.
    """
    for name in log_with:
        _check_tracker(name, directory)
    keep_freed_memory()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        log_with=list(log_with) or None,
        project_dir=directory,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=stalled_s + _GRACE_S))],
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ConfigError(
            f"{launched} processes were launched, but Accelerate sees {accelerator.num_processes}. "
            "Without GPUs launch with `accelerate launch --multi_gpu --num_processes N`."
        )
    return accelerator


def _check_tracker(name: str, directory: Path | None) -> None:
    try:
        found = filter_trackers([name], logging_dir=directory)
    except ValueError as error:
        raise ConfigError(f"--log-with: {error}") from error
    if not found:
        raise ConfigError(f"--log-with {name}: that package is not installed. Install {name}, or log without it.")


def watch(accelerator: Accelerator, stalled_s: float = float("inf")) -> Heartbeat:
    """A context in which a process that dies or hangs ends the whole job; see `fastdps.runtime.heartbeat`."""
    return Heartbeat(accelerator.process_index, accelerator.num_processes, stalled_s=stalled_s)


class Together:
    """All processes working on the same: what training needs of Accelerate, and who watches over it."""

    def __init__(self, accelerator: Accelerator, heartbeat: Heartbeat) -> None:
        self._accelerator, self._heartbeat = accelerator, heartbeat
        self.num_processes: int = accelerator.num_processes
        self.process_index: int = accelerator.process_index
        self.device: torch.device = accelerator.device
        self.is_main_process: bool = accelerator.is_main_process

    def beat(self, phase: str, step: int | None = None) -> None:
        """Say what this process does now: see `Heartbeat.beat`."""
        self._heartbeat.beat(phase, step)

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over processes. All start with the parameters of the first."""
        return self._accelerator.prepare(module)

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """A context in which gradients are only added up, and not averaged."""
        return self._accelerator.no_sync(module)

    def backward(self, loss: Tensor) -> None:
        """Compute gradients. Raises `TrainingError` where another process does not take part any more."""
        self._exchange(lambda: self._accelerator.backward(loss))

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:
        """The sum (or "mean") over all processes. Raises `TrainingError`, as `backward` does."""
        return self._exchange(lambda: self._accelerator.reduce(tensor, reduction=reduction))

    def gather_objects(self, item: Any) -> list[Any]:
        """What each process has, in the order of their ranks."""
        return self._exchange(lambda: gather_object([item]))

    def share(self, make: Callable[[], Any]) -> Any:
        """What the main process makes, on all processes; or the `FastDPSError` that it raises."""
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
        """A context that one process of each node goes through before the others."""
        self._heartbeat.beat("")
        return self._accelerator.local_main_process_first()

    def say(self, message: str) -> None:
        """Tell the user, once for all processes."""
        if self.is_main_process:
            print_notice(message)

    def warn(self, message: str) -> None:
        """Tell the user what has to be known, where only errors are wanted too."""
        if self.is_main_process:
            print(message, file=sys.stderr, flush=True)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Give scalars to the trackers."""
        self._accelerator.log(dict(values), step=step)

    def free_memory(self) -> None:
        """Let go of what was prepared."""
        self._accelerator.free_memory()

    def wait_for_all(self) -> None:
        """Wait for all processes, however long they take, as long as they live."""
        self._heartbeat.wait_for_all()

    def _exchange(self, talk: Callable[[], Any]) -> Any:
        self._heartbeat.beat(EXCHANGES)
        try:
            return talk()
        except RuntimeError as error:
            if self.num_processes == 1 or not _is_of_the_network(error):
                raise
            raise self._heartbeat.explain(error) from error


class Alone:
    """One process that works for itself among others, where each has contexts of its own."""

    num_processes = 1
    process_index = 0

    def __init__(self, together: Together) -> None:
        self._together = together
        self.device = together.device
        self.is_main_process = together.is_main_process

    def beat(self, phase: str, step: int | None = None) -> None:
        """Say what this process does now."""
        self._together.beat(phase, step)

    def prepare(self, module: nn.Module) -> nn.Module:
        """Nothing to prepare."""
        return module

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:  # noqa: ARG002, the signature of the other
        """There is nobody to exchange gradients with."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Compute gradients."""
        loss.backward()

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:  # noqa: ARG002
        """The sum over one process."""
        return tensor

    def gather_objects(self, item: Any) -> list[Any]:
        """What this process has."""
        return [item]

    def share(self, make: Callable[[], Any]) -> Any:
        """What this process makes."""
        return make()

    def say(self, message: str) -> None:
        """Tell the user, as the main process alone does."""
        self._together.say(message)

    def warn(self, message: str) -> None:
        """Tell the user what has to be known."""
        self._together.warn(message)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Give scalars to the trackers, which only the main process has."""
        self._together.log(values, step)

    def free_memory(self) -> None:
        """Nothing is held."""


Processes = Together | Alone


def _is_of_the_network(error: RuntimeError) -> bool:
    """Whether an exchange failed because of another process, and not for a reason of this one's own."""
    words = ("gloo", "nccl", "connection")
    return isinstance(error, torch.distributed.DistError) or any(word in str(error).lower() for word in words)
