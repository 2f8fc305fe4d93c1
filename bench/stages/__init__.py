"""The stages. Each is a module with `run(bench)`, which yields its measurements, one per row of the table.

A stage module is imported when it runs. To add a stage, write the module and add a row to `STAGES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fastdps.errors import ConfigError

if TYPE_CHECKING:
    from bench.harness.bench import Bench
    from bench.harness.measure import Measurement

#: Descriptions of the stages, in the order of the data flow, in which they run and are shown.
STAGES: dict[str, str] = {
    "pack": "JPEG files into a shard set",
    "read": "the bytes of packed images, from storage",
    "load": "packed images to uint8 batches on the device",
    "remote": "remote shards: downloaded, and loaded during the download",
    "distort": "drawing and applying the six distortions",
    "features": "seven views through the backbone",
    "distances": "feature maps to moments per channel",
    "heads": "one training step of K contexts' heads on moments",
    "train": "adapting to K contexts, end to end",
    "accuracy": "time to accuracy of whole processes, against the usual way with one context",
    "judgements": "adapting to judgements that repeat their images, end to end",
    "fewshot": "a head from few judgements, and its accuracy on other images",
    "evaluate": "scoring on held-out images, end to end",
    "matrix": "distances of all pairs of 200 images",
    "loss": "a metric as a loss: forward and backward pass to an image",
    "startup": "from the command line to help and to the first step",
    "scaling": "adapting in several processes",
    "memory": "the peak memory of each stage, each in a separate process",
}


def select(names: Sequence[str]) -> list[str]:
    """Return the named stages in the order of `STAGES`, or all. Raises `ConfigError` for an unknown name."""
    if unknown := [name for name in names if name not in STAGES]:
        raise ConfigError(f"Unknown stage {', '.join(unknown)}. Known: {', '.join(STAGES)}.")
    return [name for name in STAGES if name in names or not names]


def run_stage(name: str, bench: Bench) -> Iterator[Measurement]:
    """Yield the measurements of one stage as they are made."""
    yield from importlib.import_module(f"bench.stages.{name}").run(bench)
