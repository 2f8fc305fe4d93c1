"""Loading with NVIDIA DALI, on the CPU or, with "mixed" decoding, on a GPU. The only file that imports it.

    temporary indexes with just this segment's samples, in their order
      --> readers.webdataset --raw: reinterpret | jpeg, png: decode--> (resize) --> on the device --> torch

DALI reads the samples of an index in the index's order, so fastdps's order is DALI's without any shuffling there.
A pipeline serves one segment; the next segment's is built, and started, in a thread meanwhile.

Whose memory it is: DALI's default executor allocates the outputs of each run anew from its own pool and counts the
references to them, and DLPack hands on such a reference. So a batch costs no copy, stays what it is as long as
somebody holds it, beyond the life of the pipeline too, and its memory is used again afterwards.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from torch.utils.dlpack import from_dlpack

from fastdps.errors import FastDPSError, SampleError, ShardError
from fastdps.loading.background import one_ahead
from fastdps.loading.plan import Segment
from fastdps.loading.spec import Component, Loaded, ReadSpec
from fastdps.shards import INDEX_HEADER

PREFETCH_BATCHES = 2
#: How DALI names a sample in its messages: tar:offset:member, where a member's name begins with the sample id.
_SOURCE_INFO = re.compile(r"(shard-\d+\.tar):\d+:((\d+)\.\S+)")


class DaliReader:
    """Reads segments to the CPU or a CUDA device; see `fastdps.loading.spec.Reader`."""

    def __init__(self, spec: ReadSpec) -> None:
        self._spec = spec

    def read(self, segments: Iterator[Segment]) -> Generator[Loaded, None, None]:
        """The batches of the segments, decoded ahead by DALI's threads."""
        with closing(one_ahead(segments, self._start)) as started:
            for segment, pipeline in started:
                yield from self._batches(segment, pipeline)
                del pipeline

    def _start(self, segment: Segment) -> tuple[Segment, Any]:
        """A pipeline that has begun to read a segment."""
        depth = min(PREFETCH_BATCHES, segment.batches)
        with tempfile.TemporaryDirectory(prefix="fastdps-index-") as directory:
            index_paths = _write_indexes(segment, Path(directory))
            try:
                pipeline = _pipeline(self._spec, segment, index_paths, depth)
                pipeline.build()  # reads the indexes whole
            except RuntimeError as error:
                names = ", ".join(sorted({index.tar.name for index, _ in segment.parts})[:3])
                raise ShardError(
                    f"DALI cannot open shards of {self._spec.directory} ({names}, ...): {error}. "
                    f"Run `tools/check_shards.py {self._spec.directory}`."
                ) from error
        pipeline.schedule_run()  # all `depth` of them
        return segment, pipeline

    def _batches(self, segment: Segment, pipeline: Any) -> Iterator[Loaded]:
        spec, size = self._spec, segment.batch_size
        unscheduled = segment.batches - min(PREFETCH_BATCHES, segment.batches)
        for batch in range(segment.batches):
            ids = torch.from_numpy(segment.ids[batch * size : (batch + 1) * size])
            stream = torch.cuda.current_stream(spec.device) if spec.device.type == "cuda" else None
            try:
                outputs = pipeline.share_outputs(cuda_stream=stream)
            except RuntimeError as error:
                if found := self._diagnosis(segment, batch, error):
                    raise found from error
                error.add_note(f"while loading samples of {spec.directory}")
                raise
            # The padding of the last batch is cut off: without a copy, as it is at the end.
            tensors = {
                component.name: from_dlpack(output.as_tensor())[: len(ids)]
                for component, output in zip(spec.components, outputs, strict=True)
            }
            pipeline.release_outputs()
            if unscheduled:
                pipeline.schedule_run()
                unscheduled -= 1
            yield tensors, ids

    def _diagnosis(self, segment: Segment, batch: int, error: RuntimeError) -> FastDPSError | None:
        """The error that names the sample on which DALI failed in a batch or one it had begun after it, if any did."""
        from fastdps.loading.decoding import decode_member

        for number in range(batch, min(batch + PREFETCH_BATCHES + 1, segment.batches)):
            for index, row in segment.entries(number):
                try:
                    with index.tar.open("rb", buffering=0) as tar:
                        for component in self._spec.components:
                            decode_member(tar, index, row, component, self._spec)
                except FastDPSError as found:
                    return found
        remedy = f"Run `tools/check_shards.py {self._spec.directory}`, then restore the shard or pack the set again"
        if source := _SOURCE_INFO.search(str(error)):
            tar, member, sample_id = source.groups()
            where = f"sample {int(sample_id)} ({member} in {self._spec.directory / tar})"
            return SampleError(f"{where} cannot be decoded by DALI. {remedy}.")
        return None


def _write_indexes(segment: Segment, directory: Path) -> list[str]:
    """One index file for each part of a segment, with its samples in order."""
    paths: list[str] = []
    for number, (index, rows) in enumerate(segment.parts):
        path = directory / f"{number}.idx"
        lines = index.lines
        header = f"{INDEX_HEADER} {len(rows)}".encode()
        path.write_bytes(b"\n".join([header, *(lines[row] for row in rows.tolist()), b""]))
        paths.append(str(path))
    return paths


def _pipeline(spec: ReadSpec, segment: Segment, index_paths: list[str], depth: int) -> Any:
    """The pipeline of one segment; its outputs are the wanted components in their order."""
    on_gpu = spec.device.type == "cuda"
    pipeline = Pipeline(
        batch_size=min(segment.batch_size, len(segment.ids)),
        num_threads=spec.num_threads,
        device_id=spec.device.index if on_gpu else None,
        prefetch_queue_depth=depth,
    )
    with pipeline:
        members = fn.readers.webdataset(
            paths=[str(index.tar) for index, _ in segment.parts],
            index_paths=index_paths,
            ext=[component.extensions for component in spec.components],
            missing_component_behavior="error",
            pad_last_batch=True,
        )
        members = members if isinstance(members, list | tuple) else [members]
        outputs = [_component(spec, c, m, on_gpu) for c, m in zip(spec.components, members, strict=True)]
        pipeline.set_outputs(*outputs)
    return pipeline


def _component(spec: ReadSpec, component: Component, member: Any, on_gpu: bool) -> Any:
    """The graph from a member's bytes to a component, on the device."""
    if component.is_scalar:
        scalar = fn.reinterpret(member, shape=[], dtype=types.FLOAT)
        return scalar.gpu() if on_gpu else scalar
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
