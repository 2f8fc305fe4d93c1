"""The stages: each a module with `run(bench)` that yields its measurements, one row of a table.

A stage module is imported when it is asked for. To add one, write the module and its row here.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fastdps.errors import ConfigError

if TYPE_CHECKING:
    from bench.harness.bench import Bench
    from bench.harness.measure import Measurement

#: What each stage measures, in the order in which they are run and shown: that of the data.
STAGES: dict[str, str] = {
    "pack": "JPEG files into a shard set",
    "read": "the bytes of packed images, from storage",
    "load": "packed images to uint8 batches on the device",
    "remote": "shards of a store: brought here, and loaded while they come",
    "distort": "drawing and applying the six distortions",
    "features": "seven views through the backbone",
    "distances": "feature maps to moments per channel",
    "heads": "one training step of K contexts' heads on moments",
    "train": "adapting to K contexts, end to end",
    "evaluate": "scoring on held-out images, end to end",
    "matrix": "distances of all pairs of 200 images",
    "startup": "from the command line to help and to the first step",
    "scaling": "adapting in several processes",
    "memory": "the most memory that each stage takes, in a process of its own",
}


def select(names: Sequence[str]) -> list[str]:
    """The stages by name, in the table's order; all of them without names. `ConfigError` lists the known ones."""
    if unknown := [name for name in names if name not in STAGES]:
        raise ConfigError(f"Unknown stage {', '.join(unknown)}. Known: {', '.join(STAGES)}.")
    return [name for name in STAGES if name in names or not names]


def run_stage(name: str, bench: Bench) -> Iterator[Measurement]:
    """The measurements of one stage, as they are made."""
    yield from importlib.import_module(f"bench.stages.{name}").run(bench)
