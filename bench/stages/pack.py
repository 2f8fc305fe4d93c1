"""Packing JPEG files into a raw shard set of 64 px, with a worker on every core.

It is held against decoding at reduced scale and resizing alone, of bytes in memory, and against the usual way: a
Pillow loop over the files. Both run in as many processes, and start-up counts for none of the three: the processes of
the other two run already, and packing is timed from its first finished part on. What start-up costs is a note, and so
is the loop's rate with packing's own filter.
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

#: Images of one sample: seconds of work, so that the last parts, when a core may idle, weigh little.
IMAGES, QUICK_IMAGES = 2800, 1400
#: Height and width of the stand-ins where there are no photographs: those of most of ImageNet.
STAND_IN = (375, 500)


def run(bench: Bench) -> Iterator[Measurement]:
    """One row."""
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
        _spread_over(pool, _decode_scaled, paths)  # brings the files into memory
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
    """JPEG files larger than the target: real ones, or stand-ins."""
    return Folder(bench.data.photos or _stand_ins(bench))


def _pack(source: Folder, out: Path, startup_s: list[float]) -> Timed:
    """Pack anew; timed from the first finished part to the end, with all that was done after it."""
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
    """A folder that has these files, each as often as it is named."""
    directory.mkdir()
    for number, path in enumerate(paths):
        (directory / f"{number:06d}{Path(path).suffix}").symlink_to(Path(path).resolve())
    return directory


def _spread_over(pool: ProcessPoolExecutor, work: Callable[[Sequence[str]], None], paths: Sequence[str]) -> int:
    """Do the work in all processes, in chunks as small as the parts of packing."""
    chunks = [paths[start : start + 32] for start in range(0, len(paths), 32)]
    for _ in pool.map(work, chunks):
        pass
    return len(paths)


@cache
def _file(path: str) -> bytes:
    return Path(path).read_bytes()


def _decode_scaled(paths: Sequence[str]) -> None:
    """Decode at the smallest of libjpeg's scales that is not below the target, and resize."""
    for path in paths:
        with Image.open(io.BytesIO(_file(path))) as image:
            image.draft("RGB", (SIZE, SIZE))
            image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR).tobytes()


def _pillow_loop(paths: Sequence[str]) -> None:
    """What one writes without thinking of speed; `resize` is bicubic by default."""
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB").resize((SIZE, SIZE)).tobytes()


def _bilinear_pillow_loop(paths: Sequence[str]) -> None:
    """The same with the filter that packing has."""
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR).tobytes()


def _stand_ins(bench: Bench) -> Path:
    """Dead leaves, enlarged, as JPEG files."""
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
