"""Files of settings: JSON, as `fastdps train --print-config` writes it, or YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fastdps.errors import ConfigError, did_you_mean
from fastdps.runtime.json_files import parse_json
from fastdps.training.recipes import SETTINGS


def read_settings_file(path: Path) -> dict[str, Any]:
    """Read settings by name.

    Args:
        path: A .json, .yaml or .yml file with an object whose keys are settings of `TrainConfig`.

    Returns:
        The settings; lists are tuples.

    Raises:
        ConfigError: The file cannot be read, or has an unknown key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = parse_json(text) if path.suffix.lower() == ".json" else _parse_yaml(text)
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config {path} is not valid {_format(path)}: {reason}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path} must hold settings by name, such as epochs: 10.")
    for name in content:
        if name not in SETTINGS:
            raise ConfigError(
                f"--config {path}: unknown setting {name!r}.{did_you_mean(str(name), SETTINGS)} Known: "
                f"{', '.join(SETTINGS)}."
            )
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    if "recipe" in settings and not isinstance(settings["recipe"], str):
        raise ConfigError(f"--config {path}: recipe must be a name, not {settings['recipe']!r}.")
    return settings


def _parse_yaml(text: str) -> Any:
    """Parse YAML, in which 1e-4 is a number, as in YAML 1.2 and JSON. Raises `ValueError`."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """The safe loader with one more rule; rules are copied when they are added to."""

    exponent = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+0123456789"))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(error) from error


def _format(path: Path) -> str:
    return "JSON" if path.suffix.lower() == ".json" else "YAML"
