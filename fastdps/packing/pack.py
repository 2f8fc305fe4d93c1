"""Pack a data set: plan, make fragments in workers, write shards in order, record each, and end with the manifest."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastdps.datasets.source import Dataset
from fastdps.errors import FastDPSError
from fastdps.files import write_whole, writing
from fastdps.packing.executor import Task, default_workers, make_fragments
from fastdps.packing.fragment import Fragment, Reject, make_fragment
from fastdps.packing.ledger import REJECTS, Entry, Ledger, clear_set, read_rejects, refuse_difference, write_rejects
from fastdps.packing.options import PackOptions
from fastdps.packing.plan import DIVIDED, HELD_OUT, Part, SetPlan, ShardPlan, plan_sets
from fastdps.packing.writer import ShardWriter
from fastdps.shards import MANIFEST, Manifest, component_extensions, read_manifest

#: As many rejects does the message of a failed run name.
SHOWN_REJECTS = 3

#: Called once with the number of items, and how many of them an earlier run has done.
OnStart = Callable[[int, int], None]
#: Called with the number of items that were done since the last call.
OnProgress = Callable[[int], None]


@dataclass(frozen=True)
class PackResult:
    """The manifests by split, the directory of each being `out / split`, and what was rejected."""

    out: Path
    manifests: dict[str, Manifest] = field(default_factory=dict)
    rejects: dict[str, list[Reject]] = field(default_factory=dict)


def pack(
    dataset: Dataset,
    out: str | Path,
    options: PackOptions | None = None,
    *,
    splits: Collection[str] | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    on_start: OnStart = lambda *_: None,
    on_progress: OnProgress = lambda _: None,
) -> PackResult:
    """Pack each split of a data set (or those named by `splits`) into `out/SPLIT`, a shard set with `rejects.jsonl`.

    The bytes depend on the source and the options alone. A run that was interrupted goes on where it stopped, after it
    has tried rejected items again; a finished set with the same options is left as it is, unless `overwrite` starts
    anew.

    Raises `ConfigError` for options that do not fit the source or the run that `out` holds, and `FastDPSError` when
    the source is not there, when more than `max_rejects` of the items are rejected, when another run is packing into
    `out`, when the disk is full, or when a worker dies.
    """
    options, out = options or PackOptions(), Path(out)
    plans = plan_sets(dataset, options, splits)
    with _only_run(out):
        if overwrite:
            for name in _replaced(plans, dataset):
                clear_set(out / name)
        sets = [_SetInProgress(plan, out / plan.name, options) for plan in plans]
        for one in sets:
            one.refuse_difference()
        for one in sets:
            one.open()
        on_start(sum(plan.samples for plan in plans), sum(one.done for one in sets))
        try:
            _pack_missing(sets, options, workers or default_workers(), on_progress)
        finally:
            for one in sets:
                one.sweep()
    return PackResult(
        out,
        {one.plan.name: read_manifest(one.directory) for one in sets},
        {one.plan.name: one.rejects for one in sets},
    )


def _replaced(plans: list[SetPlan], dataset: Dataset) -> set[str]:
    """The sets that a run with `overwrite` replaces: its own, and a "val" that an earlier holdout took from "train"."""
    names = {plan.name for plan in plans}
    return names | {HELD_OUT} if DIVIDED in names and HELD_OUT not in dataset.splits() else names


@contextmanager
def _only_run(out: Path) -> Iterator[None]:
    """A context that another process cannot enter for the same directory. Raises `FastDPSError`."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(out, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no directories
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FastDPSError(
                    f"another run is packing into {out}. Wait for it, or choose another --out."
                ) from None
        yield
    finally:
        os.close(descriptor)


