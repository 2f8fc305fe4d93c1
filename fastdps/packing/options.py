"""Options of packing: `PackOptions` decide the bytes of a shard set, a `Share` which of its shards one run packs."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, get_args

from fastdps.errors import ConfigError
from fastdps.shards.format import Encoding
from fastdps.shards.images import Fit

SIZE = 64
SAMPLES_PER_SHARD = 5000

_SHARE = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class PackOptions:
    """Options of packing; the number of workers is not among them, since it changes nothing.

    `size` is the side of the square images in pixels, None with encoding `keep`, where images keep their own. `fit`
    says how a rectangle becomes a square (see `fastdps.shards.images.decode`). `holdout` is the fraction of the items
    that goes to the split `val`; `max_rejects` the fraction that may be rejected before packing fails.
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
            raise ConfigError("images have a size unless the encoding is keep, which leaves them as they are.")
        if self.size is not None and self.size < 1:
            raise ConfigError(f"size must be at least 1 pixel, not {self.size}.")
        if self.samples_per_shard < 1:
            raise ConfigError(f"samples per shard must be at least 1, not {self.samples_per_shard}.")
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"holdout must be a fraction in [0, 1), not {self.holdout}.")
        if not 0 <= self.max_rejects <= 1:
            raise ConfigError(f"max rejects must be a fraction in [0, 1], not {self.max_rejects}.")
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, not {self.seed}.")

    def allowed_rejects(self, items: int) -> int:
        """How many of a number of items may be rejected."""
        return math.floor(self.max_rejects * items + 1e-9)  # 0.29 * 100 is a little less than 29

    def describe(self) -> dict[str, Any]:
        """The options as the manifest's `source` has them."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "max_rejects"}


@dataclass(frozen=True)
class Share:
    """Part `index` of `count`, counted from 0: the shards `index`, `index + count`, ... of each set."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(
                f"--part {self.index}/{self.count} is none of {self.count}: parts count from 0 to N-1. "
                "An array of N jobs is `sbatch --array=0-$((N-1))`."
            )

    @classmethod
    def parse(cls, text: str) -> Share:
        """The part that `I/N` means. Raises `ConfigError`."""
        found = _SHARE.fullmatch(text)
        if found is None:
            raise ConfigError(f"--part is I/N, such as 0/8 for the first of eight parts, not {text!r}.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def suffix(self) -> str:
        """What its own files have in their names."""
        return f"-{self.index}-of-{self.count}"

    def has(self, number: int) -> bool:
        """Whether the shard of this number is one of its."""
        return number % self.count == self.index
