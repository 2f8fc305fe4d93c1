"""Where a metric comes from: the size and the hash of its images, and its scores, kept in its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastdps.metric.kept_scores import KeptScore, scores_from_text, scores_to_text

#: Keys in the metadata of a metric file.
_SIZE, _DATA, _VERSION, _SCORES = "image_size", "data_sha256", "fastdps_version", "scores"
#: No image of a training is larger.
_LARGEST = 1 << 16


@dataclass(frozen=True)
class Origin:
    """The data and the version that a metric was adapted with; all None for an unadapted one.

    Attributes:
        image_size: (height, width) in pixels of the images of the training.
        data_sha256: The hash of the content of the training set.
        version: The version of fastdps.
        scores: Its scores, see `fastdps.metric.kept_scores`; empty for a metric of several contexts.
        file: The file that the metric was loaded from; not part of its content.
    """

    image_size: tuple[int, int] | None = None
    data_sha256: str | None = None
    version: str | None = None
    scores: tuple[KeptScore, ...] = ()
    file: Path | None = field(default=None, compare=False)

    def to_metadata(self) -> dict[str, str]:
        """Return what is known as texts, for the metadata of a file."""
        size = None if self.image_size is None else "{}x{}".format(*self.image_size)
        scores = scores_to_text(self.scores) if self.scores else None
        content = {_SIZE: size, _DATA: self.data_sha256, _VERSION: self.version, _SCORES: scores}
        return {key: value for key, value in content.items() if value is not None}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Origin:
        """Return the origin of `to_metadata`; nothing is known of older files. Raises `ValueError` for wrong ones."""
        size = None
        if text := metadata.get(_SIZE):
            height, _, width = text.partition("x")
            size = int(height), int(width)
            if not all(1 <= side <= _LARGEST for side in size):
                raise ValueError(f"{_SIZE} is {text}")
        scores = scores_from_text(metadata.get(_SCORES, "[]"))
        return cls(size, metadata.get(_DATA), metadata.get(_VERSION), scores)
