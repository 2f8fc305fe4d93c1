"""A test program: crash packing before each of its changes on disk in turn, run it again, and compare the bytes.

    python crash_points.py OUT

Packing runs in a forked child, whose audit hook exits immediately at the crash point, as SIGKILL does: buffered data is
lost, and no clean-up runs. The program prints the number of crash points. Nothing is synced: the losses of a crashed
*machine* are not simulated.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.registry import open_source
from fastdps.packing.sources.source import Source
from fastdps.shards.images import UnreadableItemError

OPTIONS = PackOptions(size=8, samples_per_shard=3, holdout=0.4, max_rejects=0.5)
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}


class Numbers(Source):
    """Eleven images of one colour, two of which are unreadable."""

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


def write_judgements(directory: Path) -> None:
    """Write 12 images, one of them unreadable, and 20 judgements of them, one of them invalid."""
    directory.mkdir()
    draw = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(directory / f"{number}.png")
    (directory / "3.png").write_bytes(b"no image")
    rows = [",".join(f"{number}.png" for number in draw.choice(12, 3, replace=False)) + ",1" for _ in range(19)]
    (directory / "judged.csv").write_text("\n".join(["ref,p0,p1,judge", "1.png,2.png,4.png,7", *rows]) + "\n")


def pack_all(out: Path, *, overwrite: bool = False) -> None:
    pack(Numbers(), out / "numbers", OPTIONS, workers=1, overwrite=overwrite)
    judged = open_source("judgements", out.parent / "source/judged.csv", holdout_by="row")
    pack(judged, out / "judged", OPTIONS, workers=1, overwrite=overwrite)


def digests(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file()
    }


def crash_at(point: int, out: Path, *, overwrite: bool) -> bool:
    """Pack in a child process that exits before change number `point`. Return False if packing finished before."""
    child = os.fork()
    if child == 0:
        remaining = point

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal remaining
            opens_to_write = (
                event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            )
            if (opens_to_write or event in CHANGES) and str(arguments[0]).startswith(str(out)):
                if remaining == 0:
                    os._exit(9)
                remaining -= 1

        sys.addaudithook(count)
        pack_all(out, overwrite=overwrite)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def main(root: Path) -> None:
    os.fsync = lambda _: None  # only the order of changes matters, and there are hundreds of runs
    write_judgements(root / "source")
    pack_all(root / "undisturbed")
    expected = digests(root / "undisturbed")
    for overwrite in (False, True):
        point = 0
        while True:
            out = root / f"crashed-{overwrite}-{point}"
            if overwrite:
                pack_all(out)
            if not crash_at(point, out, overwrite=overwrite):
                break
            pack_all(out)
            found = digests(out)
            if found != expected:
                differing = sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name))
                sys.exit(f"after a crash before change {point} (overwrite {overwrite}) these files differ: {differing}")
            shutil.rmtree(out)
            point += 1
        print(point)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
