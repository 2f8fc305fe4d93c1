"""Mutated tables of shard sets, from fixed seeds: reading ends with a named error, or reads what is still sound.

Flipped bytes, most of them in the footer, truncations and insertions. Size and checksum in the manifest are corrected,
as a malicious writer would. A crash of pyarrow ends the test process, so it runs in one of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fastdps.errors import ShardError
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.registry import open_source
from fastdps.shards.format import JUDGEMENTS, SAMPLES, Table, read_manifest
from fastdps.shards.judgements import read_judgements, read_name_columns
from helpers.judgement_files import random_rows, write_csv, write_images

TABLES = 400 * int(os.environ.get("FASTDPS_ATTACKS", "1"))
FOOTER_BYTES = 700
ROOT = Path(__file__).parents[2]


def mutated(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.1:
        return data[: draw.randrange(len(data))] + draw.choice([b"", data[-8:]])
    changed = bytearray(data)
    low = draw.choice([0, max(0, len(data) - FOOTER_BYTES)])
    if draw.random() < 0.1:
        at = draw.randrange(low, len(data))
        changed[at:at] = draw.randbytes(draw.choice([1, 8]))
    for _ in range(draw.choice([1, 1, 2, 5])):
        changed[draw.randrange(low, len(data))] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])
    return bytes(changed)


def attack(directory: Path, name: str) -> Counter[str]:
    """Read mutated tables. Return the number of errors and of tables that are read."""
    manifest, original = read_manifest(directory), (directory / name).read_bytes()
    found: Counter[str] = Counter()
    for seed in range(TABLES):
        content = mutated(original, random.Random(seed))
        (directory / name).write_bytes(content)
        entry = Table(manifest.tables[name].rows, len(content), hashlib.sha256(content).hexdigest())
        changed = dataclasses.replace(manifest, tables={**manifest.tables, name: entry})
        try:
            (read_name_columns if name == SAMPLES else read_judgements)(directory, changed)
            found["read"] += 1
        except ShardError as error:
            found["errors" if name in str(error) else "nameless errors"] += 1
    return found


@pytest.mark.parametrize("name", [SAMPLES, JUDGEMENTS])
def test_mutated_tables_end_with_a_named_error_or_are_read(tmp_path, name):
    write_images(tmp_path, 20)
    path = write_csv(tmp_path / "a.csv", random_rows(60, 20))
    pack(open_source("judgements", path, by="person"), tmp_path / "out", PackOptions(size=8), workers=1)
    command = [sys.executable, __file__, str(tmp_path / "out/train"), name]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, result.stderr
    print(name, result.stdout)
    counts = dict(line.split(": ") for line in result.stdout.splitlines())
    assert set(counts) == {"read", "errors"}
    assert int(counts["errors"]) > TABLES / 2


if __name__ == "__main__":
    for key, count in attack(Path(sys.argv[1]), sys.argv[2]).items():
        print(f"{key}: {count}")
