"""Loading: fastdps's loaders against DALI's bare reader, which has no order, no ids and no checks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.bench import Bench, cores
from bench.data import SIZE
from bench.measure import Compared, Measurement, Work
from bench.parts import load_work
from fastdps.loading import LoaderName, ShardLoader, open_shards
from fastdps.shards import read_manifest

BATCH = 128
#: At most so many are encoded, which takes a while and is slower to load, too.
ENCODED_IMAGES = 5000


def run(bench: Bench) -> Iterator[Measurement]:
    """Raw, JPEG and PNG at 64 px, and photographs at 256 px and in full, resized to 64 px; some of them if quick."""
    data, encoded = bench.data, min(bench.data.images, ENCODED_IMAGES)
    yield from _measure(bench, "raw 64 px", data.small("raw"), portable=True)
    yield from _measure(bench, "JPEG 64 px", data.small("jpeg", encoded), portable=not bench.quick)
    if not bench.quick:
        yield from _measure(bench, "PNG 64 px", data.small("png", encoded), portable=True)
    if data.photos:
        if not bench.quick:
            yield from _measure(bench, "JPEG 256 px to 64 px", data.photographs(256), portable=True)
        yield from _measure(bench, "JPEG in full size to 64 px", data.photographs(None), portable=not bench.quick)


def _measure(bench: Bench, what: str, directory: Path, *, portable: bool) -> Iterator[Measurement]:
    """The loader that fastdps takes by default, and the portable one if asked for or if that is it."""
    bare = _bare_reader(bench, directory)
    if bare is None:
        rates = bench.timing.rates({"portable": load_work(_open(bench, directory, "portable"))})
        yield Measurement("load", f"{what}, portable loader", rates["portable"])
        return
    cases = {"auto": load_work(_open(bench, directory, "auto")), "bare": bare}
    if portable:
        cases["portable"] = load_work(_open(bench, directory, "portable"))
    rates = bench.timing.rates(cases)
    limit = Compared(f"DALI's bare reader{'' if what.startswith('raw') else ' and decoder'}", rates["bare"])
    yield Measurement("load", what, rates["auto"], limit=limit)
    if portable:
        yield Measurement("load", f"{what}, portable loader", rates["portable"], limit=limit, headline=False)


def _open(bench: Bench, directory: Path, loader: LoaderName) -> ShardLoader:
    return open_shards(directory, batch_size=BATCH, size=SIZE, device=bench.device, loader=loader)


def _bare_reader(bench: Bench, directory: Path) -> Work | None:
    """Work whose unit is an epoch of DALI's WebDataset reader with nothing around it; None without DALI.

    It is built once and goes on from epoch to epoch without a stop, in packed order.
    """
    try:
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline
    except ImportError:
        return None
    manifest = read_manifest(directory)
    pipeline: Any = Pipeline(BATCH, num_threads=cores(), device_id=bench.device.index)
    with pipeline:
        images = fn.readers.webdataset(
            paths=[str(directory / shard.name) for shard in manifest.shards],
            index_paths=[str(directory / shard.index_name) for shard in manifest.shards],
            ext=[manifest.components["image"]],
            missing_component_behavior="error",
        )
        if manifest.encoding == "raw":
            images = fn.reinterpret(images, shape=[SIZE, SIZE, 3], dtype=types.UINT8, layout="HWC")
            images = images.gpu() if bench.on_gpu else images
        else:
            images = fn.decoders.image(images, device="mixed" if bench.on_gpu else "cpu", output_type=types.RGB)
            if manifest.image_size != (SIZE, SIZE):
                images = fn.resize(images, size=[SIZE, SIZE], interp_type=types.INTERP_TRIANGULAR)
        pipeline.set_outputs(images)
    pipeline.build()
    batches = -(-manifest.samples // BATCH)

    def work(amount: int) -> float:
        for _ in range(amount * batches):
            pipeline.run()
        return amount * batches * BATCH

    return work
