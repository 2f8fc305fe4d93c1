"""How a run was started, as `config.json` records it, so that `fastdps train --resume RUN` needs nothing else.

"argv":       the words of the command line, null for a run that was started from Python
"directory":  the working directory, which relative paths of the run are relative to
"options":    options for carrying out the run, see `TrainOptions`
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastdps.errors import ConfigError
from fastdps.loading.options import LoadOptions
from fastdps.run_directory import RunDirectory
from fastdps.shards.cache import Cache
from fastdps.shards.credentials import without_credentials
from fastdps.shards.storage import Location, locate
from fastdps.training.options import CheckpointPolicy, Execution, MomentLimits, TrainOptions
from fastdps.training.recipes import TrainConfig
from fastdps.training.run_config import read_settings


@dataclass(frozen=True)
class RecordedRun:
    """What a run was started with.

    Attributes:
        shards: The shard set, several with their weights, or the file of judgements.
        validation: The set to choose the best epoch by, None without one.
        contexts: The contexts, as `fastdps.train` takes them.
        config: The settings.
        options: The options for carrying out the run.
    """

    shards: Location | list[tuple[Location, float]]
    validation: Location | None
    contexts: Sequence[Sequence[str]]
    config: TrainConfig
    options: TrainOptions


def describe_start(options: TrainOptions) -> dict[str, Any]:
    """Return the part of `config.json` that says how a run was started; credentials in URLs are hidden."""
    execution, policy = options.execution, options.checkpoints
    loading, moments, cache, argv = options.loading, options.moments, options.loading.cache, options.argv
    return {
        "argv": None if argv is None else [without_credentials(word) for word in argv],
        "directory": os.getcwd(),
        "options": {
            "execution": asdict(execution),
            "checkpoints": asdict(policy),
            "parallel": options.parallel,
            "stall_timeout_s": options.stall_timeout_s if math.isfinite(options.stall_timeout_s) else None,
            "trackers": list(options.trackers),
            "loading": {
                "loader": loading.loader,
                "num_threads": loading.num_threads,
                "divide": loading.divide,
                "cache": None if cache is None else {"directory": str(cache.directory), "bytes": cache.bytes},
            },
            "moments": {
                "memory_bytes": moments.memory_bytes,
                "disk_bytes": moments.disk_bytes,
                "directory": None if moments.directory is None else str(moments.directory),
            },
        },
    }


def read_recorded(path: Path) -> RecordedRun:
    """Read what a run was started with.

    Args:
        path: The run directory. Runs of fastdps 0.1.0 do not record options; they get the defaults.

    Returns:
        The data, contexts, settings and options of the run.

    Raises:
        FastDPSError: The directory is not a run, or its `config.json` is damaged.
    """
    run = RunDirectory(path)
    content = run.read_config()
    data, directory = content["data"], content.get("directory")
    judges: list[str] = content.get("judges", [])[1:]
    options = _options_of(run, content.get("options"), data["size"])
    validation = data["validation"]
    shards = [(_located(one["path"], directory), one["weight"]) for one in data.get("sets", ())]
    return RecordedRun(
        shards or _located(data.get("file") or data["shards"], directory),
        None if validation is None else _located(validation, directory),
        [tuple(ranking) for ranking in content["rankings"]] or tuple(judges),
        read_settings(run),
        options,
    )


def _located(text: str, directory: str | None) -> Location:
    """Return a location of a run. A relative path is taken from the directory where the run was started."""
    location = locate(text)
    if isinstance(location, Path) and directory is not None and not location.exists():
        return Path(directory) / location
    return location


def _options_of(run: RunDirectory, content: Mapping[str, Any] | None, size: int | None) -> TrainOptions:
    if content is None:
        return TrainOptions(size=size)
    try:
        loading, moments = dict(content["loading"]), dict(content["moments"])
        if (cache := loading["cache"]) is not None:
            loading["cache"] = Cache(Path(cache["directory"]), cache["bytes"])
        if moments["directory"] is not None:
            moments["directory"] = Path(moments["directory"])
        return TrainOptions(
            execution=Execution(**content["execution"]),
            checkpoints=CheckpointPolicy(**content["checkpoints"]),
            parallel=content["parallel"],
            stall_timeout_s=math.inf if content["stall_timeout_s"] is None else content["stall_timeout_s"],
            trackers=tuple(content["trackers"]),
            size=size,
            loading=LoadOptions(**loading),
            moments=MomentLimits(**moments),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{run.config} has options that this version does not know ({error}). Resume the run by the options of its "
            "first command."
        ) from error
