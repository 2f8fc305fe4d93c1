"""Packing on a Ray cluster: a shard is a task, which any worker may take and take again. The only file with Ray.

Workers write to the target themselves, a directory that all machines share or an object storage; what comes back is a
record of the ledger. Task and record are small, so one driver serves many machines.
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

#: How often a task is begun again whose worker, or machine, has died.
RETRIES = 3
#: Shards in flight for each core of the cluster: none waits for the driver.
IN_FLIGHT = 2
#: Seconds until a file that another machine wrote must be seen here: network file systems keep listings for a while.
VISIBLE_WITHIN_S = 60.0
#: Seconds for tasks to tidy up when a run is ended.
GRACE_S = 15.0
#: Seconds in which a cluster's address has to answer.
CONNECT_WITHIN_S = 20.0
#: Seconds without a shard after which it is asked whether the cluster has any cores.
PATIENCE_S = 30.0
#: Tasks that may listen for the end of a run at a time.
LISTENERS = 100_000
#: What decides the bytes: packages, and libraries by what Pillow calls them.
PACKAGES = ("fastdps", "pillow", "numpy")
FEATURES = {"libjpeg": "jpg", "zlib": "zlib"}

_HOST_AND_PORT = re.compile(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayResult:
    """What a worker gives back: the record, the machine's name, and the versions of what made the bytes."""

    record: ShardRecord
    node: str
    versions: dict[str, str]


class PackingRun:
    """An actor that tells tasks when their run is ended.

    `ray.cancel` is not used for that: as of Ray 2.60 it aborts the caller when a task is just being completed.
    """

    def __init__(self) -> None:
        self._is_ended = asyncio.Event()

    async def end(self) -> None:
        """End the run."""
        self._is_ended.set()

    async def ended(self) -> None:
        """Wait for its end."""
        await self._is_ended.wait()


class RayExecutor:
    """Packs on the Ray cluster at `address`: by default that of RAY_ADDRESS, or a new one on this machine.

    As many shards as `at_a_time` are in flight, by default two for each core that the cluster has at the moment. A
    context; what it has started it ends. Raises `ConfigError` when Ray is not installed, or there is no such cluster.
    """

    def __init__(self, address: str | None = None, at_a_time: int | None = None) -> None:
        self._address, self._at_a_time = address, at_a_time
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
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that we start tells nobody of itself
            where = self._address or os.environ.get("RAY_ADDRESS") or ""
            try:
                _connect(where)
                with _own_sigterm():
                    ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, ValueError, RuntimeError) as error:
                said = str(error).strip().rstrip(".")
                raise ConfigError(
                    f"there is no Ray cluster to be had at {where or 'this machine'}: {said}. Start one with "
                    "`ray start --head`, or correct --ray-address or RAY_ADDRESS; one that asks for a token needs "
                    "RAY_AUTH_MODE=token here as well."
                ) from error
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._is_mine:
            self._ray.shutdown()

    def run(self, works: Sequence[ShardWork], on_chunk: OnChunk) -> Generator[PackedShard, None, None]:
        """As in `Executor`; progress is reported by shards."""
        ray = self._ray
        run = (
            ray.remote(PackingRun)
            .options(num_cpus=0, max_concurrency=LISTENERS, max_restarts=-1, max_task_retries=-1)
            .remote()
        )
        task = ray.remote(pack_unless_ended).options(
            num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD", name="fastdps shard"
        )
        left = iter(works)
        running: dict[Any, ShardWork] = {}
        try:
            while True:
                for work in islice(left, self._room() - len(running)):
                    running[task.remote(work, run)] = work
                if not running:
                    return
                ready, _ = ray.wait(list(running), timeout=PATIENCE_S)
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

    def _room(self) -> int:
        """How many shards may be in flight; a cluster may grow."""
        return self._at_a_time or max(1, int(IN_FLIGHT * self._ray.cluster_resources().get("CPU", 1)))

    def _result(self, reference: Any, work: ShardWork) -> RayResult:
        ray = self._ray
        try:
            packed: RayResult | None = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, FastDPSError):
                raise error.cause from error
            raise  # a defect of ours
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise FastDPSError(
                f"{work.name} could not be packed on Ray, though it was begun {RETRIES + 1} times: {lines[0]} Look at "
                "the memory of the machines and at Ray's log, and run the same command again; finished shards are kept."
            ) from error
        if packed is None:
            raise FastDPSError(
                f"{work.name} was not packed, because somebody killed the Ray actor `{PackingRun.__name__}`, "
                "without which tasks end. Run the same command again; finished shards are kept."
            )
        return packed

    def _end(self, run: Any, references: list[Any]) -> None:
        """End tasks: those that run tidy up; those that take too long to are killed once we leave the cluster."""
        ray = self._ray
        if references and ray.is_initialized():
            run.end.remote()
            ray.wait(references, num_returns=len(references), timeout=GRACE_S)


