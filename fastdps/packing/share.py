"""Which shards one of several runs packs: each job of an array takes every N-th."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastdps.errors import ConfigError

_TEXT = re.compile(r"(\d+)/(\d+)")


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
        found = _TEXT.fullmatch(text)
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
