"""Packing on a Ray cluster: one task per shard, which any worker may run and retry. The only module that imports Ray.

Workers write to the target themselves: a directory that all machines share, or object storage. They return a record
for the ledger. Tasks and records are small, so one driver serves many machines.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import logging
import os
import platform
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from fastdps.errors import ConfigError, FastDPSError
from fastdps.packing.fragment import Fragment, make_fragment
from fastdps.packing.ledger import ShardRecord
from fastdps.packing.work import OnChunk, PackedShard, ShardWork, write_shard

#: Retries of a task whose worker or machine died.
RETRIES = 3
#: Shards in flight per core of the cluster, so that no core waits for the driver.
IN_FLIGHT = 2
#: Seconds within which a file written on another machine must be visible here. Network file systems cache listings.
VISIBLE_WITHIN_S = 60.0
#: Seconds that tasks have to clean up when a run ends.
GRACE_S = 15.0
#: Seconds within which the address of a cluster must answer.
CONNECT_WITHIN_S = 20.0
#: Seconds without a finished shard after which a cluster without cores causes a warning.
NO_CORES_WARNING_S = 30.0
#: The maximum number of tasks that wait for the end of a run.
LISTENERS = 100_000
#: The packages that determine the bytes, and libraries by their names in Pillow.
PACKAGES = ("fastdps", "pillow", "numpy")
FEATURES = {"libjpeg": "jpg", "zlib": "zlib"}

_HOST_AND_PORT = re.compile(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayResult:
    """The result of a task.

    Attributes:
        record: The record of the shard.
        node: The name of the machine.
        versions: The versions, on that machine, of the packages that determine the bytes.
    """

    record: ShardRecord
    node: str
    versions: dict[str, str]


class RunEnd:
    """An actor that tells tasks that their run has ended.

    `ray.cancel` is not used: as of Ray 2.60 it aborts the caller if a task completes at the same moment.
    """

    def __init__(self) -> None:
        self._is_ended = asyncio.Event()

    async def end(self) -> None:
        """End the run."""
        self._is_ended.set()

    async def ended(self) -> None:
        """Wait until the run has ended."""
        await self._is_ended.wait()


class RayExecutor:
    """Packs on a Ray cluster. A context manager: on exit it stops what it started.

    Args:
        address: The address of the cluster; by default RAY_ADDRESS, or a new cluster on this machine.
        max_in_flight: The number of shards in flight; by default two per core that the cluster has at the moment.

    Raises:
        ConfigError: On entry, when Ray is not installed or the cluster does not answer.

    Example:
        >>> with RayExecutor("10.0.0.1:6379") as executor:  # doctest: +SKIP
        ...     pack(dataset, "s3://bucket/photos", executor=executor)
    """

    def __init__(self, address: str | None = None, max_in_flight: int | None = None) -> None:
        self._address, self._max_in_flight = address, max_in_flight
        self._ray: Any = None
        self._is_mine = False

    def __enter__(self) -> RayExecutor:
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                f"--executor ray needs Ray, which cannot be imported: {error}. "
                "Install it with `pip install 'fastdps[ray]'`."
            ) from error
        self._ray, self._is_mine = ray, not ray.is_initialized()
        if self._is_mine:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that we start sends no statistics
            place = self._address or os.environ.get("RAY_ADDRESS") or ""
            try:
                _connect(place)
                with _sigterm_preserved():
                    ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, ValueError, RuntimeError) as error:
                reason = str(error).strip().rstrip(".")
                raise ConfigError(
                    f"no Ray cluster is available at {place or 'this machine'}: {reason}. Start one with "
                    "`ray start --head`, or correct --ray-address or RAY_ADDRESS. A cluster that requires a token "
                    "needs RAY_AUTH_MODE=token here as well."
                ) from error
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._is_mine:
            self._ray.shutdown()

    def run(self, works: Sequence[ShardWork], on_chunk: OnChunk) -> Generator[PackedShard, None, None]:
        """Pack as described in `Executor`. Progress is reported per shard."""
        ray = self._ray
        run = (
            ray.remote(RunEnd)
            .options(num_cpus=0, max_concurrency=LISTENERS, max_restarts=-1, max_task_retries=-1)
            .remote()
        )
        task = ray.remote(pack_unless_ended).options(
            num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD", name="fastdps shard"
        )
        remaining = iter(works)
        running: dict[Any, ShardWork] = {}
        try:
            while True:
                for work in islice(remaining, self._limit() - len(running)):
                    running[task.remote(work, run)] = work
                if not running:
                    return
                ready, _ = ray.wait(list(running), timeout=NO_CORES_WARNING_S)
                if not ready and not ray.cluster_resources().get("CPU"):
                    _log.warning("the Ray cluster has no cores; packing waits for machines that join it")
                for reference in ready:
                    work = running[reference]
                    packed = self._result(reference, work)
                    _check(work, packed)
                    del running[reference]
                    on_chunk(work, len(work.shard.items), packed.record.rejects)
                    yield PackedShard(work, packed.record)
        finally:
            self._end(run, list(running))

    def _limit(self) -> int:
        """Return the number of shards that may be in flight now; a cluster may grow."""
        return self._max_in_flight or max(1, int(IN_FLIGHT * self._ray.cluster_resources().get("CPU", 1)))

    def _result(self, reference: Any, work: ShardWork) -> RayResult:
        ray = self._ray
        try:
            packed: RayResult | None = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, FastDPSError):
                raise error.cause from error
            raise  # a bug of fastdps
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise FastDPSError(
                f"{work.name} could not be packed on Ray in {RETRIES + 1} attempts: {lines[0]} Check the memory of "
                "the machines and Ray's log, and run the same command again; finished shards are kept."
            ) from error
        if packed is None:
            raise FastDPSError(
                f"{work.name} was not packed, because the Ray actor `{RunEnd.__name__}` was killed, "
                "without which tasks stop. Run the same command again; finished shards are kept."
            )
        return packed

    def _end(self, run: Any, references: list[Any]) -> None:
        """End the running tasks. They clean up; those that take too long are killed once we leave the cluster."""
        ray = self._ray
        if references and ray.is_initialized():
            run.end.remote()
            ray.wait(references, num_returns=len(references), timeout=GRACE_S)


def pack_unless_ended(work: ShardWork, run: Any) -> RayResult | None:
    """Pack a shard in a Ray task. Return None if the run ended before the shard was finished."""
    import ray

    ended = _end_of(run)
    try:
        return pack_shard(work, lambda: bool(ray.wait([ended], timeout=0)[0]))
    except _RunEndedError:
        return None


@functools.lru_cache(maxsize=1)
def _end_of(run: Any) -> Any:
    """Return a reference that is ready once the run has ended. A worker asks once for all of its tasks."""
    return run.ended.remote()


class _RunEndedError(Exception):
    """The run has ended."""


def pack_shard(work: ShardWork, is_ended: Callable[[], bool] = lambda: False) -> RayResult:
    """Write a shard and put it in place, on a worker.

    Args:
        work: The shard.
        is_ended: Returns True once the run has ended; asked before every chunk.

    Returns:
        The record, and where and with which versions the shard was packed.

    Raises:
        FastDPSError: The shard could not be packed; the message names the machine.
    """

    def fragments() -> Iterator[Fragment]:
        for chunk in work.shard.chunks(work.options):
            if is_ended():
                raise _RunEndedError
            yield make_fragment(work.source, chunk, work.options)

    node = platform.node()
    try:
        with TemporaryDirectory(prefix="fastdps-") as temporary:
            written = write_shard(work, fragments(), Path(temporary), lambda *_: None)
            return RayResult(written.deliver().record, node, versions())
    except FastDPSError as error:
        raise FastDPSError(f"on the machine {node}: {error}") from error


def versions() -> dict[str, str]:
    """Return the versions of the packages and libraries that determine the bytes."""
    from PIL import features

    return {
        **{name: _version(name) for name in PACKAGES},
        **{name: str(features.version(feature)) for name, feature in FEATURES.items()},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "not installed"


def _check(work: ShardWork, packed: RayResult) -> None:
    """Raise `FastDPSError` if the versions differ from those here, or the shard is not visible from here."""
    here = versions()
    if differing := [name for name in here if packed.versions.get(name) != here[name]]:
        versions_text = ", ".join(f"{name} {packed.versions.get(name)} and here {here[name]}" for name in differing)
        raise FastDPSError(
            f"the machine {packed.node} has {versions_text}, which may give other bytes. "
            "Install the same versions everywhere."
        )
    shard = packed.record.shard
    deadline_s = time.monotonic() + VISIBLE_WITHIN_S
    while shard and (size := work.target.size(shard.name)) != shard.bytes:
        if time.monotonic() > deadline_s:
            seen = "is missing" if size is None else f"has {size} bytes"
            raise FastDPSError(
                f"{work.name} was written on the machine {packed.node} with {shard.bytes} bytes, but seen from here it "
                f"{seen}. Use a directory that all machines share, or object storage such as s3://BUCKET/NAME, as "
                "--out."
            )
        time.sleep(0.2)


def _connect(address: str) -> None:
    """Raise `OSError` if nothing listens at an address HOST:PORT. Ray itself takes minutes to notice."""
    if found := _HOST_AND_PORT.fullmatch(address):
        socket.create_connection((found[1], int(found[2])), timeout=CONNECT_WITHIN_S).close()


@contextmanager
def _sigterm_preserved() -> Iterator[None]:
    """Restore the handler of SIGTERM on exit, because Ray installs its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
