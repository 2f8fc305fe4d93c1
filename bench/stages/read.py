"""Reading with one thread: single members by the index, and complete shards in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.harness.bench import Bench
from bench.harness.measure import Compared, Measurement
from fastdps.loading.members import open_index, read_member
from fastdps.shards.format import read_manifest

BLOCK_BYTES = 1 << 20


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure both. The limit is copying as many bytes in memory, as small shards are cached after the first read."""
    directory = bench.data.small("raw")
    manifest = read_manifest(directory)
    image_bytes = sum(shard.bytes for shard in manifest.shards) / manifest.samples
    indexes = [open_index(directory, manifest, shard) for shard in manifest.shards]

    def members(amount: int) -> float:
        for _ in range(amount):
            for index in indexes:
                with index.tar.open("rb", buffering=0) as tar:
                    for row in range(len(index.ids)):
                        read_member(tar, index, row, 0)
        return amount * manifest.samples

    def whole(amount: int) -> float:
        for _ in range(amount):
            for index in indexes:
                _read_whole(index.tar, block)
        return amount * manifest.samples

    block = memoryview(bytearray(BLOCK_BYTES))
    memory = memoryview(bytes(sum(shard.bytes for shard in manifest.shards)))

    def copy(amount: int) -> float:
        for _ in range(amount):
            for start in range(0, len(memory), BLOCK_BYTES):
                part = memory[start : start + BLOCK_BYTES]
                block[: len(part)] = part
        return amount * manifest.samples

    rates = bench.timing.rates({"members": members, "whole": whole, "copy": copy})
    notes = {"image_bytes": image_bytes}
    yield Measurement(
        "read",
        "whole shards of raw 64 px, in order",
        rates["whole"],
        limit=Compared("copying them from memory", rates["copy"]),
        notes=notes,
    )
    yield Measurement(
        "read",
        "raw 64 px, image by image",
        rates["members"],
        limit=Compared("whole shards in order", rates["whole"]),
        notes=notes,
        headline=False,
    )


def _read_whole(path: Path, block: memoryview) -> None:
    with path.open("rb", buffering=0) as file:
        while file.readinto(block):
            pass
