"""A folder of image files, at any depth."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdps.errors import FastDPSError
from fastdps.packing.sources.source import Sample, Source, check_file_size
from fastdps.runtime.files import printable
from fastdps.shards.images import UnreadableItemError

#: Extensions of image files, in lower case. Other files are ignored.
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})


@dataclass(frozen=True)
class Folder(Source):
    """All image files below a directory, ordered by path. An item is a path relative to the directory.

    Attributes:
        root: The directory.
        dataset_name: The name of the data set in the manifest.
    """

    root: Path
    dataset_name: str = "folder"

    def items(self) -> Sequence[str]:
        """Return the relative paths of all image files. Each directory is visited once, so that loops of links end."""
        require_directory(self.root)
        found = []
        seen = {self.root.resolve()}
        for directory, names, files in os.walk(self.root, followlinks=True, onerror=_raise_unlistable):
            here = Path(directory)
            names[:] = [name for name in sorted(names) if _first_visit(here / name, seen)]
            relative = here.relative_to(self.root)
            found += [(relative / file).as_posix() for file in files if is_image_name(file)]
        if not found:
            raise FastDPSError(f"{self.root} contains no image files ({', '.join(sorted(EXTENSIONS))}).")
        return sorted(found)

    def read(self, item: str) -> Sample:
        """Return the content of the file."""
        return {"image": read_file(self.root, item)}

    def name(self, item: str) -> str:
        """Return the relative path."""
        return printable(item)

    def describe(self) -> dict[str, Any]:
        """Return the name of the data set only: the location of the folder is not a property of the set."""
        return {"name": self.dataset_name}


def is_image_name(name: str) -> bool:
    """Return True if a file name has the extension of an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def require_directory(root: Path) -> None:
    """Raise `FastDPSError` unless the directory exists."""
    if not root.is_dir():
        raise FastDPSError(
            f"the source {root} is not a directory, or no longer available. Mount it, or correct --source."
        )


def read_file(root: Path, relative: str) -> bytes:
    """Read a file of a source.

    Args:
        root: The directory of the source.
        relative: The path of the file, relative to `root`.

    Returns:
        The content.

    Raises:
        UnreadableItemError: The file cannot be read, is not a regular file, or is too large.
        FastDPSError: The directory is no longer available.
    """
    try:
        with open(os.path.join(root, relative), "rb", buffering=0, opener=_open_without_blocking) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableItemError("cannot be read: it is not a file")
            check_file_size(status.st_size)
            return file.read()
    except OSError as error:
        require_directory(root)
        raise UnreadableItemError(f"cannot be read: {error.strerror}") from error


def _open_without_blocking(path: str, flags: int) -> int:
    """Open a file without blocking on a named pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _raise_unlistable(error: OSError) -> None:
    raise FastDPSError(
        f"{error.filename} cannot be listed: {error.strerror}. Make it readable, or remove it from the source."
    )


def _first_visit(directory: Path, seen: set[Path]) -> bool:
    """Return True for a directory that was not visited before under any path, and mark it as visited."""
    resolved = directory.resolve()
    if resolved in seen:
        return False
    seen.add(resolved)
    return True
