"""The errors that users see.

Every one of them says what was wrong, where (file, shard or sample) and what to do about it. The command line
prints the message alone, without a traceback; anything else that escapes is a defect of fastdps.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class FastDPSError(Exception):
    """Base of all errors that fastdps raises on bad input or a bad environment.

    `everywhere` says that all processes of a job raise the same, so that one of them is enough to print it.
    """

    def __init__(self, *arguments: object, everywhere: bool = False) -> None:
        super().__init__(*arguments)
        self.everywhere = everywhere


class ConfigError(FastDPSError, ValueError):
    """An option, a recipe, a ranking or a combination of them that cannot be used."""


class ShardError(FastDPSError):
    """A shard set, a shard or its index is missing, damaged or not what its manifest says."""


class SampleError(FastDPSError):
    """One sample (a source file or a member of a shard) cannot be read or decoded."""


class ImageError(FastDPSError, ValueError):
    """Images of a shape, type, size or range that a metric does not take."""


class WeightsNotFoundError(FastDPSError):
    """Pretrained weights were found in none of the places where they may be."""


class WeightsMismatchError(FastDPSError):
    """Weights were found, but they are not the ones that were asked for."""


class CheckpointError(FastDPSError):
    """A checkpoint that is damaged, or not one of this version."""


class TrainingError(FastDPSError):
    """A training that cannot go on: its loss is not finite, the memory does not suffice, or a process has gone."""


class StoppedError(FastDPSError):
    """A training that was stopped by a signal on all processes, after it saved where it was."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, everywhere=True)
        self.exit_status = 128 + signal_number


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with a space before it that suggests the nearest known name, or nothing if none is near.

    >>> did_you_mean("colour", ["blur", "color"])
    " Did you mean 'color'?"
    >>> did_you_mean("xyz", ["blur", "color"])
    ''
    """
    near = get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
