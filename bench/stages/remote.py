"""Remote shards: reading the manifest of a large set, staging (downloading) shards, and loading during staging.

The servers run on this machine in separate processes, and take cores from the measured code. The limit of staging is
plain requests to the same server; the limit of loading is the same set in a directory. An epoch is timed from its first
batch on, because that one waits for its shards.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from bench.harness.bench import BATCH, Bench
from bench.harness.measure import Compared, Measurement, Timed, Workload, spread
from bench.harness.parts import StepParts, frozen
from bench.harness.servers import missing, serving
from fastdps.errors import FastDPSError
from fastdps.loading.loader import ShardLoader, open_shards
from fastdps.loading.options import LoadOptions
from fastdps.loading.order import EpochOrder, part_of
from fastdps.loading.spec import Batch
from fastdps.shards.cache import STREAMS, Cache, StagedSet
from fastdps.shards.format import MANIFEST, Manifest, Shard, read_manifest
from fastdps.shards.storage import PIECE_BYTES, open_store

#: Shards of the sets, and of a small cache, half of which is read while the other half is downloaded.
SHARDS, FEW = 20, 4
#: The fraction of the images used for loading with computation on a CPU.
CPU_SHARE = 0.1
LARGE_SHARDS, QUICK_LARGE_SHARDS, PROCESSES = 100_000, 1000, 512
WHERE = {"web": "a web server", "s3": "an S3 server (moto)"}


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure the manifest, staging from each server, and loading with a large and a small cache."""
    yield _manifest(bench)
    images = max(SHARDS, bench.data.images)
    loaded = bench.data.small("raw", images, SHARDS)
    for kind in WHERE:
        if packages := missing(kind):
            needed = "fastdps[remote,test]" if kind == "s3" else "fastdps[remote]"
            Console(stderr=True).print(
                f"remote: skipped {WHERE[kind]}, which needs {', '.join(packages)}: pip install '{needed}'",
                highlight=False,
                markup=False,
            )
            continue
        with serving(kind, loaded) as (url, plain_url):
            yield _brought(bench, loaded, WHERE[kind], url, plain_url)
            if kind == "web":
                yield from _loaded(bench, loaded, url, "loading alone", None)
    if missing("web"):
        return
    trained = loaded if bench.on_gpu else bench.data.small("raw", max(SHARDS, int(images * CPU_SHARE)), SHARDS)
    parts = StepParts(bench, trained)

    def compute(batch: Batch) -> None:
        with frozen(bench.device):
            parts.backbone(parts.views_of(batch))

    with serving("web", trained) as (url, _):
        yield from _loaded(bench, trained, url, "with features of alexnet", compute)


def _manifest(bench: Bench) -> Measurement:
    """Measure reading a large manifest and dividing it over many processes. Limit: parsing its JSON."""
    count = QUICK_LARGE_SHARDS if bench.quick else LARGE_SHARDS
    shards = tuple(
        Shard(f"shard-{number:06d}.tar", 5000, 64_010_240, hashlib.sha256(str(number).encode()).hexdigest())
        for number in range(count)
    )
    made_up = Manifest("images", {"image": "bin"}, "raw", (64, 64), 5000 * count, {"name": "made up"}, shards)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / MANIFEST
        path.write_text(made_up.to_json(), encoding="utf-8")
        epoch = 0

        def read_and_divide(_: int) -> float:
            nonlocal epoch
            manifest = read_manifest(name)
            manifest.content_sha256()
            sizes = [shard.samples for shard in manifest.shards]
            order = EpochOrder(sizes, seed=0, epoch=epoch, shuffle=True)
            for rank in range(PROCESSES):
                for _visit in order.visits(part_of(manifest.samples, rank, PROCESSES)):
                    pass
            epoch += 1
            return 1

        def parse(_: int) -> float:
            json.loads(path.read_text(encoding="utf-8"))
            return 1

        rates = bench.timing.single_rates({"all": read_and_divide, "parse": parse})
        nbytes = path.stat().st_size
    seconds = {name: tuple(1 / rate for rate in found) for name, found in rates.items()}
    return Measurement(
        "remote",
        f"a manifest of {count:,} shards, divided over {PROCESSES} processes",
        seconds["all"],
        unit="s",
        limit=Compared("parsing its JSON alone", seconds["parse"]),
        notes={"manifest_bytes": nbytes, "per_shard_bytes": nbytes / count},
        headline=False,
    )


def _brought(bench: Bench, directory: Path, where: str, url: str, plain_url: str) -> Measurement:
    """Measure staging all shards of a set, in order, each time into an empty cache."""
    manifest = read_manifest(directory)
    nbytes = sum(shard.bytes for shard in manifest.shards)
    with tempfile.TemporaryDirectory(dir=bench.data.directory) as name:
        rates = bench.timing.single_rates(
            {
                "staged": lambda _: _stage(url, manifest, Path(name) / "cache"),
                "plain": lambda _: _request(plain_url, manifest),
                "copied": lambda _: _copy(directory, manifest, Path(name) / "copied"),
            }
        )
    per_image = nbytes / manifest.samples
    return Measurement(
        "remote",
        f"brought from {where}",
        rates["staged"],
        limit=Compared("plain requests to it", rates["plain"]),
        notes={
            "staged_MB_per_s": spread(rates["staged"]).median * per_image / 1e6,
            "copying_on_this_disk_MB_per_s": spread(rates["copied"]).median * per_image / 1e6,
            "image_bytes": per_image,
            "shard_bytes": nbytes / len(manifest.shards),
        },
        headline=False,
    )


