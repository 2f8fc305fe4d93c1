"""Packing: JPEG files to a raw shard set of 64 px, with one worker per core.

The limit is decoding at reduced scale and resizing, of bytes in memory. The baseline is a Pillow loop over the files.
Both run in as many processes. Start-up is excluded for all three: the processes of the other two already run, and
packing is timed from its first finished chunk. The start-up time is a note, and so is the rate of the loop with the
filter of packing.
"""

from __future__ import annotations

import io
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

from PIL import Image

from bench.harness.bench import Bench
from bench.harness.data import SIZE
from bench.harness.measure import Compared, Measurement, Timed, Workload, spread
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import PackProgress, pack
from fastdps.packing.sources.folder import Folder
from fastdps.runtime.machine import cores

#: Images of one sample: seconds of work, so that idle cores during the last chunks matter little.
IMAGES, QUICK_IMAGES = 2800, 1400
#: Height and width of the stand-ins for photographs: those of most ImageNet images.
STAND_IN = (375, 500)


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure one row."""
    files = photographs(bench)
    distinct = [files.root / path for path in files.items()]
    count = QUICK_IMAGES if bench.quick else IMAGES
    paths = [str(distinct[number % len(distinct)]) for number in range(count)]
    context = multiprocessing.get_context("spawn")
    startup_s: list[float] = []
    bench.data.directory.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=bench.data.directory) as directory,
        ProcessPoolExecutor(cores(), mp_context=context) as pool,
    ):
        links = _links(Path(directory) / "links", paths)
        _spread_over(pool, _decode_scaled, paths)  # reads the files into memory
        cases: dict[str, Workload] = {
            "pack": lambda _: _pack(Folder(links), Path(directory) / "out", startup_s),
            "decode": lambda _: _spread_over(pool, _decode_scaled, paths),
            "pillow": lambda _: _spread_over(pool, _pillow_loop, paths),
            "pillow bilinear": lambda _: _spread_over(pool, _bilinear_pillow_loop, paths),
        }
        rates = bench.timing.single_rates(cases)
    images = "photographs" if bench.data.photos else "stand-ins for photographs"
    yield Measurement(
        "pack",
        f"JPEG {images} to raw {SIZE} px, {cores()} processes",
        rates["pack"],
        limit=Compared("decoding at reduced scale and resizing alone", rates["decode"]),
        usual=Compared("a plain Pillow loop", rates["pillow"]),
        notes={
            "startup_s": spread(startup_s).median,
            "bilinear_pillow_loop_images_per_s": spread(rates["pillow bilinear"]).median,
        },
    )


def photographs(bench: Bench) -> Folder:
    """Return a folder of JPEG files larger than the target: photographs, or stand-ins."""
    return Folder(bench.data.photos or _stand_ins(bench))


def _pack(source: Folder, out: Path, startup_s: list[float]) -> Timed:
    """Pack from scratch. The time and the items count from the first finished chunk."""
    started_s = time.perf_counter()
    first_s, first_items, items = 0.0, 0, 0

    def count(done: int) -> None:
        nonlocal first_s, first_items, items
        items += done
        if not first_s:
            first_s, first_items = time.perf_counter(), done

    pack(
        source,
        out,
        PackOptions(encoding="raw", size=SIZE),
        workers=cores(),
        overwrite=True,
        progress=PackProgress(advance=count),
    )
    startup_s.append(first_s - started_s)
    return Timed(items - first_items, time.perf_counter() - first_s)


def _links(directory: Path, paths: Sequence[str]) -> Path:
    """Return a folder of links to the files, with a link per occurrence in `paths`."""
    directory.mkdir()
    for number, path in enumerate(paths):
        (directory / f"{number:06d}{Path(path).suffix}").symlink_to(Path(path).resolve())
    return directory


def _spread_over(pool: ProcessPoolExecutor, work: Callable[[Sequence[str]], None], paths: Sequence[str]) -> int:
    """Do the work in all processes, in chunks of the size that packing uses. Return the number of files."""
    chunks = [paths[start : start + 32] for start in range(0, len(paths), 32)]
    for _ in pool.map(work, chunks):
        pass
    return len(paths)


@cache
def _file(path: str) -> bytes:
    return Path(path).read_bytes()


def _decode_scaled(paths: Sequence[str]) -> None:
    """Decode at the smallest scale of libjpeg that is not below the target, and resize."""
    for path in paths:
        with Image.open(io.BytesIO(_file(path))) as image:
            image.draft("RGB", (SIZE, SIZE))
            image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR).tobytes()


def _pillow_loop(paths: Sequence[str]) -> None:
    """Decode and resize in the simplest way; `resize` is bicubic by default."""
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB").resize((SIZE, SIZE)).tobytes()


def _bilinear_pillow_loop(paths: Sequence[str]) -> None:
    """Decode and resize with the filter of packing."""
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR).tobytes()


def _stand_ins(bench: Bench) -> Path:
    """Return a directory of enlarged dead leaves as JPEG files."""
    directory = bench.data.directory / bench.data.source / "enlarged"
    directory.mkdir(parents=True, exist_ok=True)
    for path in bench.data.files():
        enlarged = directory / f"{path.stem}.jpg"
        if not enlarged.exists():
            temporary = enlarged.with_suffix(".partial")
            with Image.open(path) as image:
                image.resize(STAND_IN[::-1], Image.Resampling.BICUBIC).save(temporary, "JPEG", quality=95)
            temporary.replace(enlarged)
    return directory
