"""Helpers for tests of packing: small sources, and shard sets read only with `tarfile`."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastdps.packing.sources.source import Source
from fastdps.shards.images import UnreadableItemError

Pixels = np.ndarray[Any, Any]


def noise(*shape: int, seed: int = 0) -> Pixels:
    """Return uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def photo(height: int, width: int, seed: int = 0) -> Pixels:
    """Return an image of low frequencies, which JPEG preserves well."""
    return np.asarray(Image.fromarray(noise(5, 7, 3, seed=seed)).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: Pixels, form: str, mode: str | None = None, **options: Any) -> bytes:
    """Return the content of an image file. `mode` is a mode of Pillow."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def write_noise_folder(root: Path, count: int, side: int = 16) -> dict[str, Pixels]:
    """Write a folder of PNGs in two sub-folders. Return their pixels by relative path."""
    made = {}
    for number in range(count):
        name = f"{'ab'[number % 2]}/{number:03d}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        made[name] = noise(side, side, 3, seed=number)
        (root / name).write_bytes(encoded(made[name], "PNG"))
    return made


def read_set(directory: Path) -> dict[int, dict[str, bytes]]:
    """Return the content of the members of each sample, by sample id and extension."""
    samples: dict[int, dict[str, bytes]] = {}
    for path in sorted(directory.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                assert extension not in samples.setdefault(int(key), {})
                samples[int(key)][extension] = file.read()
    return samples


def read_images(directory: Path, side: int) -> dict[int, Pixels]:
    """Return the pixels of a raw set by sample id."""
    return {
        key: np.frombuffer(members["bin"], np.uint8).reshape(side, side, 3)
        for key, members in read_set(directory).items()
    }


def read_lines(path: Path) -> list[Any]:
    """Read a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digests(root: Path) -> dict[str, str]:
    """Return the sha256 of every file below a directory, by relative path."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@dataclass(frozen=True)
class Numbers(Source):
    """A source of `count` images of one colour each. Those with numbers in `bad` are unreadable."""

    count: int
    bad: frozenset[int] = frozenset()
    on_read: Callable[[int], None] = lambda _: None

    def items(self):
        return range(self.count)

    def read(self, item):
        self.on_read(item)
        if item in self.bad:
            raise UnreadableItemError("is bad")
        return {"image": np.full((8, 8, 3), item, np.uint8)}

    def name(self, item):
        return f"number {item}"

    def describe(self):
        return {"name": "numbers"}
