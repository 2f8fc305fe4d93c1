"""A cache of shard indexes, so that the next epoch does not parse and check them again."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

from fastdps.loading.members import ShardIndex, open_index, shard_error
from fastdps.shards.format import Manifest, Shard

#: Samples whose index entries are kept, at about 150 bytes each.
KEPT_SAMPLES = 262_144


class IndexCache:
    """The recently used indexes of a shard set. Thread-safe."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._directory, self._manifest = directory, manifest
        self._kept: OrderedDict[str, tuple[object, ShardIndex]] = OrderedDict()  # least recently used first
        self._kept_samples = 0
        self._lock = threading.Lock()

    def open(self, shard: Shard) -> ShardIndex:
        """Return the index of a shard; it is read and checked again if the shard or its index file has changed.

        Raises what `fastdps.loading.members.open_index` raises.
        """
        stamp = self._stamp(shard)
        with self._lock:
            found = self._kept.get(shard.name)
            if found is not None and found[0] == stamp:
                self._kept.move_to_end(shard.name)
                return found[1]
        index = open_index(self._directory, self._manifest, shard)
        with self._lock:
            if self._kept.pop(shard.name, None) is not None:
                self._kept_samples -= shard.samples
            self._kept[shard.name] = stamp, index
            self._kept_samples += shard.samples
            while self._kept_samples > KEPT_SAMPLES:
                _, (_, dropped) = self._kept.popitem(last=False)
                self._kept_samples -= len(dropped.ids)
        return index

    def _stamp(self, shard: Shard) -> object:
        """Return a value that changes when the tar or the index file is modified or replaced."""
        try:
            states = [os.stat(self._directory / name) for name in (shard.name, shard.index_name)]
        except OSError as error:
            raise shard_error(self._directory, shard.name, f"cannot be read: {error}") from error
        return [(state.st_mtime_ns, state.st_size, state.st_ino) for state in states]
