"""An ONNX model, for onnxruntime and other libraries that read ONNX."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdps.export.format import Distances, Format
from fastdps.export.plain import PlainMetric
from fastdps.export.program import DYNAMIC, example
from fastdps.metric.perceptual import PerceptualMetric


class OnnxModel(Format):
    """A model with inputs `x` and `y` and output `distance`; batch, height and width are dynamic.

    Its metadata contains the card.
    """

    name = "onnx"
    suffix = ".onnx"
    library = "onnxruntime"
    needs = ("onnx", "onnxscript", "onnxruntime")
    inputs = "x and y: float32 (N, 3, H, W), RGB in [0, 1]; any N, H, W. Output distance: float32 (N,)"
    usage = """import onnxruntime

session = onnxruntime.InferenceSession("{file}")
(distances,) = session.run(["distance"], {{"x": x, "y": y}})"""

    def check(self, metric: PerceptualMetric) -> None:
        """Accept every metric."""

    def write(self, metric: PerceptualMetric, path: Path, card: Mapping[str, Any]) -> None:
        """Write one file that contains the weights."""
        import onnx

        with _quiet():
            program = torch.onnx.export(
                PlainMetric(metric),
                example(metric),
                input_names=["x", "y"],
                output_names=["distance"],
                dynamic_shapes=DYNAMIC,
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        model = program.model_proto
        onnx.helper.set_model_props(model, {"fastdps": json.dumps(card)})
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)

    def read_back(self, metric: PerceptualMetric, path: Path) -> Distances:  # noqa: ARG002
        """Load the file with onnxruntime on the CPU."""
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def distances(x: Tensor, y: Tensor) -> Tensor:
            (found,) = session.run(["distance"], {"x": x.numpy(), "y": y.numpy()})
            return torch.from_numpy(found)

        return distances


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the progress that torch's exporter prints, and its warnings about its own internals."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