class _SetInProgress:
    """One set of a run: what of it is there already, and what is missing."""

    def __init__(self, plan: SetPlan, directory: Path, options: PackOptions) -> None:
        self.plan, self.directory, self._options = plan, directory, options
        self._ledger = Ledger(directory, plan.identity)
        self.is_finished = (directory / MANIFEST).exists()
        self.rejects: list[Reject] = []

    def refuse_difference(self) -> None:
        """Raise `ConfigError` when what is there has another identity."""
        if self.is_finished:
            refuse_difference(self.directory, read_manifest(self.directory).source, self.plan.identity)
        else:
            self._ledger.refuse_difference()

    def open(self) -> None:
        """Find out what is done, and remove what an earlier run left unfinished."""
        if self.is_finished:
            self._ledger.remove()
            self._ledger.sweep()
            self.rejects = read_rejects(self.directory)
        else:
            self._ledger.open(self._still_rejected)
            self.rejects = self._ledger.rejects

    @property
    def done(self) -> int:
        """The number of items that need no work any more."""
        return self.plan.samples - sum(len(shard.items) for shard in self.missing())

    def missing(self) -> list[ShardPlan]:
        """The shards that are still to be made."""
        entries = self._ledger.entries
        return [] if self.is_finished else [shard for shard in self.plan.shards if shard.number not in entries]

    def write(self, shard: ShardPlan, fragments: Iterator[Fragment], after_part: OnProgress) -> None:
        """Write one shard from its fragments; `rejects` grows as they come."""
        rejects: list[Reject] = []
        with ShardWriter(self.directory, shard.name) as writer:
            for part in shard.parts(self._options):
                fragment = next(fragments)
                writer.add(fragment)
                rejects += fragment.rejects
                self.rejects += fragment.rejects
                after_part(len(part.items))
            self._ledger.append(Entry(shard.number, writer.finish(), rejects))
        self.rejects = self._ledger.rejects

    def sweep(self) -> None:
        """Remove what a run that ended early was about to write."""
        self._ledger.sweep()

    def finish(self) -> None:
        """Write the manifest, which makes the set complete."""
        if self.is_finished:
            return
        write_rejects(self.directory, self.rejects)
        write_whole(self.directory / MANIFEST, self._manifest().to_json())
        self._ledger.remove()

    def _manifest(self) -> Manifest:
        options, plan = self._options, self.plan
        shards = tuple(entry.shard for _, entry in sorted(self._ledger.entries.items()) if entry.shard)
        return Manifest(
            kind=plan.source.kind,
            components=component_extensions(plan.source.kind, options.encoding),
            encoding=options.encoding,
            image_size=None if options.size is None else (options.size, options.size),
            samples=sum(shard.samples for shard in shards),
            source=plan.identity,
            shards=shards,
        )

    def _still_rejected(self, entry: Entry) -> bool:
        """Whether the rejected items of a shard are still no good: one that was mended belongs into the shard."""
        shard = self.plan.shards[entry.number]
        for reject in entry.rejects:
            again = make_fragment(self.plan.source, Part(reject.id, [shard.item(reject.id)]), self._options)
            if again.rejects != [reject]:
                return False
        return True


def _pack_missing(sets: list[_SetInProgress], options: PackOptions, workers: int, on_progress: OnProgress) -> None:
    """Make all that is missing, with one pool of workers for all sets; stop as soon as too much is rejected."""
    limit = options.allowed_rejects(sum(one.plan.samples for one in sets))
    tasks = [
        Task(one.plan.source, part, options) for one in sets for shard in one.missing() for part in shard.parts(options)
    ]

    def after_part(items: int) -> None:
        on_progress(items)
        _refuse_rejects(sets, limit)

    _refuse_rejects(sets, limit)
    with contextlib.closing(make_fragments(tasks, max(1, min(workers, len(tasks))))) as fragments:
        for one in sets:
            for shard in one.missing():
                one.write(shard, fragments, after_part)
            one.finish()


def _refuse_rejects(sets: list[_SetInProgress], limit: int) -> None:
    rejects = [reject for one in sets for reject in one.rejects]
    if len(rejects) <= limit:
        return
    files = []
    for one in sets:
        if one.rejects:
            write_rejects(one.directory, one.rejects)
            files.append(str(one.directory / REJECTS))
    shown = [f"{reject.item} {reject.reason}" for reject in rejects[:SHOWN_REJECTS]]
    more = " ..." if len(rejects) > SHOWN_REJECTS else ""
    raise FastDPSError(
        f"{len(rejects)} items were rejected and at most {limit} may be: {'; '.join(shown)}{more}. "
        f"All so far are in {', '.join(files)}. Mend them, or allow more with --max-rejects, and run the same command "
        "again; to leave them out, remove them and start anew with --overwrite."
    )
