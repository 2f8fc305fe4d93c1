"""A program for the tests: crash packing before each of its changes on disk in turn, run again, compare the bytes.

    python crash_points.py OUT

Each crash is that of a forked child whose audit hook ends it without a word, as SIGKILL does: what was in buffers is
lost, and no clean-up runs. Prints the number of crash points. Nothing is synced: what a crashed *machine* loses is not
simulated.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.source import Source
from fastdps.shards.images import UnreadableItemError

OPTIONS = PackOptions(size=8, samples_per_shard=3, holdout=0.4, max_rejects=0.5)
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}


class Numbers(Source):
    """Eleven images of one colour, two of which do not read."""

    def items(self):
        return range(11)

    def read(self, item):
        if item in (2, 9):
            raise UnreadableItemError("is bad")
        return {"image": np.full((8, 8, 3), item, np.uint8)}

    def name(self, item):
        return str(item)

    def describe(self):
        return {"name": "numbers"}


def pack_whole(out: Path, *, overwrite: bool = False) -> None:
    pack(Numbers(), out, OPTIONS, workers=1, overwrite=overwrite)


def digests(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file()
    }


def crash_at(point: int, out: Path, *, overwrite: bool) -> bool:
    """Pack in a child that ends before change number `point`; whether it got there."""
    child = os.fork()
    if child == 0:
        left = point

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            opens_to_write = (
                event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            )
            if (opens_to_write or event in CHANGES) and str(arguments[0]).startswith(str(out)):
                if left == 0:
                    os._exit(9)
                left -= 1

        sys.addaudithook(count)
        pack_whole(out, overwrite=overwrite)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def main(root: Path) -> None:
    os.fsync = lambda _: None  # the point here is the order of changes, and there are hundreds of runs
    pack_whole(root / "undisturbed")
    expected = digests(root / "undisturbed")
    for overwrite in (False, True):
        point = 0
        while True:
            out = root / f"crashed-{overwrite}-{point}"
            if overwrite:
                pack_whole(out)
            if not crash_at(point, out, overwrite=overwrite):
                break
            pack_whole(out)
            found = digests(out)
            if found != expected:
                differing = sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name))
                sys.exit(f"after a crash before change {point} (overwrite {overwrite}) there differ: {differing}")
            shutil.rmtree(out)
            point += 1
        print(point)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
