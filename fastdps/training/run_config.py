"""The data of a run, and its `config.json`: what was trained on what, with which versions on which machine."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fastdps.contexts.rankings import Ranking
from fastdps.errors import ConfigError
from fastdps.loading.loader import LoadOptions, ShardLoader, open_shards
from fastdps.run_directory import RunDirectory
from fastdps.runtime.files import write_json
from fastdps.runtime.processes import Processes
from fastdps.shards.format import read_manifest
from fastdps.shards.storage import Location
from fastdps.training.recipes import TrainConfig, config_from_json
from fastdps.training.tasks import Task


@dataclass(frozen=True)
class RunData:
    """The shard sets of a run, and how they are read.

    Attributes:
        shards: The set to train on.
        validation: The set to choose the best epoch by, None without one.
        size: Side in pixels to which images are resized, None for their packed size.
        loading: How shards are read.
    """

    shards: Location
    validation: Location | None
    size: int | None
    loading: LoadOptions

    def open(self, directory: Location, task: Task, config: TrainConfig, processes: Processes) -> ShardLoader:
        """Return the loader of one set for one process. Raises `ConfigError` for a set of the wrong kind."""
        loader = open_shards(
            directory,
            batch_size=math.ceil(config.batch_size / processes.num_processes),
            size=self.size,
            device=processes.device,
            seed=config.seed,
            rank=processes.process_index,
            world_size=processes.num_processes,
            options=self.loading,
        )
        if loader.manifest.kind != task.kind:
            raise ConfigError(f"{directory} is a set of {loader.manifest.kind}; what is asked for needs {task.kind}.")
        return loader


def begin(run: RunDirectory, description: dict[str, Any]) -> None:
    """Write `config.json` of a new run, or check that the run to resume has the same settings, and repair its log.

    Args:
        run: The run directory.
        description: The content of `config.json`, see `describe`.

    Raises:
        ConfigError: The run has other settings or data; the message names each difference.
    """
    if not run.config.exists():
        write_json(run.config, description)
        return
    before, now = run.read_config(), json.loads(json.dumps(description))
    old, new = config_from_json(before["config"]).to_json(), description["config"]
    differing = [f"{name} was {old[name]} and is now {new[name]}" for name in new if old[name] != new[name]]
    if before["rankings"] != now["rankings"]:
        differing.append(f"there were {len(before['rankings'])} contexts, and not the same as now")
    old, new = before["data"], now["data"]
    names = [name for name in ("size", "sha256", "validation_sha256") if old.get(name) != new[name]]
    differing += [f"the data's {name} was {old.get(name)} and is now {new[name]}" for name in names]
    if differing:
        raise ConfigError(
            f"{run.path} holds a run with other settings: {'; '.join(differing)}. Choose another --out, or pass "
            "--overwrite to replace it."
        )
    run.repair_log()


def describe(config: TrainConfig, rankings: Sequence[Ranking], data: RunData, loader: ShardLoader) -> dict[str, Any]:
    """Return the content of `config.json`: settings, contexts, data, versions and machine."""
    return {
        "config": config.to_json(),
        "rankings": rankings,
        "data": {
            "shards": str(data.shards),
            "validation": None if data.validation is None else str(data.validation),
            "size": data.size,
            "samples": loader.samples,
            "source": loader.manifest.source,
            "sha256": loader.manifest.content_sha256(),
            "validation_sha256": None if data.validation is None else read_manifest(data.validation).content_sha256(),
        },
        "versions": {name: version(name) for name in ("fastdps", "torch", "kornia", "accelerate")},
        "machine": {"python": platform.python_version(), "platform": platform.platform()},
    }
