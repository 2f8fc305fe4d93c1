"""A program of torch.export, which runs without fastdps and can be compiled with AOTInductor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from fastdps.export.format import Distances, Format
from fastdps.export.plain import PlainMetric
from fastdps.metric.image_sizes import smallest_side
from fastdps.metric.perceptual import PerceptualMetric

#: Batch, height and width are dynamic, and the same for both images.
_AXES = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
DYNAMIC = {"x": _AXES, "y": _AXES}


class ExportedProgram(Format):
    """A file for `torch.export.load`; batch, height and width are dynamic. It contains the card as `card.json`."""

    name = "torch"
    suffix = ".pt2"
    library = "torch"
    inputs = "x and y: float32 (N, 3, H, W), RGB in [0, 1]; any N, H, W. Output: float32 (N,)"
    usage = """import torch

metric = torch.export.load("{file}").module()
distances = metric(x, y)"""

    def check(self, metric: PerceptualMetric) -> None:
        """Accept every metric."""

    def write(self, metric: PerceptualMetric, path: Path, card: Mapping[str, Any]) -> None:
        """Write the program with its weights, and the card."""
        program = torch.export.export(PlainMetric(metric), example(metric), dynamic_shapes=DYNAMIC)
        torch.export.save(program, path, extra_files={"card.json": json.dumps(card)})

    def read_back(self, metric: PerceptualMetric, path: Path) -> Distances:  # noqa: ARG002
        """Load the file with torch."""
        return torch.export.load(path).module()


def example(metric: PerceptualMetric) -> tuple[Tensor, Tensor]:
    """Return images x and y whose size and number no dimension of a backbone is likely to equal.

    Otherwise the export could treat a dynamic dimension as constant.
    """
    side = max(64, smallest_side(metric.backbone.name, metric.backbone.taps))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 5, 3, side + 7, side + 25, generator=generator)
    return x, y
