"""Pack a data set: plan, have an executor pack the shards that are missing, record each, end with the manifest."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastdps.errors import ConfigError, FastDPSError
from fastdps.packing.executor import Executor, LocalExecutor
from fastdps.packing.fragment import Reject, make_fragment
from fastdps.packing.ledger import Ledger, ShardRecord, clear_set, read_rejects, refuse_difference
from fastdps.packing.options import PackOptions, Share
from fastdps.packing.plan import DIVIDED, HELD_OUT, SetPlan, ShardPlan, WorkChunk, plan_sets
from fastdps.packing.sources.source import Dataset
from fastdps.packing.target import Target, target_at
from fastdps.packing.work import ShardWork
from fastdps.runtime.files import write_errors
from fastdps.shards.format import MANIFEST, Manifest, component_extensions, read_manifest
from fastdps.shards.storage import Location, Store, locate, open_store

#: As many rejects does the message of a failed run name, and as many missing shards.
SHOWN_REJECTS = 3
SHOWN_SHARDS = 10
#: The file in `out` that keeps two runs of one part apart.
_LOCK = "part{}.lock"

#: Called once with the number of items, and how many of them an earlier run has done.
OnStart = Callable[[int, int], None]
#: Called with the number of items that were done since the last call.
OnProgress = Callable[[int], None]


@dataclass(frozen=True)
class PackResult:
    """The manifests by split, the directory of each being `out / split`, and what was rejected.

    After a run that packed a part, a set that is not complete has no manifest, and `missing` has the numbers of the
    shards that no part has packed yet; none of them means that the set can be merged.
    """

    out: Location
    manifests: dict[str, Manifest] = field(default_factory=dict)
    rejects: dict[str, list[Reject]] = field(default_factory=dict)
    missing: dict[str, list[int]] = field(default_factory=dict)


def pack(
    dataset: Dataset,
    out: str | Location,
    options: PackOptions | None = None,
    *,
    splits: Collection[str] | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    share: Share | None = None,
    overwrite: bool = False,
    on_start: OnStart = lambda *_: None,
    on_progress: OnProgress = lambda _: None,
) -> PackResult:
    """Pack each split of a data set (or those named by `splits`) into `out/SPLIT`, a shard set with `rejects.jsonl`.

    `out` is a directory, or the URL of an object storage.
    The bytes depend on the source and the options alone. A run that was interrupted goes on where it stopped, after it
    has tried rejected items again; a finished set with the same options is left as it is, unless `overwrite` starts
    anew. The work is done by `executor`, by default `workers` processes here. With a `share` only its shards are
    packed, beside runs with other shares, and `merge` completes the sets.

    Raises `ConfigError` for options that do not fit the source or the run that `out` holds, and `FastDPSError` when
    the source is not there, when more than `max_rejects` of the items are rejected, when another run is packing into
    `out`, when the disk is full, or when a worker dies.
    """
    if share and overwrite:
        raise ConfigError(
            f"a part cannot overwrite: it would remove what other parts have packed. Remove {out}, or pack elsewhere."
        )
    options, out = options or PackOptions(), _writable(out)
    plans = plan_sets(dataset, options, splits)
    with _only_run(out, share):
        if overwrite:
            for name in _replaced(plans, dataset):
                clear_set(target_at(out / name))
        sets = [_SetInProgress(plan, target_at(out / plan.name), options, share) for plan in plans]
        for one in sets:
            one.refuse_difference()
        for one in sets:
            one.open()
        on_start(sum(one.planned for one in sets), sum(one.done for one in sets))
        try:
            _pack_missing(sets, options, executor or LocalExecutor(workers), on_progress)
        finally:
            for one in sets:
                one.close()
        return _result(out, sets)


def merge(
    dataset: Dataset,
    out: str | Location,
    options: PackOptions | None = None,
    *,
    splits: Collection[str] | None = None,
) -> PackResult:
    """Complete the sets whose shards were packed by runs with shares: write the manifests that one run would write.

    Raises `ConfigError` when those had another source or other options, and `FastDPSError` that names the shards which
    are missing, or when more than `max_rejects` of all items were rejected.
    """
    options, out = options or PackOptions(), _writable(out)
    with _only_run(out):
        sets = [
            _SetInProgress(plan, target_at(out / plan.name), options) for plan in plan_sets(dataset, options, splits)
        ]
        for one in sets:
            one.refuse_difference()
        for one in sets:
            one.look()
        if gaps := [gap for one in sets if (gap := one.gap())]:
            raise FastDPSError(
                f"not all shards are packed: {'; '.join(gaps)}. Run those parts again (what they have finished is "
                "kept), or the same command with neither --part nor --merge, which packs what is missing itself."
            )
        _refuse_rejects(sets, options)
        for one in sets:
            one.finish()
        return _result(out, sets)


def _writable(out: str | Location) -> Location:
    """A location that files can be written to. Raises `ConfigError` for any other."""
    out = locate(out)
    if isinstance(out, Store):
        out.refuse_to_write()
        open_store(out.url)  # raises where the package for it is not installed
    return out


def _result(out: Location, sets: list[_SetInProgress]) -> PackResult:
    return PackResult(
        out,
        {one.plan.name: read_manifest(one.target.location) for one in sets if one.is_finished},
        {one.plan.name: one.rejects for one in sets},
        {one.plan.name: one.missing_of_all() for one in sets if not one.is_finished},
    )


def _replaced(plans: list[SetPlan], dataset: Dataset) -> set[str]:
    """The sets that a run with `overwrite` replaces: its own, and a "val" that an earlier holdout took from "train"."""
    names = {plan.name for plan in plans}
    return names | {HELD_OUT} if DIVIDED in names and HELD_OUT not in dataset.splits() else names


@contextmanager
def _only_run(out: Location, share: Share | None = None) -> Iterator[None]:
    """A context that another process cannot enter for the same directory, but with another share. `FastDPSError`."""
    if isinstance(out, Store):  # no locks there
        yield
        return
    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return

    def lock(path: Path, flags: int, operation: int, who: str) -> int:
        descriptor = os.open(path, flags, 0o666)
        stack.callback(os.close, descriptor)
        with contextlib.suppress(OSError):  # some network file systems lock no directories
            try:
                fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FastDPSError(f"{who} is packing into {out}. Wait for it, or choose another --out.") from None
        return descriptor

    with ExitStack() as stack:
        lock(out, os.O_RDONLY, fcntl.LOCK_SH if share else fcntl.LOCK_EX, "another run")
        if share:
            own = out / _LOCK.format(share.suffix)
            lock(own, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX, f"another run of part {share}")
            stack.callback(own.unlink, missing_ok=True)
        else:
            for left in out.glob(_LOCK.format("-*-of-*")):  # by parts that were killed
                left.unlink()
        yield


class _SetInProgress:
    """One set of a run: what of it is there already, and what is missing."""

    def __init__(self, plan: SetPlan, target: Target, options: PackOptions, share: Share | None = None) -> None:
        self.plan, self.target, self._options, self._share = plan, target, options, share
        self._ledger = Ledger(target, plan.identity, share)
        self._rejects_of_parts: dict[int, list[Reject]] = {}
        self.is_finished = target.size(MANIFEST) is not None

    def refuse_difference(self) -> None:
        """Raise `ConfigError` when what is there has another identity."""
        if self.is_finished:
            refuse_difference(self.target, read_manifest(self.target.location).source, self.plan.identity)
        else:
            self._ledger.refuse_difference()

    def open(self) -> None:
        """Find out what is done, and remove what an earlier run left unfinished."""
        self._ledger.sweep()
        if self.is_finished:
            self._ledger.remove_all()
        else:
            self._ledger.read(self._still_rejected)
            if self._planned():
                self._ledger.begin()

    def look(self) -> None:
        """Find out what is done by any run, and change nothing."""
        if not self.is_finished:
            self._ledger.read()

    @property
    def planned(self) -> int:
        """The number of items that are to be packed in this run or were before."""
        return sum(len(shard.items) for shard in self._planned())

    @property
    def done(self) -> int:
        """The number of those that need no work any more."""
        return self.planned - sum(len(shard.items) for shard in self.missing())

    def missing(self) -> list[ShardPlan]:
        """The shards that this run is still to make."""
        records = self._ledger.records
        return [] if self.is_finished else [shard for shard in self._planned() if shard.number not in records]

    def missing_of_all(self) -> list[int]:
        """The numbers of the shards that no run has made."""
        all_runs = Ledger(self.target, self.plan.identity)
        all_runs.read()
        return [shard.number for shard in self.plan.shards if shard.number not in all_runs.records]

    def gap(self) -> str | None:
        """What is missing, in words, and which parts would make it."""
        if not (missing := [shard.number for shard in self.missing()]):
            return None
        shown = ", ".join(map(str, missing[:SHOWN_SHARDS])) + (" ..." if len(missing) > SHOWN_SHARDS else "")
        said = f"{self.target} lacks {len(missing)} of {len(self.plan.shards)} shards ({shown})"
        counts = self._ledger.parts_seen()
        if len(counts) == 1:
            count = counts.pop()
            parts = [f"--part {index}/{count}" for index in sorted({number % count for number in missing})]
            said += f", which belong to {', '.join(parts)}"
        return said

    def works(self) -> list[ShardWork]:
        """What is to be done."""
        plan = self.plan
        return [ShardWork(plan.name, plan.source, shard, self._options, self.target) for shard in self.missing()]

    def reject(self, number: int, rejects: list[Reject]) -> None:
        """Take note of rejects in a shard that is not finished yet."""
        if rejects:
            self._rejects_of_parts.setdefault(number, []).extend(rejects)

    def add(self, record: ShardRecord) -> None:
        """Record a shard that is in place."""
        self._rejects_of_parts.pop(record.number, None)
        self._ledger.append(record)

    @property
    def rejected(self) -> int:
        """The number of rejects so far."""
        return self._ledger.rejected + sum(map(len, self._rejects_of_parts.values()))

    @property
    def rejects(self) -> list[Reject]:
        """The rejects so far, in the order of their ids."""
        if self.is_finished:
            return read_rejects(self.target)
        found = [reject for rejects in self._rejects_of_parts.values() for reject in rejects]
        return sorted([*self._ledger.rejects, *found], key=lambda reject: reject.id)

    def list_rejects(self) -> str:
        """Write the rejects so far to a file for the user, and return its name."""
        return self.target.named(self._ledger.write_rejects(self.rejects, is_final=False))

    def close(self) -> None:
        """Save what is done, and remove what a run that ended early was about to write."""
        if not self.is_finished:
            self._ledger.close()
        self._ledger.sweep()

    def finish(self) -> None:
        """Write the manifest, which makes the set complete; with a share that is left to `merge`."""
        if self.is_finished or self._share:
            return
        self._ledger.remove_strays()
        self._ledger.write_rejects(self.rejects)
        self.target.write(MANIFEST, self._manifest().to_json())
        self.is_finished = True
        self._ledger.remove_all()

    def _planned(self) -> list[ShardPlan]:
        share = self._share
        return [shard for shard in self.plan.shards if share is None or share.has(shard.number)]

    def _manifest(self) -> Manifest:
        options, plan = self._options, self.plan
        shards = tuple(record.shard for _, record in sorted(self._ledger.records.items()) if record.shard)
        return Manifest(
            kind=plan.source.kind,
            components=component_extensions(plan.source.kind, options.encoding),
            encoding=options.encoding,
            image_size=None if options.size is None else (options.size, options.size),
            samples=sum(shard.samples for shard in shards),
            source=plan.identity,
            shards=shards,
        )

    def _still_rejected(self, record: ShardRecord) -> bool:
        """Whether the rejected items of a shard are still no good: one that was mended belongs into the shard."""
        shard = self.plan.shards[record.number]
        for reject in record.rejects:
            again = make_fragment(self.plan.source, WorkChunk(reject.id, [shard.item(reject.id)]), self._options)
            if again.rejects != [reject]:
                return False
        return True


def _pack_missing(
    sets: list[_SetInProgress], options: PackOptions, executor: Executor, on_progress: OnProgress
) -> None:
    """Have all that is missing made, each set completed with its last shard; stop as soon as too much is rejected."""
    by_name = {one.plan.name: one for one in sets}
    works = [work for one in sets for work in one.works()]

    def record_chunk(work: ShardWork, items: int, rejects: list[Reject]) -> None:
        by_name[work.split].reject(work.shard.number, rejects)
        on_progress(items)
        _refuse_rejects(sets, options)

    _refuse_rejects(sets, options)
    to_do = Counter(work.split for work in works)
    for one in sets:
        if not to_do[one.plan.name]:
            one.finish()
    if not works:
        return
    with contextlib.closing(executor.run(works, record_chunk)) as done:
        for work, record in done:
            by_name[work.split].add(record)
            to_do[work.split] -= 1
            if not to_do[work.split]:
                by_name[work.split].finish()


def _refuse_rejects(sets: list[_SetInProgress], options: PackOptions) -> None:
    """Raise `FastDPSError` when more is rejected than may be of all items, those of other shares included."""
    limit = options.allowed_rejects(sum(one.plan.samples for one in sets))
    if sum(one.rejected for one in sets) <= limit:
        return
    rejects = [reject for one in sets for reject in one.rejects]
    files = [one.list_rejects() for one in sets if one.rejected]
    shown = [f"{reject.item} {reject.reason}" for reject in rejects[:SHOWN_REJECTS]]
    more = " ..." if len(rejects) > SHOWN_REJECTS else ""
    raise FastDPSError(
        f"{len(rejects)} items were rejected and at most {limit} may be: {'; '.join(shown)}{more}. "
        f"All so far are in {', '.join(files)}. Mend them, or allow more with --max-rejects, and run the same command "
        "again; to leave them out, remove them and start anew with --overwrite."
    )
