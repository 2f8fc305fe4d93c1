"""The command that resumes a training on a judgement set, from the configuration of its run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from fastdps.errors import ConfigError
from fastdps.training.recipes import get_recipe

#: Number of judges that a command lists.
LISTED_JUDGES = 8
#: Settings that have an option.
_SETTINGS = (
    *("variant", "backbone", "taps", "comparison", "judge", "loss", "epochs", "max_steps", "batch_size"),
    *("learning_rate", "backbone_learning_rate", "interpolation", "prior_strength", "seed"),
)


def is_judgement_set(config: dict[str, Any]) -> bool:
    """Return whether a run with judges was adapted to a judgement set, and not to a set of triplets."""
    return config["data"]["source"].get("name", "judgements") == "judgements"


def judged_train_command(run: Path, config: dict[str, Any]) -> str:
    """Return the command that resumes a training on a judgement set.

    Args:
        run: The run directory.
        config: Content of its `config.json`.
    """
    data, settings = config["data"], config["config"]
    option, recipe = ("--judgements", "judgements") if is_judgement_set(config) else ("--triplets", "fast")
    command = ["fastdps", "train", option, data["shards"], *_judge_options(settings, config["judges"][1:])]
    if settings["recipe"] != recipe:
        command += ["--recipe", settings["recipe"]]
    for name, value in settings.items():
        if name in _SETTINGS and value not in (None, _default(settings["recipe"], name)):
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            command += [f"--{name.replace('_', '-')}", text]
    if data["size"]:
        command += ["--size", str(data["size"])]
    return " ".join(map(shlex.quote, [*command, "--out", str(run)]))


def _judge_options(settings: dict[str, Any], judges: list[str]) -> list[str]:
    """Return the options that select the judges.

    Without --contexts all judges are selected. The configuration does not say whether these are all; a list that is
    short enough to read is right in both cases.
    """
    if settings.get("by") is None:
        return []
    options = ["--by", str(settings["by"])]
    can_be_listed = not any("," in name or name != name.strip() for name in judges)
    if 0 < len(judges) <= LISTED_JUDGES and can_be_listed:
        options += ["--contexts", ",".join(judges)]
    return options


def _default(recipe: str, name: str) -> Any:
    """Return the value of a setting in a recipe, None if this version does not have the recipe."""
    try:
        return get_recipe(recipe, {}).to_json()[name]
    except ConfigError:
        return None
