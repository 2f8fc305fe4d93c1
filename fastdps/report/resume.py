"""The command that resumes a training."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any


def is_judgement_set(config: dict[str, Any]) -> bool:
    """Return whether a run with judges was adapted to a judgement set, and not to a set of triplets."""
    return config["data"]["source"].get("name", "judgements") == "judgements"


def train_command(run: Path) -> str:
    """Return the command that resumes the training of a run with all that the run recorded.

    Example:
        >>> train_command(Path("runs/sample"))
        'fastdps train --resume runs/sample'
    """
    return f"fastdps train --resume {shlex.quote(str(run))}"
