"""A folder of images, at any depth."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdps.errors import FastDPSError
from fastdps.packing.sources.source import Sample, Source, printable, refuse_large
from fastdps.shards.images import UnreadableItemError

#: File endings, in lower case, that are taken for images; other files are not part of the source.
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})


@dataclass(frozen=True)
class Folder(Source):
    """All image files below `root`, ordered by path; an item is a path relative to it.

    `called` is the name of the data set in the manifest.
    """

    root: Path
    called: str = "folder"

    def items(self) -> Sequence[str]:
        """Relative paths of all image files. Links to directories are followed once, so that loops end."""
        require_directory(self.root)
        found = []
        seen = {self.root.resolve()}
        for directory, names, files in os.walk(self.root, followlinks=True, onerror=_refuse):
            here = Path(directory)
            names[:] = [name for name in sorted(names) if _first_visit(here / name, seen)]
            relative = here.relative_to(self.root)
            found += [(relative / file).as_posix() for file in files if is_image_name(file)]
        if not found:
            raise FastDPSError(f"{self.root} holds no image files ({', '.join(sorted(EXTENSIONS))}).")
        return sorted(found)

    def read(self, item: str) -> Sample:
        """The file as it is."""
        return {"image": read_file(self.root, item)}

    def name(self, item: str) -> str:
        """The relative path."""
        return printable(item)

    def describe(self) -> dict[str, Any]:
        """The kind of source alone: where the folder happened to be is no property of the set."""
        return {"name": self.called}


def is_image_name(name: str) -> bool:
    """Whether a file name ends like that of an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def require_directory(root: Path) -> None:
    """Raise `FastDPSError` unless the directory is there."""
    if not root.is_dir():
        raise FastDPSError(f"the source {root} is not a directory, or has gone away. Mount it, or correct --source.")


def read_file(root: Path, relative: str) -> bytes:
    """A file of a source. Raises `UnreadableItemError`, and `FastDPSError` when the directory `root` is gone."""
    try:
        with open(os.path.join(root, relative), "rb", buffering=0, opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableItemError("cannot be read: it is not a file")
            refuse_large(status.st_size)
            return file.read()
    except OSError as error:
        require_directory(root)
        raise UnreadableItemError(f"cannot be read: {error.strerror}") from error


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _refuse(error: OSError) -> None:
    raise FastDPSError(f"{error.filename} cannot be listed: {error.strerror}. Make it readable, or move it away.")


def _first_visit(directory: Path, seen: set[Path]) -> bool:
    """Whether a directory was not walked before, by whatever path; it counts as walked from now on."""
    resolved = directory.resolve()
    if resolved in seen:
        return False
    seen.add(resolved)
    return True
