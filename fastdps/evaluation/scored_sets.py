"""The sets that a run was scored on, and which of them it has seen in training. `scores.json["sets"]` lists them.

[{"kind": "contexts" | "2afc" | "jnd" | "judgements", "name", "path", "sha256", "samples", "image_size", "draws",
  "same_as": "training" | "validation" | null}]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

SetKind = Literal["contexts", "2afc", "jnd", "judgements"]
SameAs = Literal["training", "validation"]


@dataclass(frozen=True)
class ScoredSet:
    """A set that a run was scored on.

    Attributes:
        kind: What was scored: "contexts", "2afc", "jnd" or "judgements".
        name: Name of a sub-set of BAPPS, "" for others.
        path: Its directory or URL.
        sha256: The hash of its content.
        samples: Number of its samples.
        image_size: (height, width) in pixels of the scored images.
        draws: Number of draws of all distortions per image, None where nothing is drawn.
        same_as: "training" if the run was trained on the same content, "validation" if its best epochs were chosen by
            it, None for content that the run has not seen.
    """

    kind: SetKind
    name: str
    path: str
    sha256: str
    samples: int
    image_size: tuple[int, int] | None
    draws: int | None = None
    same_as: SameAs | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the set as JSON types."""
        return {**asdict(self), "image_size": None if self.image_size is None else list(self.image_size)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ScoredSet:
        """Return the set of `to_dict`."""
        size = content["image_size"]
        return cls(**{**content, "image_size": None if size is None else tuple(size)})


def seen_as(sha256: str, config: Mapping[str, Any]) -> SameAs | None:
    """Return the part that a set had in a training.

    Args:
        sha256: The hash of the content of the set.
        config: Content of `config.json` of the run.

    Returns:
        "training" also for one of several sets that were mixed, "validation", or None for a set that the run has not
        seen.
    """
    data = config["data"]
    if sha256 in [one["sha256"] for one in data.get("sets", ())] or sha256 == data["sha256"]:
        return "training"
    return "validation" if sha256 == data.get("validation_sha256") else None


def warning(path: str, same_as: str) -> str:
    """Return a sentence that says why scores on a set that the run has seen are not those on new images."""
    if same_as == "training":
        return f"{path} is the set that the run was trained on. On new images scores are usually lower."
    return f"{path} is the set that the best epochs were chosen by. On other new images scores are usually lower."


def warnings(sets: Sequence[Mapping[str, Any]], *kinds: str) -> list[str]:
    """Return the warnings about sets in `scores.json`, of some kinds of scores, each once."""
    found = [warning(one["path"], one["same_as"]) for one in sets if one["kind"] in kinds and one["same_as"]]
    return list(dict.fromkeys(found))
