"""Options of packing: `PackOptions` decide the bytes of a shard set, a `Share` which of its shards one run packs."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, get_args

from fastdps.errors import ConfigError
from fastdps.shards.format import MAX_PIXELS, MAX_SHARD_SAMPLES, Encoding
from fastdps.shards.images import Fit

SIZE = 64
SAMPLES_PER_SHARD = 5000

_SHARE = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class PackOptions:
    """Options of packing. Together with the source they determine the bytes of a shard set.

    Attributes:
        encoding: The format of the images: "raw" (uint8 HWC), "jpeg", "png", or "keep" (JPEG files unchanged).
        size: The side of the square images in pixels. None with the encoding "keep", which keeps the original size.
        fit: The way a rectangle becomes a square: "squash" or "crop" (see `fastdps.shards.images.decode`).
        samples_per_shard: The number of samples in a shard; the last shard of a set may have fewer.
        holdout: The fraction of the items in [0, 1) that goes from the split "train" to "val".
        seed: The seed of the order of the items.
        max_rejects: The fraction of the items in [0, 1] that may be rejected before packing fails.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> PackOptions(encoding="jpeg", size=256, holdout=0.1).samples_per_shard
        5000
    """

    encoding: Encoding = "raw"
    size: int | None = SIZE
    fit: Fit = "squash"
    samples_per_shard: int = SAMPLES_PER_SHARD
    holdout: float = 0.0
    seed: int = 0
    max_rejects: float = 0.01

    def __post_init__(self) -> None:
        for name, known in (("encoding", get_args(Encoding)), ("fit", get_args(Fit))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}.")
        if (self.encoding == "keep") != (self.size is None):
            raise ConfigError(
                "the encoding keep needs size=None, since it leaves images as they are; the others need a size."
            )
        if self.size is not None and not 1 <= self.size <= math.isqrt(MAX_PIXELS):
            raise ConfigError(f"size must be at least 1 pixel, and at most {math.isqrt(MAX_PIXELS)}, not {self.size}.")
        if not 1 <= self.samples_per_shard <= MAX_SHARD_SAMPLES:
            raise ConfigError(
                f"samples per shard must be at least 1 and at most {MAX_SHARD_SAMPLES:,}, not {self.samples_per_shard}."
            )
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"holdout must be a fraction in [0, 1), not {self.holdout}.")
        if not 0 <= self.max_rejects <= 1:
            raise ConfigError(f"max rejects must be a fraction in [0, 1], not {self.max_rejects}.")
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, not {self.seed}.")

    def allowed_rejects(self, items: int) -> int:
        """Return the number of items that may be rejected, of a total of `items`."""
        return math.floor(self.max_rejects * items + 1e-9)  # 0.29 * 100 is a little less than 29

    def describe(self) -> dict[str, Any]:
        """Return the options that determine the bytes, for `source` in the manifest."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "max_rejects"}


@dataclass(frozen=True)
class Share:
    """One of several runs that pack a set together, such as a job of an array: it packs every `count`-th shard.

    Attributes:
        index: The number of the run, from 0. It packs the shards `index`, `index + count`, ... of each set.
        count: The number of runs.

    Raises:
        ConfigError: `index` is not in [0, count).
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(
                f"--part {self.index}/{self.count} is out of range: parts count from 0 to N-1. "
                "An array of N jobs is `sbatch --array=0-$((N-1))`."
            )

    @classmethod
    def parse(cls, text: str) -> Share:
        """Parse `I/N`.

        Raises:
            ConfigError: The text has another form, or I is not in [0, N).

        Example:
            >>> Share.parse("0/8")
            Share(index=0, count=8)
        """
        found = _SHARE.fullmatch(text)
        if found is None:
            raise ConfigError(f"--part must be I/N, such as 0/8 for the first of eight parts, not {text!r}.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def suffix(self) -> str:
        """The suffix of the names of files that belong to this share."""
        return f"-{self.index}-of-{self.count}"

    def has(self, number: int) -> bool:
        """Return True if the shard of this number belongs to the share."""
        return number % self.count == self.index
