"""The data of a run, and its `config.json`: what was trained on what, with which versions on which machine."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fastdps.contexts.rankings import Ranking
from fastdps.errors import ConfigError
from fastdps.loading.loader import ShardLoader, open_shards
from fastdps.loading.mixed import MixedLoader
from fastdps.loading.options import LoadOptions
from fastdps.metric.origin import Origin
from fastdps.run_directory import RunDirectory
from fastdps.runtime.files import write_json
from fastdps.runtime.processes import Distributed, Processes
from fastdps.shards.format import read_manifest
from fastdps.shards.storage import Location
from fastdps.training.mixture import Mixture, TrainingData
from fastdps.training.recipes import TrainConfig, config_from_json
from fastdps.training.tasks import Task
from fastdps.training.triplet_images import ROLES, TripletImages

#: Triplets that are loaded at a time where their images are read one by one.
TRIPLETS = 16
#: What a run and its resumption must have in common of the data.
_DATA = ("size", "sha256", "validation_sha256")


@dataclass(frozen=True)
class RunData:
    """The shard sets of a run, and how they are read.

    Attributes:
        shards: The set to train on, or several with weights.
        validation: The set to choose the best epoch by, None without one.
        size: Side in pixels to which images are resized, None for their packed size.
        loading: How shards are read.
        file: The file of judgements that `shards` was packed from; None if `shards` itself was given.
    """

    shards: TrainingData
    validation: Location | None
    size: int | None
    loading: LoadOptions
    file: str | None = None

    @property
    def locations(self) -> list[Location]:
        """The locations of the sets to train on."""
        return self.shards.locations if isinstance(self.shards, Mixture) else [self.shards]

    @property
    def only(self) -> Location:
        """The single set to train on. Raises `ConfigError` if there are several."""
        if isinstance(self.shards, Mixture):
            raise ConfigError(f"there are several sets to train on, {self.shards}. Give one.")
        return self.shards

    @property
    def samples(self) -> int:
        """The number of samples of all sets to train on."""
        return sum(read_manifest(location).samples for location in self.locations)

    def open(
        self, shards: TrainingData, task: Task, config: TrainConfig, processes: Processes, *, shuffle: bool = True
    ) -> ShardLoader | MixedLoader:
        """Return the loader of one set, or of several, for one process. Raises `ConfigError` for the wrong kind.

        Without `shuffle` it reads the set in packed order, each process a contiguous part.
        """
        options = self.loading if shuffle else replace(self.loading, divide="epoch")
        loader = open_shards(
            shards.sets if isinstance(shards, Mixture) else shards,
            batch_size=math.ceil(config.batch_size / processes.num_processes),
            size=self.size,
            device=processes.device,
            seed=config.seed if shuffle else None,
            rank=processes.process_index,
            world_size=processes.num_processes,
            options=options,
        )
        kind = (loader.loaders[0] if isinstance(loader, MixedLoader) else loader).manifest.kind
        if kind != task.kind:
            raise ConfigError(f"{shards} is a set of {kind}; what is asked for needs {task.kind}.")
        return loader

    def open_judged(self, directory: Location, device: torch.device) -> ShardLoader | TripletImages:
        """Return all images of a judgement set, or of a set of triplets, in packed order, one by one."""
        if read_manifest(directory).kind != "triplets":
            return self.open_images(directory, device)
        options = replace(self.loading, components=ROLES)
        loader = open_shards(directory, batch_size=TRIPLETS, size=self.size, device=device, seed=None, options=options)
        return TripletImages(loader)

    def open_images(self, directory: Location, device: torch.device) -> ShardLoader:
        """Return a loader of all images of a judgement set in packed order, the same on every process."""
        return open_images(directory, size=self.size, device=device, options=self.loading)


def open_images(
    location: Location, *, size: int | None, device: torch.device, options: LoadOptions, batch_size: int = 50
) -> ShardLoader:
    """Return a loader of all images of a judgement set in packed order, the same on every process.

    Raises:
        ConfigError: The set is of another kind.
        ShardError: The set is missing or damaged.
    """
    loader = open_shards(location, batch_size=batch_size, size=size, device=device, seed=None, options=options)
    if loader.manifest.kind != "judgements":
        raise ConfigError(
            f"{location} is a set of {loader.manifest.kind}, not of judgements. Pack judgements with "
            "`fastdps pack judgements`."
        )
    return loader


@dataclass(frozen=True)
class RunStart:
    """How a run is started.

    Attributes:
        run: The run directory.
        overwrite: Replace the run that it holds.
        record: How the run was started: further content of `config.json`.
    """

    run: RunDirectory
    overwrite: bool = False
    record: Mapping[str, Any] = field(default_factory=dict)

    def lacks(self, path: Path) -> bool:
        """Return whether a file of the run has still to be written."""
        return self.overwrite or not path.exists()

    def begin(self, description: Mapping[str, Any], processes: Distributed) -> str:
        """Write `config.json` of a new run, or check that the run to resume has the same settings, and repair its log.

        All processes call this. Whatever can fail before the first step has to be done before: nothing is written
        until then.

        Args:
            description: The content of `config.json`, see `describe`.
            processes: The processes of the job; its trackers are started.

        Returns:
            The hash of the settings in `config.json`, see `settings_sha256`.

        Raises:
            ConfigError: The run has other settings or data; the message names each difference.
        """

        def write() -> str:
            if self.overwrite:
                self.run.clear()
            if not self.run.config.exists():
                write_json(self.run.config, {**description, **self.record})
                return settings_sha256(self.run.read_config())
            return _resume(self.run, description)

        settings: str = processes.broadcast(write)
        processes.start_trackers(description["config"])
        return settings


def _resume(run: RunDirectory, description: Mapping[str, Any]) -> str:
    """Return the hash of the settings of a run to resume. Raises `ConfigError` if they are not those described."""
    before, now = run.read_config(), json.loads(json.dumps(description))
    old, new = read_settings(run).to_json(), description["config"]
    differing = [f"{name} was {old[name]} and is now {new[name]}" for name in new if old[name] != new[name]]
    if before["rankings"] != now["rankings"]:
        differing.append(f"there were {len(before['rankings'])} contexts, and not the same as now")
    if before.get("judges") != now.get("judges"):
        differing.append("the judges are not the same as now")
    old, new = before["data"], now["data"]
    names = [name for name in _DATA if old.get(name) != new[name]]
    differing += [f"the data's {name} was {old.get(name)} and is now {new[name]}" for name in names]
    if "sha256" in names and ("sets" in old or "sets" in new):
        differing.append(f"the training data was {old['shards']} and is now {new['shards']}")
    if differing:
        raise ConfigError(
            f"{run.path} holds a run with other settings: {'; '.join(differing)}. Choose another --out, or pass "
            "--overwrite to replace it."
        )
    run.repair_log()
    return settings_sha256(before)


def read_settings(run: RunDirectory) -> TrainConfig:
    """Return the settings of a run. Raises `FastDPSError`, which names the file, if it is missing or damaged."""
    try:
        return config_from_json(run.read_config()["config"])
    except ConfigError as error:
        raise ConfigError(f"{run.config}: {error}") from error


def settings_sha256(content: Mapping[str, Any]) -> str:
    """Return a hash of what a run learns from: settings, contexts and data, from the content of `config.json`.

    It does not change when a later version resumes the run, because `config.json` is written once.
    """
    data = {name: content["data"].get(name) for name in _DATA}
    settings = {"config": content["config"], "rankings": content["rankings"], "data": data}
    if "judges" in content:
        settings["judges"] = content["judges"]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def origin_of(description: Mapping[str, Any]) -> Origin:
    """Return the origin of a metric, from the content of `config.json`."""
    data, crop = description["data"], description["config"]["crop_size"]
    height, width = (crop, crop) if crop else data["image_size"]
    return Origin((height, width), data["sha256"], description["versions"]["fastdps"])


def describe(
    config: TrainConfig,
    rankings: Sequence[Ranking],
    data: RunData,
    loader: ShardLoader | MixedLoader | TripletImages,
    judges: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return the content of `config.json`: settings, contexts, data, versions and machine.

    Args:
        config: The settings.
        rankings: The contexts, empty for judgements.
        data: The data.
        loader: The training set.
        judges: The contexts of a judgement set, the pooled one first; None for other sets.
    """
    return {
        "config": config.to_json(),
        "rankings": rankings,
        **({} if judges is None else {"judges": list(judges)}),
        "data": {
            "shards": str(data.shards),
            "file": data.file,
            "validation": None if data.validation is None else str(data.validation),
            "size": data.size,
            "image_size": list(loader.image_size),
            "samples": loader.samples,
            **_content(data, loader),
            "validation_sha256": None if data.validation is None else read_manifest(data.validation).content_sha256(),
        },
        "versions": {name: version(name) for name in ("fastdps", "torch", "kornia", "accelerate")},
        "machine": {"python": platform.python_version(), "platform": platform.platform()},
    }


def _content(data: RunData, loader: ShardLoader | MixedLoader | TripletImages) -> dict[str, Any]:
    """Return where the training set comes from, and the hash of its content."""
    if isinstance(loader, MixedLoader):
        assert isinstance(data.shards, Mixture)
        return data.shards.describe(loader)
    return {"source": loader.manifest.source, "sha256": loader.manifest.content_sha256()}