def _stage(url: str, manifest: Manifest, directory: Path) -> Timed:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    staged = StagedSet(
        open_store(url), manifest, Cache(directory, sum(shard.bytes for shard in manifest.shards)), processes=1
    )
    started_s = time.perf_counter()
    with closing(staged.prefetch([(shard, shard.samples) for shard in manifest.shards])) as prefetch:
        for _ in manifest.shards:
            prefetch.wait()
        return Timed(manifest.samples, time.perf_counter() - started_s)


def _request(url: str, manifest: Manifest) -> float:
    """Request the same bytes in the same pieces with the same concurrency, and discard them."""
    address = urlsplit(url)

    def get(shard: Shard) -> None:
        with closing(http.client.HTTPConnection(address.netloc)) as connection:
            for start in range(0, shard.bytes, PIECE_BYTES):
                stop = min(start + PIECE_BYTES, shard.bytes) - 1
                path = f"{address.path}/{shard.name}"
                connection.request("GET", path, headers={"Range": f"bytes={start}-{stop}"})
                if len(connection.getresponse().read()) != stop - start + 1:
                    raise FastDPSError(f"{url}/{shard.name} does not return the requested byte ranges.")

    with ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(get, manifest.shards))
    return manifest.samples


def _copy(source: Path, manifest: Manifest, target: Path) -> Timed:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    started_s = time.perf_counter()
    for shard in manifest.shards:
        with (source / shard.name).open("rb") as original, (target / shard.name).open("wb") as copy:
            shutil.copyfileobj(original, copy, PIECE_BYTES)
            copy.flush()
            os.fsync(copy.fileno())
    return Timed(manifest.samples, time.perf_counter() - started_s)


def _loaded(
    bench: Bench, directory: Path, url: str, what: str, compute: Callable[[Batch], None] | None
) -> Iterator[Measurement]:
    """Measure loading with a full cache of all shards, and with a small cache that is empty before every epoch."""
    manifest = read_manifest(directory)
    sizes = sorted(shard.bytes for shard in manifest.shards)
    batch_size = min(BATCH, manifest.samples // SHARDS)

    def open_set(where: str, cache: Cache | None) -> ShardLoader:
        return open_shards(where, batch_size=batch_size, device=bench.device, options=LoadOptions(cache=cache))

    with tempfile.TemporaryDirectory(dir=bench.data.directory) as name:
        every, few = Cache(Path(name) / "all", 2 * sum(sizes)), Cache(Path(name) / "few", sum(sizes[-FEW:]))
        local, warm = open_set(str(directory), None), open_set(url, every)

        def opened_cold() -> ShardLoader:
            shutil.rmtree(few.directory, ignore_errors=True)
            return open_set(url, few)

        epochs = {
            "a directory": lambda: local,
            "a cache that has all": lambda: warm,
            f"a cache of {FEW} of {SHARDS} shards": opened_cold,
        }
        works: dict[str, Workload] = {name: _Epochs(opened, compute) for name, opened in epochs.items()}
        for name in list(works)[:2]:
            works[name](1)
        # Computation takes seconds per epoch, loading much less.
        rates = bench.timing.single_rates(works) if compute else bench.timing.rates(works)
    image_bytes = sum(sizes) / manifest.samples
    for case in list(works)[1:]:
        yield Measurement(
            "remote",
            f"{what}, {case}",
            rates[case],
            limit=Compared("the same in a directory", rates["a directory"]),
            notes={
                "needed_MB_per_s": spread(rates["a directory"]).median * image_bytes / 1e6,
                "image_bytes": image_bytes,
                "shard_bytes": sum(sizes) / len(sizes),
            },
            headline=False,
        )


@dataclass
class _Epochs:
    """A workload whose unit is an epoch, timed from its first batch."""

    opened: Callable[[], ShardLoader]
    compute: Callable[[Batch], None] | None
    epoch: int = 0

    def __call__(self, amount: int) -> Timed:
        images, seconds = 0, 0.0
        for _ in range(amount):
            loader = self.opened()
            with closing(loader.epoch(self.epoch)) as batches:
                self._compute(next(batches))
                started_s = time.perf_counter()
                for batch in batches:
                    self._compute(batch)
                    images += len(batch)
                seconds += time.perf_counter() - started_s
            self.epoch += 1
        return Timed(images, seconds)

    def _compute(self, batch: Batch) -> None:
        if self.compute is not None:
            self.compute(batch)
