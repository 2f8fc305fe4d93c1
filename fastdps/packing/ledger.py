"""The manifest in progress: which shards of a split are finished, so that an interrupted run goes on there."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdps.errors import ConfigError
from fastdps.packing.fragment import Reject
from fastdps.packing.writer import PARTIAL, write_whole
from fastdps.shards import MANIFEST, Shard

LEDGER = "progress.jsonl"
#: A reason that the next run can start from nothing but the ledger: everything else in a split has one of these names.
_OWN_FILES = ("shard-*.tar", "shard-*.idx", f"*{PARTIAL}")


@dataclass(frozen=True)
class Entry:
    """One finished shard by its number; `shard` is None if all of its items were rejected."""

    number: int
    shard: Shard | None
    rejects: list[Reject] = field(default_factory=list)


class Ledger:
    """Finished shards of one split, one JSON line each behind a first line with the options; only ever appended to."""

    def __init__(self, directory: Path, identity: dict[str, Any]) -> None:
        self._path = directory / LEDGER
        self._directory = directory
        self._identity = identity
        self.entries: dict[int, Entry] = {}

    def open(self) -> None:
        """Read what an earlier run finished, and remove what it left unfinished.

        Raises `ConfigError` that names the difference when that run had another source or other options.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text(encoding="utf-8").split("\n")[:-1] if self._path.exists() else []
        if lines:
            refuse_difference(self._directory, json.loads(lines[0]), self._identity)
        for line in lines[1:]:
            entry = _parse(json.loads(line))
            self.entries[entry.number] = entry
        known = {name for entry in self.entries.values() if (s := entry.shard) for name in (s.name, s.index_name)}
        for path in _files(self._directory):
            if path.name not in known:
                path.unlink()
        # Rewritten as a whole: a line that was cut off when the run ended is gone.
        write_whole(self._path, "".join(_line(content) for content in self._contents()))

    def append(self, entry: Entry) -> None:
        """Record a shard whose files are in place."""
        self.entries[entry.number] = entry
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(dataclasses.asdict(entry)))
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Remove the ledger, once there is a manifest."""
        self._path.unlink(missing_ok=True)

    @property
    def rejects(self) -> list[Reject]:
        """All rejects, in the order of the shards."""
        return [reject for number in sorted(self.entries) for reject in self.entries[number].rejects]

    def _contents(self) -> Iterable[dict[str, Any]]:
        yield self._identity
        for number in sorted(self.entries):
            yield dataclasses.asdict(self.entries[number])


def clear_split(directory: Path) -> None:
    """Remove a set, or what is there of one, and nothing else."""
    for path in (*_files(directory), directory / MANIFEST, directory / LEDGER):
        path.unlink(missing_ok=True)


def refuse_difference(directory: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `ConfigError` that names what differs between the options of two runs into the same directory."""
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if differing:
        changes = "; ".join(f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in differing)
        raise ConfigError(
            f"{directory} was started with other options: {changes}. Use the same options to go on, "
            "choose another --out, or pass --overwrite to start anew."
        )


def _files(directory: Path) -> list[Path]:
    return [path for pattern in _OWN_FILES for path in directory.glob(pattern)]


def _parse(content: dict[str, Any]) -> Entry:
    shard = content["shard"]
    return Entry(content["number"], shard and Shard(**shard), [Reject(**reject) for reject in content["rejects"]])


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"
