"""Shard sets for the tests of the cache, and comparison of their batches."""

from __future__ import annotations

from pathlib import Path

import torch

from fastdps.shards.format import read_manifest
from helpers.packed import encoded, photo
from helpers.shard_sets import raw_samples, write_set

SIZES = (12, 9, 15, 12, 12, 1, 12)


def write_kind(directory: Path, kind: str) -> Path:
    n = sum(SIZES)
    if kind == "raw":
        return write_set(directory, raw_samples(n), SIZES)
    if kind == "jpeg":
        samples = [{"jpg": encoded(photo(8, 8, seed), "JPEG")} for seed in range(n)]
        return write_set(directory, samples, SIZES, encoding="jpeg", image_size=(8, 8))
    images = iter(raw_samples(3 * n))
    samples = [
        {**{f"{name}.bin": next(images)["bin"] for name in ("ref", "p0", "p1")}, "judge.f32": b"\0\0\0\x3f"}
        for _ in range(n)
    ]
    return write_set(directory, samples, SIZES, kind="triplets")


def bytes_of(directory: Path) -> list[int]:
    return [shard.bytes for shard in read_manifest(directory).shards]


def two_shards(directory: Path) -> int:
    """Return the minimum size of a cache: the two largest shards, and the single-sample shard between them."""
    sizes = sorted(bytes_of(directory))
    return sizes[-1] + sizes[-2] + sizes[0]


def batches(loader, epoch=0, **options):
    return [(batch.ids, batch.components) for batch in loader.epoch(epoch, **options)]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for (ids, components), (expected_ids, expected_components) in zip(found, expected, strict=True):
        assert torch.equal(ids, expected_ids)
        assert components.keys() == expected_components.keys()
        for name, value in components.items():
            assert torch.equal(value, expected_components[name])


def files_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("shard-*"))
