"""A folder of images, at any depth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdps.datasets.source import Sample, Source, UnreadableItemError
from fastdps.errors import FastDPSError

#: File endings, in lower case, that are taken for images; other files are not part of the source.
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})


@dataclass(frozen=True)
class Folder(Source):
    """All image files below `root`, ordered by path; an item is a path relative to it."""

    root: Path

    def items(self) -> Sequence[str]:
        """Relative paths of all image files. Links to directories are followed once, so that loops end."""
        if not self.root.is_dir():
            raise FastDPSError(f"--source {self.root} is not a directory.")
        found = []
        seen = {self.root.resolve()}
        for directory, names, files in os.walk(self.root, followlinks=True, onerror=_refuse):
            here = Path(directory)
            names[:] = sorted(name for name in names if _first_visit(here / name, seen))
            relative = here.relative_to(self.root)
            found += [(relative / file).as_posix() for file in files if Path(file).suffix.lower() in EXTENSIONS]
        if not found:
            raise FastDPSError(f"--source {self.root} holds no image files ({', '.join(sorted(EXTENSIONS))}).")
        return sorted(found)

    def read(self, item: str) -> Sample:
        """The file as it is."""
        try:
            return {"image": (self.root / item).read_bytes()}
        except OSError as error:
            raise UnreadableItemError(f"cannot be read: {error.strerror}") from error

    def name(self, item: str) -> str:
        """The relative path."""
        return item

    def describe(self) -> dict[str, Any]:
        """The kind of source alone: where the folder happened to be is no property of the set."""
        return {"name": "folder"}


def _refuse(error: OSError) -> None:
    raise FastDPSError(f"{error.filename} cannot be listed: {error.strerror}. Make it readable, or move it away.")


def _first_visit(directory: Path, seen: set[Path]) -> bool:
    resolved = directory.resolve()
    if resolved in seen:
        return False
    seen.add(resolved)
    return True
