"""fastdps: adapt a perceptual image metric to your notion of similarity, at the speed of the hardware.

    import fastdps

    fastdps.pack("photos", "shards/photos", fastdps.PackOptions(size=64, holdout=0.2))
    run = fastdps.train("shards/photos/train", "runs/photos", contexts="all")
    fastdps.evaluate(run, shards="shards/photos/val").summary
    fastdps.report(run)

    mine = fastdps.adapt(run, "judgements.csv")  # twenty judgements are enough

    m = fastdps.load(run, context="color,darken,zoom_in,rotate,translate,blur")
    m(x, y)                  # distances (N,) of tensors (N, 3, H, W), paths, PIL images or arrays
    m.rank(ref, candidates)  # the nearest first
    m.matrix(images)         # all pairs
    m.embed(images)          # vectors whose squared Euclidean distance is the metric

Every name is imported when it is first used, so that `import fastdps` and the command start fast.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdps.errors import (
        CheckpointError,
        ConfigError,
        FastDPSError,
        ImageError,
        SampleError,
        ShardError,
        StoppedError,
        TrainingError,
        WeightsMismatchError,
        WeightsNotFoundError,
    )
    from fastdps.evaluation.evaluate import evaluate
    from fastdps.evaluation.options import EvaluationOptions
    from fastdps.evaluation.run_scores import RunScores
    from fastdps.export.export import ExportResult, export
    from fastdps.export.hub import Pushed, push_to_hub
    from fastdps.export.onnx_metric import OnnxMetric, RankedArrays, load_onnx
    from fastdps.loading.loader import open_shards
    from fastdps.loading.mixed import MixedLoader, set_numbers
    from fastdps.loading.options import LoadOptions
    from fastdps.loading.shard_loader import ShardLoader
    from fastdps.metric.adapters import BackboneAdapter, register_backbone
    from fastdps.metric.backbones import Backbone
    from fastdps.metric.image_metric import ImageMetric, Ranked
    from fastdps.metric.load import load
    from fastdps.metric.perceptual import PerceptualMetric
    from fastdps.metric.read_images import read_images
    from fastdps.packing.options import PackOptions
    from fastdps.packing.pack import PackResult, pack
    from fastdps.packing.sources.registry import open_source
    from fastdps.report.write import report
    from fastdps.training.adapt import Adapted, AdaptOptions, adapt
    from fastdps.training.options import TrainOptions
    from fastdps.training.recipes import TrainConfig
    from fastdps.training.run import TrainingResult, train

__all__ = [
    "AdaptOptions",
    "Adapted",
    "Backbone",
    "BackboneAdapter",
    "CheckpointError",
    "ConfigError",
    "EvaluationOptions",
    "ExportResult",
    "FastDPSError",
    "ImageError",
    "ImageMetric",
    "LoadOptions",
    "MixedLoader",
    "OnnxMetric",
    "PackOptions",
    "PackResult",
    "PerceptualMetric",
    "Pushed",
    "Ranked",
    "RankedArrays",
    "RunScores",
    "SampleError",
    "ShardError",
    "ShardLoader",
    "StoppedError",
    "TrainConfig",
    "TrainOptions",
    "TrainingError",
    "TrainingResult",
    "WeightsMismatchError",
    "WeightsNotFoundError",
    "adapt",
    "evaluate",
    "export",
    "load",
    "load_onnx",
    "open_shards",
    "open_source",
    "pack",
    "push_to_hub",
    "read_images",
    "register_backbone",
    "report",
    "set_numbers",
    "train",
]

#: The module of each public name; all other names are errors.
_HOME = {
    "AdaptOptions": "training.adapt",
    "Adapted": "training.adapt",
    "Backbone": "metric.backbones",
    "BackboneAdapter": "metric.adapters",
    "EvaluationOptions": "evaluation.options",
    "ExportResult": "export.export",
    "ImageMetric": "metric.image_metric",
    "LoadOptions": "loading.loader",
    "MixedLoader": "loading.mixed",
    "OnnxMetric": "export.onnx_metric",
    "PackOptions": "packing.options",
    "PackResult": "packing.pack",
    "PerceptualMetric": "metric.perceptual",
    "Pushed": "export.hub",
    "Ranked": "metric.image_metric",
    "RankedArrays": "export.onnx_metric",
    "RunScores": "evaluation.run_scores",
    "ShardLoader": "loading.shard_loader",
    "TrainConfig": "training.recipes",
    "TrainOptions": "training.run",
    "TrainingResult": "training.run",
    "adapt": "training.adapt",
    "evaluate": "evaluation.evaluate",
    "export": "export.export",
    "load": "metric.load",
    "load_onnx": "export.onnx_metric",
    "open_shards": "loading.loader",
    "open_source": "packing.sources.registry",
    "pack": "packing.pack",
    "push_to_hub": "export.hub",
    "read_images": "metric.read_images",
    "register_backbone": "metric.adapters",
    "report": "report.write",
    "set_numbers": "loading.mixed",
    "train": "training.run",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fastdps")
    if name not in __all__:
        raise AttributeError(f"module 'fastdps' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastdps.{_HOME.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


class _Surface(ModuleType):
    """The type of this module: `train`, `report` and `export` are functions, though modules have these names too.

    Importing the module `fastdps.train` would otherwise set the attribute `train` to it.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Surface
