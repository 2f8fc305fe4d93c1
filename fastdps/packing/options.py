"""What decides the bytes of a shard set, beside its source."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, get_args

from fastdps.errors import ConfigError
from fastdps.shards.format import Encoding
from fastdps.shards.images import Fit

SIZE = 64
SAMPLES_PER_SHARD = 5000


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
