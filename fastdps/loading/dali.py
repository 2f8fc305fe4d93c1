"""Loading with NVIDIA DALI, on the CPU or, with "mixed" decoding, on a GPU. The only module that imports DALI.

    temporary indexes with only this segment's samples, in their order
      --> reading pipeline: readers.webdataset --raw images: reinterpret, to the device; scalars--> torch
                                               --jpeg, png: bytes
      --> decoding pipeline: decoders.image, resize, to the device-----------------------------------> torch

DALI reads the samples of an index in the order of the index, so the order is fastdps's and DALI does not shuffle. A
reading pipeline serves one segment; the pipeline of the next segment is built and started in a thread meanwhile. The
decoding pipeline is reused across segments and epochs: on a machine with a GPU, DALI's decoder takes one to two seconds
to build (without one, some milliseconds).

Memory ownership: DALI's default executor allocates the outputs of each run from its own pool and counts references to
them, and DLPack passes such a reference on. So a batch is not copied, stays valid as long as it is referenced, also
after the pipeline is gone, and its memory is reused afterwards. Outputs on a GPU are bound to torch's current stream,
so that the reuse is ordered with the work on that stream.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastdps.errors import FastDPSError, ShardError
from fastdps.loading.background import BackgroundMap
from fastdps.loading.checks import check_votes
from fastdps.loading.members import sample_error
from fastdps.loading.segments import Segment
from fastdps.loading.spec import Component, Loaded, ReadSpec
from fastdps.shards.images import header_fault
from fastdps.shards.index import INDEX_HEADER

READ_AHEAD_BATCHES = 2
#: DALI's message about a sample of a batch that it cannot decode.
_FAILED_SAMPLE = re.compile(r"Failed to decode sample #(\d+)")
#: Segments, each with its reading pipeline.
_Opened = BackgroundMap[Segment, tuple[Segment, Pipeline]]


@dataclass(frozen=True)
class _DaliBatch:
    """DALI's outputs for a batch of a segment, in the order of the components; the last batch may end in padding."""

    segment: Segment
    number: int
    outputs: tuple[Any, ...]

    @property
    def ids(self) -> Tensor:
        """The sample ids without padding, int64 (n,)."""
        size = self.segment.batch_size
        return torch.from_numpy(self.segment.ids[self.number * size : (self.number + 1) * size])


class DaliReader:
    """Reads segments with DALI to the CPU or a CUDA device; see `fastdps.loading.spec.Reader`."""

    def __init__(self, spec: ReadSpec) -> None:
        self._spec = spec
        self._idle_decoders: list[_Decoder] = []
        self._checked: dict[Path, NDArray[np.bool_]] = {}  # by shard, the samples whose headers have been checked

    def read(self, segments: Iterator[Segment]) -> Generator[Loaded, None, None]:
        """Yield the batches of the segments; DALI prepares the next ones while the caller uses one."""
        spec = self._spec
        with closing(BackgroundMap(segments, lambda segment: (segment, _start_reading(spec, segment)))) as opened:
            members = _read_batches(spec, opened)
            for batch in self._decoded(members, opened) if _needs_decoding(spec) else members:
                ids = batch.ids
                tensors = {}
                for component, output in zip(spec.components, batch.outputs, strict=True):
                    tensor = from_dlpack(output.as_tensor())[: len(ids)]  # a view
                    if component.is_scalar:
                        check_votes(tensor, ids, component, spec)
                        tensor = _to_device(tensor, spec.device)
                    tensors[component.name] = tensor
                yield tensors, ids

    def _decoded(self, members: Iterator[_DaliBatch], opened: _Opened) -> Iterator[_DaliBatch]:
        """Yield decoded batches; the next one is being decoded while the caller uses one."""
        decoder = self._idle_decoders.pop() if self._idle_decoders else _Decoder(self._spec)
        for batch in members:
            refused = self._refused_sample(batch)  # while DALI decodes the batch before
            done = decoder.finish()
            if refused is None:
                decoder.start(batch)
            if done is not None:
                yield done
            if refused is not None:
                raise refused
            if batch.number == batch.segment.batches - 1 and not opened.is_ready:
                # The next segment may be waiting for cache room that the shards of this batch hold.
                done = decoder.finish()
                if done is not None:
                    yield done
        done = decoder.finish()
        self._idle_decoders.append(decoder)  # not after an error or an early end: it may still be working
        if done is not None:
            yield done

    def _refused_sample(self, batch: _DaliBatch) -> FastDPSError | None:
        """Return the error about the first member that DALI must not decode, or None. DALI itself has no limits.

        A sample is checked once: in the first epoch that has it.
        """
        encoded = [
            (component, members)
            for component, members in zip(self._spec.components, batch.outputs, strict=True)
            if not component.is_scalar
        ]
        start = 0
        for index, rows in batch.segment.batch_slices(batch.number):
            checked = self._checked.setdefault(index.tar, np.zeros(len(index.ids), np.bool_))
            for position in (~checked[rows]).nonzero()[0].tolist():
                for component, members in encoded:
                    if fault := header_fault(members.at(start + position).tobytes(), self._spec.stored_size):
                        return sample_error(index, int(rows[position]), component.place, fault)
            checked[rows] = True
            start += len(rows)
        return None


