"""The errors that users see.

Every one of them says what was wrong, where (file, shard or sample) and what to do about it. The command line
prints the message alone, without a traceback; anything else that escapes is a defect of fastdps.
"""

import sys
from collections.abc import Callable


class FastDPSError(Exception):
    """Base of all errors that fastdps raises on bad input or a bad environment."""


class ConfigError(FastDPSError, ValueError):
    """An option, a recipe, a ranking or a combination of them that cannot be used."""


class ShardError(FastDPSError):
    """A shard set, a shard or its index is missing, damaged or not what its manifest says."""


class SampleError(FastDPSError):
    """One sample (a source file or a member of a shard) cannot be read or decoded."""


class WeightsNotFoundError(FastDPSError):
    """Pretrained weights were found in none of the places where they may be."""


class WeightsMismatchError(FastDPSError):
    """Weights were found, but they are not the ones that were asked for."""


def run_command(command: Callable[[], None]) -> int:
    """Run a command and return its exit status: 0, 1 after an error of ours (printed in plain), 130 after Ctrl-C."""
    try:
        command()
    except FastDPSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
