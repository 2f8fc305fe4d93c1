"""The exceptions that fastdps raises for users.

Each message says what was wrong, where (file, shard or sample) and what to do. The command line prints the message
without a traceback. Any other exception that reaches the user is a bug in fastdps.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class FastDPSError(Exception):
    """Base class of all errors that fastdps raises for bad input or a bad environment.

    Raised itself for files that cannot be read or written, missing packages, and damaged runs and metric files.

    Args:
        arguments: The message.
        everywhere: All processes of a job raise the same error, so only one of them prints it.

    Example:
        >>> import fastdps
        >>> try:
        ...     fastdps.load("nowhere")
        ... except fastdps.FastDPSError as error:
        ...     print(type(error).__name__)
        ConfigError
    """

    def __init__(self, *arguments: object, everywhere: bool = False) -> None:
        super().__init__(*arguments)
        self.everywhere = everywhere


class ConfigError(FastDPSError, ValueError):
    """Raised for an invalid option, recipe, ranking, backbone or path, or an invalid combination of them."""


class ShardError(FastDPSError):
    """Raised when a shard set, a shard or its index is missing, damaged or differs from the manifest."""


class SampleError(FastDPSError):
    """Raised when a sample (a source file or a member of a shard) cannot be read or decoded."""


class ImageError(FastDPSError, ValueError):
    """Raised when a metric is given images of an unsupported shape, type, size or range."""


class WeightsNotFoundError(FastDPSError):
    """Raised when no source has the pretrained weights of a backbone."""


class WeightsMismatchError(FastDPSError):
    """Raised when weights are damaged, incomplete, or differ from the expected ones."""


class CheckpointError(FastDPSError):
    """Raised when a checkpoint is damaged or was written by another version of the format."""


class TrainingError(FastDPSError):
    """Raised when training cannot continue: NaN or infinite loss, out of memory, or a lost process."""


class StoppedError(FastDPSError):
    """Raised on all processes when a signal stopped training, after a checkpoint was saved.

    Attributes:
        exit_status: 128 plus the signal number.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, everywhere=True)
        self.exit_status = 128 + signal_number


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence, with a leading space, that suggests the most similar known name, or "" if none is similar.

    Example:
        >>> did_you_mean("colour", ["blur", "color"])
        " Did you mean 'color'?"
        >>> did_you_mean("xyz", ["blur", "color"])
        ''
    """
    near = get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