def _to_device(scalars: Tensor, device: torch.device) -> Tensor:
    """Return scalars of DALI's host memory on the device, without waiting for it."""
    if device.type != "cuda":
        return scalars
    pinned = torch.empty(scalars.shape, dtype=scalars.dtype, pin_memory=True)  # torch keeps it until it is copied
    return pinned.copy_(scalars).to(device, non_blocking=True)


class _Decoder:
    """A pipeline that decodes batches, one at a time, in the background."""

    def __init__(self, spec: ReadSpec) -> None:
        self._spec = spec
        self._started: _DaliBatch | None = None
        self._pipeline = _pipeline(spec, spec.batch_size, depth=1, device=spec.device)
        with self._pipeline:
            members = [fn.external_source(name=c.name, no_copy=True) for c in spec.components]
            self._pipeline.set_outputs(*(_to_output(spec, c, m) for c, m in zip(spec.components, members, strict=True)))
        self._pipeline.build()

    def start(self, batch: _DaliBatch) -> None:
        """Start to decode a batch. The one before must be finished."""
        for component, members in zip(self._spec.components, batch.outputs, strict=True):
            self._pipeline.feed_input(component.name, members)
        self._pipeline.schedule_run()
        self._started = batch

    def finish(self) -> _DaliBatch | None:
        """Wait for the batch that was started, and return it; None if there is none."""
        batch, self._started = self._started, None
        if batch is None:
            return None
        outputs = _outputs(self._pipeline, self._spec, batch.segment, batch.number, self._spec.device)
        return _DaliBatch(batch.segment, batch.number, outputs)


def _read_batches(spec: ReadSpec, opened: _Opened) -> Iterator[_DaliBatch]:
    """Yield batches as they are read: on the device, or in host memory if they must be decoded."""
    device = _reading_device(spec)
    for segment, pipeline in opened:
        unscheduled = segment.batches - min(READ_AHEAD_BATCHES, segment.batches)
        for number in range(segment.batches):
            outputs = _outputs(pipeline, spec, segment, number, device)
            if unscheduled:
                pipeline.schedule_run()
                unscheduled -= 1
            yield _DaliBatch(segment, number, outputs)
        del pipeline  # frees it before waiting for the next one


def _start_reading(spec: ReadSpec, segment: Segment) -> Pipeline:
    """Return a pipeline that has started to read the first batches of a segment."""
    depth = min(READ_AHEAD_BATCHES, segment.batches)
    with tempfile.TemporaryDirectory(prefix="fastdps-index-") as directory:
        index_paths = _write_indexes(segment, Path(directory))
        pipeline = _pipeline(spec, min(segment.batch_size, len(segment.ids)), depth, _reading_device(spec))
        try:
            with pipeline:
                members = fn.readers.webdataset(
                    paths=[str(index.tar) for index, _ in segment.slices],
                    index_paths=index_paths,
                    ext=[component.extensions for component in spec.components],
                    missing_component_behavior="error",
                    pad_last_batch=True,
                )
                members = members if isinstance(members, list | tuple) else [members]
                if not _needs_decoding(spec):
                    members = [_to_output(spec, c, m) for c, m in zip(spec.components, members, strict=True)]
                pipeline.set_outputs(*members)
            pipeline.build()  # reads the indexes completely, so they may be removed
        except RuntimeError as error:
            names = ", ".join(sorted({index.tar.name for index, _ in segment.slices})[:3])
            raise ShardError(
                f"DALI cannot open shards of {spec.directory} ({names}, ...): {error}. "
                f"Run `fastdps check {spec.directory}`."
            ) from error
    pipeline.schedule_run()  # schedules as many batches as the prefetch depth
    return pipeline


