"""Pack a source: plan, make fragments in workers, write shards in order, record each, and end with the manifest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdps.datasets.source import Source
from fastdps.errors import FastDPSError
from fastdps.packing.executor import default_workers, make_fragments
from fastdps.packing.fragment import Reject
from fastdps.packing.ledger import Entry, Ledger, clear_split, refuse_difference
from fastdps.packing.options import PackOptions
from fastdps.packing.plan import ShardPlan, plan_splits
from fastdps.packing.writer import ShardWriter, write_whole
from fastdps.shards import MANIFEST, Manifest, component_extensions, read_manifest

REJECTS = "rejects.jsonl"
#: Called with the number of items that were done since the last call.
OnProgress = Callable[[int], None]


@dataclass(frozen=True)
class PackResult:
    """The manifests by split, the directory of each being `out / split`, and what was rejected."""

    out: Path
    manifests: dict[str, Manifest] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)


def pack(
    source: Source,
    out: str | Path,
    options: PackOptions | None = None,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    on_start: OnProgress = lambda _: None,
    on_progress: OnProgress = lambda _: None,
) -> PackResult:
    """Pack a source into `out/train`, and `out/val` with a holdout; each is a shard set with a `rejects.jsonl`.

    The bytes depend on the source and the options alone. A run that was interrupted goes on where it stopped, and a
    finished set with the same options is left as it is, unless `overwrite` starts anew. `on_start` gets the number of
    items, `on_progress` that of items done, those of an earlier run included.

    Raises `ConfigError` for options that do not fit the source or the run that `out` holds, and `FastDPSError` when
    the source is not there, when more than `max_rejects` of the items are rejected, or when a worker dies.
    """
    options, out = options or PackOptions(), Path(out)
    items = source.items()
    splits = plan_splits(items, options)
    result = PackResult(out)
    on_start(len(items))
    for split, shards in splits.items():
        directory = out / split
        if overwrite:
            clear_split(directory)
        identity = {"kind": source.kind, "items": len(items), "split": split, **source.describe(), **options.describe()}
        if (directory / MANIFEST).exists():
            manifest = read_manifest(directory)
            refuse_difference(directory, manifest.source, identity)
            result.rejects.extend(_read_rejects(directory))
            on_progress(sum(len(shard.items) for shard in shards))
        else:
            ledger = Ledger(directory, identity)
            ledger.open()
            limit = int(options.max_rejects * len(items)) - len(result.rejects)
            _pack_split(source, directory, shards, options, ledger, limit, workers or default_workers(), on_progress)
            manifest = _manifest(source, options, ledger, identity)
            write_whole(directory / REJECTS, _reject_lines(ledger))
            write_whole(directory / MANIFEST, manifest.to_json())
            ledger.remove()
            result.rejects.extend(ledger.rejects)
        result.manifests[split] = manifest
    return result


def _pack_split(
    source: Source,
    directory: Path,
    shards: list[ShardPlan],
    options: PackOptions,
    ledger: Ledger,
    limit: int,
    workers: int,
    on_progress: OnProgress,
) -> None:
    """Write the shards that the ledger lacks; stop as soon as there are more than `limit` rejects."""
    _refuse_rejects(ledger, limit, directory)
    on_progress(sum(len(shard.items) for shard in shards if shard.number in ledger.entries))
    missing = [shard for shard in shards if shard.number not in ledger.entries]
    fragments = make_fragments(source, (part for shard in missing for part in shard.parts()), options, workers)
    try:
        for shard in missing:
            rejects: list[Reject] = []
            with ShardWriter(directory, shard.name) as writer:
                for part in shard.parts():
                    fragment = next(fragments)
                    writer.add(fragment)
                    rejects += fragment.rejects
                    on_progress(len(part.items))
                ledger.append(Entry(shard.number, writer.finish(), rejects))
            _refuse_rejects(ledger, limit, directory)
    finally:
        fragments.close()


def _manifest(source: Source, options: PackOptions, ledger: Ledger, identity: dict[str, Any]) -> Manifest:
    shards = tuple(entry.shard for _, entry in sorted(ledger.entries.items()) if entry.shard)
    size = None if options.size is None else (options.size, options.size)
    return Manifest(
        kind=source.kind,
        components=component_extensions(source.kind, options.encoding),
        encoding=options.encoding,
        image_size=size,
        samples=sum(shard.samples for shard in shards),
        source=identity,
        shards=shards,
    )


def _reject_lines(ledger: Ledger) -> str:
    return "".join(json.dumps(dataclasses.asdict(reject), ensure_ascii=False) + "\n" for reject in ledger.rejects)


def _read_rejects(directory: Path) -> list[Reject]:
    lines = (directory / REJECTS).read_text(encoding="utf-8").splitlines()
    return [Reject(**json.loads(line)) for line in lines]


def _refuse_rejects(ledger: Ledger, limit: int, directory: Path) -> None:
    rejects = ledger.rejects
    if len(rejects) > limit:
        write_whole(directory / REJECTS, _reject_lines(ledger))
        shown = "; ".join(f"{reject.item} {reject.reason}" for reject in rejects[:3])
        raise FastDPSError(
            f"{len(rejects)} items were rejected and at most {max(0, limit)} may be: {shown}. All so far are in "
            f"{directory / REJECTS}. Mend or remove them and start anew with --overwrite, or allow more with "
            "--max-rejects."
        )
