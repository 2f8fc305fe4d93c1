"""Checks of a run before anything is written: its directory, backbone and taps, and the kind and size of its images."""

from __future__ import annotations

from fastdps.errors import ConfigError
from fastdps.loading.checks import find_image_size
from fastdps.metric.backbones import check_backbone
from fastdps.metric.image_sizes import check_image_size
from fastdps.run_directory import RunDirectory
from fastdps.shards.format import Kind, read_manifest
from fastdps.training.recipes import TrainConfig
from fastdps.training.run_config import RunData
from fastdps.training.selection import Selection


def check_start(run: RunDirectory, config: TrainConfig) -> None:
    """Check what was typed, before any data is read.

    Args:
        run: The run directory.
        config: The settings of the run.

    Raises:
        ConfigError: The directory holds files that do not belong to a run, or the backbone or a tap is unknown.
    """
    run.refuse_foreign_files()
    check_backbone(config.backbone, config.taps)


def check_data(config: TrainConfig, selection: Selection, data: RunData) -> None:
    """Check the shard sets of a run.

    Args:
        config: The settings of the run.
        selection: Its contexts.
        data: Its shard sets.

    Raises:
        ConfigError: A set is of the wrong kind, or its images are too small for the backbone.
        ShardError: A set is missing or damaged.
    """
    kind: Kind = "images" if selection.rankings else "triplets"
    for location in (*data.locations, data.validation):
        if location is None:
            continue
        manifest = read_manifest(location)
        if selection.table is None and manifest.kind != kind:
            raise ConfigError(f"{location} is a set of {manifest.kind}; what is asked for needs {kind}.")
        size = find_image_size(location, manifest, config.crop_size or data.size)
        check_image_size(config.backbone, config.taps, size, location)


def check_steps(config: TrainConfig, selection: Selection) -> None:
    """Raise `ConfigError` for a run without steps, which `--profile` cannot measure."""
    if config.variant == "baseline":
        raise ConfigError("--profile measures a training, and --variant baseline trains nothing. Omit it.")
    if selection.table is not None and not config.trains_backbone:
        raise ConfigError(
            "--profile measures steps, and heads on a judgement set are fitted without steps: the report has "
            "their times. Omit it, or train the backbone too (--variant tune)."
        )