def _write_indexes(segment: Segment, directory: Path) -> list[str]:
    """Write an index file for each slice of a segment, with its samples in order, and return their paths."""
    paths: list[str] = []
    for number, (index, rows) in enumerate(segment.slices):
        path = directory / f"{number}.idx"
        lines = index.lines
        header = f"{INDEX_HEADER} {len(rows)}".encode()
        path.write_bytes(b"\n".join([header, *(lines[row] for row in rows.tolist()), b""]))
        paths.append(str(path))
    return paths


def _needs_decoding(spec: ReadSpec) -> bool:
    """Return whether some components are encoded images."""
    return spec.raw_shape is None and not all(component.is_scalar for component in spec.components)


def _reading_device(spec: ReadSpec) -> torch.device:
    """Return the device of a reading pipeline's batches."""
    return torch.device("cpu") if _needs_decoding(spec) else spec.device


def _pipeline(spec: ReadSpec, batch_size: int, depth: int, device: torch.device) -> Pipeline:
    """Return a pipeline without operators."""
    return Pipeline(
        batch_size=batch_size,
        num_threads=spec.num_threads,
        device_id=device.index,  # None on the CPU
        prefetch_queue_depth=depth,
    )


def _to_output(spec: ReadSpec, component: Component, member: Any) -> Any:
    """Return the graph from the bytes of a component's members to its form on the device."""
    on_gpu = spec.device.type == "cuda"
    if component.is_scalar:
        return fn.reinterpret(member, shape=[], dtype=types.FLOAT)  # on the CPU, where it is checked
    if spec.raw_shape is not None:
        image = fn.reinterpret(member, shape=list(spec.raw_shape), dtype=types.UINT8, layout="HWC")
        image = image.gpu() if on_gpu else image
    else:
        # As Pillow decodes: no EXIF rotation, libjpeg's default upsampling.
        image = fn.decoders.image(
            member,
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
        )
    if spec.stored_size != spec.size:
        image = fn.resize(image, size=list(spec.size), interp_type=types.INTERP_TRIANGULAR)
    return image


def _outputs(
    pipeline: Pipeline, spec: ReadSpec, segment: Segment, number: int, device: torch.device
) -> tuple[Any, ...]:
    """Wait for the outputs of a pipeline on `device` for a batch of a segment.

    Raises `SampleError` with the name of the sample if DALI fails on one; other errors are passed on.
    """
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    try:
        outputs = tuple(pipeline.share_outputs(cuda_stream=stream))
    except RuntimeError as error:
        if found := _find_failed_sample(spec, segment, number, str(error)):
            raise found from error
        error.add_note(f"while loading samples of {spec.directory}")
        raise
    pipeline.release_outputs()  # frees the slot in the queue; the outputs stay valid
    return outputs


def _find_failed_sample(spec: ReadSpec, segment: Segment, number: int, message: str) -> FastDPSError | None:
    """Return the error that names the sample on which DALI failed, or None if it did not fail on a sample."""
    from fastdps.loading.decoding import decode_member  # needed only after a failure

    samples = segment.samples(number)
    for index, row in samples:
        try:
            with index.tar.open("rb", buffering=0) as tar:
                for component in spec.components:
                    decode_member(tar, index, row, component, spec)
        except FastDPSError as found:
            return found
    if named := _FAILED_SAMPLE.search(message):  # an image that Pillow decodes and DALI does not
        index, row = samples[min(int(named.group(1)), len(samples) - 1)]  # padding repeats the last sample
        image = next(component for component in spec.components if not component.is_scalar)
        return sample_error(index, row, image.place, "or another image of this sample cannot be decoded by DALI")
    return None
