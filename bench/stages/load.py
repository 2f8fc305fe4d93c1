"""Loading: the loaders of fastdps. Limit: loaders without shuffling, sample ids and checks.

These are DALI's reader and, for JPEGs, a `DataLoader` with torchvision's decoder; the faster one is the limit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import resize

from bench.harness.bench import Bench
from bench.harness.data import SIZE
from bench.harness.measure import Compared, Measurement, Workload, spread
from bench.harness.parts import load_work
from bench.harness.reference import loading
from fastdps.loading.loader import LoaderName, ShardLoader, open_shards
from fastdps.loading.members import open_index
from fastdps.loading.options import LoadOptions
from fastdps.runtime.machine import cores
from fastdps.shards.format import read_manifest

BATCH = 128
USUAL = "Pillow in a DataLoader"
#: The maximum number of encoded images: encoding and loading them is slow.
ENCODED_IMAGES = 5000


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure raw, JPEG and PNG at 64 px, and photographs at 256 px and full size resized to 64 px; fewer if quick."""
    data, encoded = bench.data, min(bench.data.images, ENCODED_IMAGES)
    yield from _measure(bench, "raw 64 px", data.small("raw"), data.files())
    yield from _measure(bench, "JPEG 64 px", data.small("jpeg", encoded))
    if not bench.quick:
        yield from _measure(bench, "PNG 64 px", data.small("png", encoded))
    if data.photos:
        yield from _measure(bench, "raw 256 px", data.photographs(256, "raw"), side=256)
        if not bench.quick:
            yield from _measure(bench, "JPEG 256 px to 64 px", data.photographs(256))
        yield from _measure(bench, "JPEG in full size to 64 px", data.photographs(None), data.photo_files())


def _measure(
    bench: Bench, what: str, directory: Path, files: Sequence[Path] = (), side: int = SIZE
) -> Iterator[Measurement]:
    """Measure the default loader and, unless quick, each loader that it chooses from, to images of `side` pixels.

    `files` are the same images as files; with them the baseline is measured too.
    """
    names: list[LoaderName] = ["auto"] if bench.quick else ["auto", "dali", "portable"]
    with ExitStack() as stack:
        bare = _bare_reader(bench, directory, side)
        limits = {} if bare is None else {f"DALI's bare reader{'' if 'raw' in what else ' and decoder'}": bare}
        if "JPEG" in what and not (bench.quick and what == "JPEG 64 px"):  # starting its workers takes seconds
            limits["a DataLoader with torchvision's decode_jpeg"] = stack.enter_context(_torchvision(directory))
        available = [name for name in names if name != "dali" or bare is not None]
        loaders: dict[str, Workload] = {name: load_work(_open(bench, directory, name, side)) for name in available}
        baselines: dict[str, Workload] = {}
        if files and not bench.quick:
            baselines[USUAL] = stack.enter_context(loading(files, SIZE, BATCH, cores()))
        rates = bench.timing.rates({**loaders, **limits, **baselines})
    fastest = max(limits, key=lambda name: spread(rates[name]).median, default=None)
    limit = None if fastest is None else Compared(fastest, rates[fastest])
    for name in loaders:
        if name == "auto":
            usual = Compared(USUAL, rates[USUAL]) if USUAL in rates else None
            notes = {"MB_per_s": spread(rates[name]).median * 3 * side**2 / 1e6}
            yield Measurement("load", what, rates[name], limit=limit, usual=usual, notes=notes)
        else:
            yield Measurement("load", f"{what}, {name} loader", rates[name], limit=limit, headline=False)


def _open(bench: Bench, directory: Path, loader: LoaderName, side: int) -> ShardLoader:
    return open_shards(directory, batch_size=BATCH, size=side, device=bench.device, options=LoadOptions(loader=loader))


def _bare_reader(bench: Bench, directory: Path, side: int) -> Workload | None:
    """Return a workload whose unit is an epoch of DALI's WebDataset reader; None without DALI.

    The pipeline is built once and runs through all epochs without a stop, in packed order.
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
            images = fn.reinterpret(images, shape=[side, side, 3], dtype=types.UINT8, layout="HWC")
            images = images.gpu() if bench.on_gpu else images
        else:
            images = fn.decoders.image(images, device="mixed" if bench.on_gpu else "cpu", output_type=types.RGB)
            if manifest.image_size != (side, side):
                images = fn.resize(images, size=[side, side], interp_type=types.INTERP_TRIANGULAR)
        pipeline.set_outputs(images)
    pipeline.build()
    batches = -(-manifest.samples // BATCH)

    def work(amount: int) -> float:
        for _ in range(amount * batches):
            pipeline.run()
        return amount * batches * BATCH

    return work


class _Files(Dataset[Tensor]):
    """A data set of the JPEG members of a shard set, read by offset, decoded and resized by torchvision."""

    def __init__(self, directory: Path) -> None:
        manifest = read_manifest(directory)
        indexes = [open_index(directory, manifest, shard) for shard in manifest.shards]
        self._places = [
            (str(index.tar), offset, size)
            for index in indexes
            for offset, size in zip(index.offsets[:, 0].tolist(), index.sizes[:, 0].tolist(), strict=True)
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> Tensor:
        tar, offset, size = self._places[number]
        data = torch.from_file(tar, size=offset + size, dtype=torch.uint8)[offset:]
        image = decode_jpeg(data, mode=ImageReadMode.RGB)
        return image if image.shape[1:] == (SIZE, SIZE) else resize(image, [SIZE, SIZE], antialias=True)


def _quiet(_: int) -> None:
    warnings.simplefilter("ignore", DeprecationWarning)  # torchvision's decoders are deprecated in favour of TorchCodec


@contextmanager
def _torchvision(directory: Path) -> Iterator[Workload]:
    """Yield a workload whose unit is an epoch of a `DataLoader` with one worker per core; they end with the context."""
    loader: Any = DataLoader(
        _Files(directory),
        BATCH,
        shuffle=True,
        num_workers=cores(),
        persistent_workers=True,
        multiprocessing_context="spawn",
        worker_init_fn=_quiet,
    )

    def work(amount: int) -> float:
        return sum(len(batch) for _ in range(amount) for batch in loader)

    yield work
    loader._iterator = None  # ends the workers
