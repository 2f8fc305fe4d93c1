"""Small shard sets for tests, written only with `tarfile`, so that they are an independent oracle for the loaders."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdps.loading.loader import ShardLoader, open_shards
from fastdps.loading.options import LoadOptions
from fastdps.shards.format import component_extensions
from helpers.packed import noise

Sample = dict[str, bytes]  # the content of each member by extension


def raw_samples(n: int, height: int = 6, width: int = 4, seed: int = 0) -> list[Sample]:
    """Return n raw samples of kind `images`."""
    return [{"bin": pixels.tobytes()} for pixels in noise(n, height, width, 3, seed=seed)]


def write_set(
    directory: Path,
    samples: Sequence[Sample],
    shard_sizes: Sequence[int],
    *,
    kind: str = "images",
    encoding: str = "raw",
    image_size: tuple[int, int] | None = (6, 4),
    ids: Sequence[int] | None = None,
) -> Path:
    """Write a complete set. The sample ids are 0, 1, 2, ... by default."""
    directory.mkdir(parents=True, exist_ok=True)
    assert sum(shard_sizes) == len(samples)
    numbered = iter(zip(range(len(samples)) if ids is None else ids, samples, strict=True))
    shards = []
    for number, size in enumerate(shard_sizes):
        path = directory / f"shard-{number:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample_id, sample in (next(numbered) for _ in range(size)):
                for extension, data in sample.items():
                    member = tarfile.TarInfo(f"{sample_id:09d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        write_index(path)
        shards.append(described(path, size))
    manifest = {
        "format_version": 1,
        "kind": kind,
        "components": component_extensions(kind, encoding),  # type: ignore[arg-type]
        "encoding": encoding,
        "image_size": image_size,
        "samples": len(samples),
        "source": {},
        "shards": shards,
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def described(tar: Path, samples: int) -> dict[str, Any]:
    """Return the entry of a shard in the manifest."""
    data = tar.read_bytes()
    return {
        "name": tar.name,
        "samples": samples,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def write_index(tar_path: Path) -> None:
    """Write the index of a tar, as `tarfile` reads it."""
    lines: dict[str, list[str]] = {}
    with tarfile.open(tar_path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            lines.setdefault(key, []).append(f"{extension} {member.offset_data} {member.size} {member.name}")
    text = "\n".join([f"v1.2 {len(lines)}", *(" ".join(line) for line in lines.values()), ""])
    tar_path.with_suffix(".idx").write_text(text)


def rewrite_manifest(directory: Path, **shard_zero: Any) -> None:
    """Change the entry of the first shard in the manifest."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0].update(shard_zero)
    path.write_text(json.dumps(manifest))


def open_set(directory: Path | str, **arguments: Any) -> ShardLoader:
    """`open_shards` with the fields of `LoadOptions` as further keyword arguments, for parametrised tests."""
    names = {field.name for field in dataclasses.fields(LoadOptions)}
    own = {name: arguments.pop(name) for name in names & arguments.keys()}
    return open_shards(directory, options=LoadOptions(**own), **arguments)
