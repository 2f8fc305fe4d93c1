"""Write a metric in a format, and see that the foreign library measures the same with it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastdps.errors import FastDPSError
from fastdps.export.format import Distances, Format
from fastdps.export.lpips_checkpoint import LpipsCheckpoint
from fastdps.export.onnx_model import OnnxModel
from fastdps.export.program import ExportedProgram
from fastdps.metric.image_metric import smallest_side
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.runtime.files import fsync_directory, write_errors

FORMATS: Mapping[str, Format] = {form.name: form for form in (LpipsCheckpoint(), OnnxModel(), ExportedProgram())}

#: How far distances may be apart: both add up thousands of float32 in an order of their own.
ABSOLUTE, RELATIVE = 1e-5, 1e-4
#: Batches that are compared: number of images, and what height and width are larger than the smallest.
_BATCHES = ((1, 0, 0), (3, 0, 21), (4, 33, 9))


class Verified(NamedTuple):
    """How far the foreign library's distances were from ours, at most, and of how many image pairs."""

    pairs: int
    largest_difference: float
    largest_distance: float


def export(metric: PerceptualMetric, form: Format, path: Path, card: Mapping[str, Any]) -> Verified:
    """Write the metric's one context to `path`, which has its name only once it has been verified.

    Raises `ConfigError` where the library is missing or the format cannot hold the metric, and `FastDPSError` where the
    file cannot be written, is not read back, or measures other distances.
    """
    form.require()
    form.check(metric)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that it can be moved there, and under its own name, which some formats go by.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as directory:
            unverified = Path(directory) / path.name
            form.write(metric, unverified, card)
            verified = verify(metric, form, form.read_back(metric, unverified))
            unverified.replace(path)
        fsync_directory(path.parent)
    return verified


@torch.no_grad()
def verify(metric: PerceptualMetric, form: Format, theirs: Distances) -> Verified:
    """Compare distances of random images of several sizes. Raises `FastDPSError` where they differ."""
    generator = torch.Generator().manual_seed(1)
    side = max(64, smallest_side(metric))
    pairs, difference, distance = 0, 0.0, 0.0
    for number, taller, wider in _BATCHES:
        x, far = torch.rand(2, number, 3, side + taller, side + wider, generator=generator)
        for y in (far, (x + 0.1 * far).clamp(0, 1)):
            ours, found = metric(x, y)[:, 0].cpu(), theirs(x, y)
            if found.shape != ours.shape or not torch.allclose(found, ours, rtol=RELATIVE, atol=ABSOLUTE):
                raise FastDPSError(
                    f"{form.library} reads what was written, but measures {found.tolist()} where fastdps measures "
                    f"{ours.tolist()}, on images of {x.shape[2]} x {x.shape[3]}. Nothing is kept; please report this "
                    "with the versions of both."
                )
            pairs += number
            difference = max(difference, (found - ours).abs().max().item())
            distance = max(distance, ours.max().item())
    return Verified(pairs, difference, distance)
