"""Pack a data set: plan the shards, pack the missing ones with an executor, record each, write the manifest."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from fastdps.errors import ConfigError, FastDPSError
from fastdps.packing.executor import Executor, LocalExecutor
from fastdps.packing.fragment import Reject
from fastdps.packing.ledger import clear_set
from fastdps.packing.lock import only_run
from fastdps.packing.options import PackOptions, Share
from fastdps.packing.plan import HOLDOUT_SOURCE, HOLDOUT_SPLIT, SetPlan, plan_sets
from fastdps.packing.set_in_progress import SetInProgress, refuse_rows
from fastdps.packing.sources.folder import Folder
from fastdps.packing.sources.source import Dataset
from fastdps.packing.target import target_at
from fastdps.packing.work import ShardWork
from fastdps.shards.format import Manifest, read_manifest
from fastdps.shards.storage import Location, LocationLike, Store, locate, open_store

#: Rejects that the message of a failed run names.
SHOWN_REJECTS = 3


@dataclass(frozen=True)
class PackProgress:
    """Callbacks that report the progress of packing.

    Attributes:
        start: Called once with the number of items, and how many of them an earlier run has packed.
        advance: Called with the number of items done since the last call.
    """

    start: Callable[[int, int], object] = lambda *_: None
    advance: Callable[[int], object] = lambda _: None


@dataclass(frozen=True)
class PackResult:
    """The result of packing.

    Attributes:
        out: The directory of the sets; the set of a split is at `out / split`.
        manifests: The manifests of the complete sets, by split.
        rejects: The rejected items, by split.
        missing: For each incomplete set, by split: the numbers of the shards that no run has packed yet. A run with a
            share leaves sets incomplete; `merge` completes them once nothing is missing.
    """

    out: Location
    manifests: dict[str, Manifest] = field(default_factory=dict)
    rejects: dict[str, list[Reject]] = field(default_factory=dict)
    missing: dict[str, list[int]] = field(default_factory=dict)


def pack(
    source: Dataset | str | PathLike[str],
    out: LocationLike,
    options: PackOptions | None = None,
    *,
    splits: Collection[str] | None = None,
    workers: int | Executor | None = None,
    share: Share | None = None,
    overwrite: bool = False,
    progress: PackProgress | None = None,
) -> PackResult:
    """Pack each split of a data set into a shard set `out/SPLIT`.

    The bytes depend only on the source and the options. An interrupted run resumes when it is called again, after it
    has tried rejected items again; a finished set with the same options is left as it is.

    Args:
        source: A data set of `fastdps.open_source`, or the path of a folder of images.
        out: Directory of the sets, or the URL of an object storage.
        options: Encoding, size, holdout and other options, see `PackOptions`.
        splits: Names of the splits to pack, None for all.
        workers: Number of processes (default: cores), or an executor such as `fastdps.packing.on_ray.RayExecutor`.
        share: Pack only the shards of this share, next to runs with other shares; `merge` completes the sets.
        overwrite: Replace the sets that `out` holds.
        progress: Callbacks that report progress.

    Returns:
        The manifests and the rejected items by split.

    Raises:
        ConfigError: The options do not fit the source, or the run that `out` holds.
        FastDPSError: The source does not exist, more than `options.max_rejects` of the items are rejected, another run
            is packing into `out`, the disk is full, or a worker process died.

    Example:
        >>> pack("photos", "shards/photos", PackOptions(size=64, holdout=0.2))  # doctest: +SKIP
    """
    dataset = Folder(Path(source)) if isinstance(source, str | PathLike) else source
    progress = progress or PackProgress()
    if share and overwrite:
        raise ConfigError(
            f"a part cannot overwrite: it would remove shards of the other parts. "
            f"Remove {out}, or choose another directory."
        )
    options, out = options or PackOptions(), _writable(out)
    plans = plan_sets(dataset, options, splits)
    with only_run(out, share):
        if overwrite:
            for name in _replaced(plans, dataset):
                clear_set(target_at(out / name))
        sets = _open_sets(plans, out, options, share)
        progress.start(sum(one.planned for one in sets), sum(one.done for one in sets))
        try:
            executor = LocalExecutor(workers) if workers is None or isinstance(workers, int) else workers
            _pack_missing(sets, options, executor, progress)
        finally:
            for one in sets:
                one.close()
        return _result(out, sets)


def _open_sets(
    plans: Sequence[SetPlan], out: Location, options: PackOptions, share: Share | None
) -> list[SetInProgress]:
    """Open the sets of a run. Raises `ConfigError`, before changing any of them, when one has another identity."""
    sets = [SetInProgress(plan, target_at(out / plan.name), options, share) for plan in plans]
    for one in sets:
        one.require_same_identity()
    for one in sets:
        one.open()
    return sets


def merge(
    source: Dataset | str | PathLike[str],
    out: LocationLike,
    options: PackOptions | None = None,
    *,
    splits: Collection[str] | None = None,
) -> PackResult:
    """Complete the sets whose shards were packed by runs with shares, with the manifests of a single run.

    Args:
        source: The source of those runs.
        out: Directory or URL of the sets.
        options: The options of those runs.
        splits: Names of the splits, None for all.

    Returns:
        The manifests and the rejected items by split.

    Raises:
        ConfigError: The shares were packed from another source or with other options.
        FastDPSError: Shards are missing, which the message names, or too many items were rejected.
    """
    dataset = Folder(Path(source)) if isinstance(source, str | PathLike) else source
    options, out = options or PackOptions(), _writable(out)
    with only_run(out):
        sets = [
            SetInProgress(plan, target_at(out / plan.name), options) for plan in plan_sets(dataset, options, splits)
        ]
        for one in sets:
            one.require_same_identity()
        for one in sets:
            one.read_progress()
        if gaps := [gap for one in sets if (gap := one.describe_missing())]:
            raise FastDPSError(
                f"not all shards are packed: {'; '.join(gaps)}. Run those parts again (finished shards are "
                "kept), or run the same command without --part and --merge, which packs the missing shards itself."
            )
        _refuse_rejects(sets, options)
        for one in sets:
            _finish(one, sets, options)
        return _result(out, sets)


def _writable(out: LocationLike) -> Location:
    """Return the location. Raises `ConfigError` when it is read-only or not supported."""
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
        {one.plan.name: one.missing_in_all_runs() for one in sets if not one.is_finished},
    )


def _replaced(plans: list[SetPlan], dataset: Dataset) -> set[str]:
    """Return the sets that `overwrite` removes: those of the run, and a "val" that an earlier holdout made."""
    names = {plan.name for plan in plans}
    return names | {HOLDOUT_SPLIT} if HOLDOUT_SOURCE in names and HOLDOUT_SPLIT not in dataset.splits() else names


def _pack_missing(sets: list[SetInProgress], options: PackOptions, executor: Executor, progress: PackProgress) -> None:
    """Pack the missing shards, and complete each set after its last one. Stop once too many items are rejected."""
    by_name = {one.plan.name: one for one in sets}
    works = [work for one in sets for work in one.missing_work()]

    def record_chunk(work: ShardWork, items: int, rejects: list[Reject]) -> None:
        by_name[work.split].reject(work.shard.number, rejects)
        progress.advance(items)
        _refuse_rejects(sets, options)

    _refuse_rejects(sets, options)
    refuse_rows(sets, options)
    remaining = Counter(work.split for work in works)
    for one in sets:
        if not remaining[one.plan.name]:
            _finish(one, sets, options)
    if not works:
        return
    with contextlib.closing(executor.run(works, record_chunk)) as done:
        for work, record in done:
            by_name[work.split].add(record)
            remaining[work.split] -= 1
            if not remaining[work.split]:
                _finish(by_name[work.split], sets, options)


def _finish(one: SetInProgress, sets: list[SetInProgress], options: PackOptions) -> None:
    """Complete a set, unless too many rows of a judgement file were lost with rejected images."""
    refuse_rows(sets, options)
    one.finish()


def _refuse_rejects(sets: list[SetInProgress], options: PackOptions) -> None:
    """Raise `FastDPSError` when more items are rejected than allowed. The limit counts the items of all shares."""
    limit = options.allowed_rejects(sum(one.plan.samples for one in sets))
    if sum(one.rejected for one in sets) <= limit:
        return
    rejects = [reject for one in sets for reject in one.rejects]
    files = [one.list_rejects() for one in sets if one.rejected]
    shown = [f"{reject.item} {reject.reason}" for reject in rejects[:SHOWN_REJECTS]]
    more = " ..." if len(rejects) > SHOWN_REJECTS else ""
    raise FastDPSError(
        f"{len(rejects)} items were rejected and at most {limit} may be: {'; '.join(shown)}{more}. "
        f"All so far are listed in {', '.join(files)}. Repair them, or allow more with --max-rejects, and run the same "
        "command again. To leave them out, remove them and start from scratch with --overwrite."
    )