def pack_unless_ended(work: ShardWork, run: Any) -> RayResult | None:
    """The task: as `pack_shard`, until the run is ended."""
    import ray

    ended = _end_of(run)
    try:
        return pack_shard(work, lambda: bool(ray.wait([ended], timeout=0)[0]))
    except _EndedError:
        return None


@functools.lru_cache(maxsize=1)
def _end_of(run: Any) -> Any:
    """What has a result once a run is ended. A worker asks once for all its tasks."""
    return run.ended.remote()


class _EndedError(Exception):
    """The run is ended."""


def pack_shard(work: ShardWork, is_ended: Callable[[], bool] = lambda: False) -> RayResult:
    """What a worker does: write a shard and put it in place. Raises `FastDPSError` that names the machine."""

    def fragments() -> Iterator[Fragment]:
        for chunk in work.shard.chunks(work.options):
            if is_ended():
                raise _EndedError
            yield make_fragment(work.source, chunk, work.options)

    node = platform.node()
    try:
        with TemporaryDirectory(prefix="fastdps-") as temporary:
            written = write_shard(work, fragments(), Path(temporary), lambda *_: None)
            return RayResult(written.deliver().record, node, versions())
    except FastDPSError as error:
        raise FastDPSError(f"on the machine {node}: {error}") from error


def versions() -> dict[str, str]:
    """The versions of what decides the bytes."""
    from PIL import features

    return {
        **{name: _version(name) for name in PACKAGES},
        **{name: str(features.version(feature)) for name, feature in FEATURES.items()},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return "not installed"


def _check(work: ShardWork, packed: RayResult) -> None:
    """Raise `FastDPSError` if a shard may have other bytes than it would have here, or is not where all can see it."""
    here = versions()
    if differing := [name for name in here if packed.versions.get(name) != here[name]]:
        said = ", ".join(f"{name} {packed.versions.get(name)} and here {here[name]}" for name in differing)
        raise FastDPSError(
            f"the machine {packed.node} has {said}, which may give other bytes. Install the same versions everywhere."
        )
    shard = packed.record.shard
    end_s = time.monotonic() + VISIBLE_WITHIN_S
    while shard and (size := work.target.size(shard.name)) != shard.bytes:
        if time.monotonic() > end_s:
            seen = "is not there" if size is None else f"has {size} bytes"
            raise FastDPSError(
                f"{work.name} was written on the machine {packed.node} with {shard.bytes} bytes, and seen from here it "
                f"{seen}. Give a directory that all machines share, or an object storage such as s3://BUCKET/NAME, as "
                "--out."
            )
        time.sleep(0.2)


def _connect(address: str) -> None:
    """Raise `OSError` if nobody listens at an address HOST:PORT, which Ray finds out in minutes."""
    if found := _HOST_AND_PORT.fullmatch(address):
        socket.create_connection((found[1], int(found[2])), timeout=CONNECT_WITHIN_S).close()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """A context after which SIGTERM does what it did before: Ray has a handler of its own for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
