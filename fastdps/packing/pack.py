"""Pack a data set: plan, have an executor pack the shards that are missing, record each, end with the manifest."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from fastdps.errors import ConfigError, FastDPSError
from fastdps.packing.executor import Executor, LocalExecutor
from fastdps.packing.fragment import Reject
from fastdps.packing.ledger import clear_set
from fastdps.packing.lock import only_run
from fastdps.packing.options import PackOptions, Share
from fastdps.packing.plan import DIVIDED, HELD_OUT, SetPlan, plan_sets
from fastdps.packing.set_in_progress import SetInProgress
from fastdps.packing.sources.source import Dataset
from fastdps.packing.target import target_at
from fastdps.packing.work import ShardWork
from fastdps.shards.format import Manifest, read_manifest
from fastdps.shards.storage import Location, Store, locate, open_store

#: Rejects that the message of a failed run names.
SHOWN_REJECTS = 3

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
    with only_run(out, share):
        if overwrite:
            for name in _replaced(plans, dataset):
                clear_set(target_at(out / name))
        sets = [SetInProgress(plan, target_at(out / plan.name), options, share) for plan in plans]
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
    with only_run(out):
        sets = [
            SetInProgress(plan, target_at(out / plan.name), options) for plan in plan_sets(dataset, options, splits)
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


def _result(out: Location, sets: list[SetInProgress]) -> PackResult:
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


def _pack_missing(sets: list[SetInProgress], options: PackOptions, executor: Executor, on_progress: OnProgress) -> None:
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


def _refuse_rejects(sets: list[SetInProgress], options: PackOptions) -> None:
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
