"""The manifest: round trip, rejected content, and the division of a large set among processes."""

import gc
import hashlib
import json

import numpy as np
import pytest

from fastdps.errors import ShardError
from fastdps.loading.order import EpochOrder, part_of
from fastdps.shards.format import MANIFEST, Manifest, Shard, read_manifest

RANKS = 512


def manifest(shards: int, samples: int = 5000) -> Manifest:
    every = tuple(
        Shard(f"shard-{number:06d}.tar", samples, 64_010_240, hashlib.sha256(str(number).encode()).hexdigest())
        for number in range(shards)
    )
    return Manifest("images", {"image": "bin"}, "raw", (64, 64), samples * shards, {"name": "made up"}, every)


def test_100_000_shards_are_divided_over_512_ranks(tmp_path):
    """Check that every sample of every shard is read by exactly one process."""
    expected = manifest(100_000)
    (tmp_path / MANIFEST).write_text(expected.to_json())
    found = read_manifest(tmp_path)
    assert found == expected
    assert gc.isenabled()
    samples = [shard.samples for shard in found.shards]
    order = EpochOrder(samples, seed=1, epoch=2, shuffle=True)
    visits = np.array([v for rank in range(RANKS) for v in order.visits(part_of(found.samples, rank, RANKS))])
    shards, starts, stops, sizes = visits[np.lexsort((visits[:, 1], visits[:, 0]))].T
    assert (sizes == 5000).all()
    assert (np.unique(shards) == np.arange(100_000)).all()
    first = np.append(True, shards[1:] != shards[:-1])
    last = np.append(first[1:], True)
    assert (starts[first] == 0).all()
    assert (stops[last] == 5000).all()
    assert (starts[~first] == stops[~last]).all()
    assert len(visits) < 100_000 + RANKS  # two processes read a shard only at the ends of their parts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../shard-000001.tar"}, "shard name '../shard-000001.tar' is not of the form"),
        ({"name": "pipe:curl"}, "shard name 'pipe:curl'"),
        ({"name": "shard-000001.tar\nshard-000002.tar"}, "is not of the form"),
        ({"name": 1}, "not a manifest of this format"),
        ({"colour": "red"}, r"unknown keys \['colour'\] of a shard"),
        ({"samples": 4}, "the shards add up to 14"),
        ({"samples": "5"}, "not a manifest of this format"),
        ({"sha256": None, "DROP": "sha256"}, "sha256"),
    ],
)
def test_invalid_shards_are_rejected(tmp_path, change, message):
    content = json.loads(manifest(3, samples=5).to_json())
    content["shards"][1] |= change
    if dropped := content["shards"][1].pop("DROP", None):
        del content["shards"][1][dropped]
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ShardError, match=message):
        read_manifest(tmp_path)
    assert gc.isenabled()


@pytest.mark.parametrize("shards", [None, 3, ["shard-000000.tar"], [["a", 1, 2, "b"]], {"shard-000000.tar": 1}])
def test_shards_that_are_not_a_list_are_rejected(tmp_path, shards):
    content = json.loads(manifest(3, samples=5).to_json()) | {"shards": shards}
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ShardError, match="not a manifest of this format"):
        read_manifest(tmp_path)
