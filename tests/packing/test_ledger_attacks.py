"""Records of finished shards that do not fit the plan or the files are dropped, or are one named error."""

import json
import random
import shutil

import pytest

from fastdps.errors import FastDPSError
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import merge, pack
from helpers.packed import Numbers, digests

CASES = 40
OPTIONS = PackOptions(size=8, samples_per_shard=4, encoding="raw", max_rejects=0.5)


class Set:
    """The data set of the tests, of which item 5 is unreadable."""

    def splits(self):
        return {"train": Numbers(12, frozenset({5}))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    pack(Set(), out, OPTIONS, workers=1)
    return out


@pytest.fixture
def resumable(finished, tmp_path):
    """The set without its manifest, and a ledger of all its shards."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    manifest = json.loads((out / "train/manifest.json").read_text())
    rejects = [json.loads(line) for line in (out / "train/rejects.jsonl").read_text().splitlines()]
    records = [
        {"number": n, "shard": shard, "rejects": [r for r in rejects if r["id"] // 4 == n]}
        for n, shard in enumerate(manifest["shards"])
    ]
    (out / "train/manifest.json").unlink()
    (out / "train/rejects.jsonl").unlink()
    write(out, [manifest["source"], *records])
    return out


def write(out, lines) -> None:
    (out / "train/progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def read(out) -> list:
    return [json.loads(line) for line in (out / "train/progress.jsonl").read_text().splitlines()]


def replace(out, place: int, **values) -> None:
    lines = read(out)
    lines[1 + place] |= values
    write(out, lines)


def replace_shard(out, number: int, **values) -> None:
    replace(out, number, shard=read(out)[1 + number]["shard"] | values)


def rename_reject(out) -> None:
    (number, reject) = next((n, line["rejects"][0]) for n, line in enumerate(read(out)[1:]) if line["rejects"])
    replace(out, number, rejects=[reject | {"item": "x"}])


def flip_byte(path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:600] + bytes([content[600] ^ 1]) + content[601:])


DAMAGES = {
    "nothing": lambda out: None,
    "another number of samples": lambda out: replace_shard(out, 0, samples=3),
    "another shard's name": lambda out: replace_shard(out, 0, name="shard-000001.tar"),
    "another shard's record": lambda out: replace(out, 0, shard=read(out)[2]["shard"]),
    "another checksum": lambda out: replace_shard(out, 0, sha256="0" * 64),
    "a number beyond the set": lambda out: replace(out, 2, number=7),
    "a number below zero": lambda out: replace(out, 2, number=-1),
    "all samples rejected": lambda out: replace(out, 2, shard=None),
    "an item of another shard": lambda out: replace(out, 0, rejects=[{"id": 9, "item": "x", "reason": "is bad"}]),
    "an item of another name": lambda out: rename_reject(out),
    "other bytes of the same size": lambda out: flip_byte(out / "train/shard-000000.tar"),
    "an index of the same size": lambda out: (out / "train/shard-000000.idx").write_text("v1.2 4\n"),
}


@pytest.mark.parametrize("merges", [False, True], ids=["resume", "merge"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_record_that_does_not_fit_is_dropped(finished, resumable, damage, merges):
    DAMAGES[damage](resumable)
    if merges and damage != "nothing":
        with pytest.raises(FastDPSError, match="not all shards are packed"):
            merge(Set(), resumable, OPTIONS)
        return
    merge(Set(), resumable, OPTIONS) if merges else pack(Set(), resumable, OPTIONS, workers=1)
    assert digests(resumable) == digests(finished)


def test_random_records_give_the_same_set_or_a_named_error(finished, resumable, tmp_path):
    lines, ends = read(resumable), {"the same set": 0, "named error": 0}
    for seed in range(CASES):
        draw = random.Random(seed)
        out = tmp_path / f"out-{seed}"
        shutil.copytree(resumable, out)
        changed = json.loads(json.dumps(lines))
        record = changed[draw.randrange(1, len(changed))]
        owner = draw.choice([record, record["shard"]])
        key = draw.choice(sorted(owner))
        values = [None, -1, 0, 1, 2, 10**30, 1.5, True, "", "x", "../../x", [], {}, [[]], [{}], "[" * 9]
        owner[key] = draw.choice([*values, lines[draw.randrange(1, len(lines))].get(key, 3)])
        write(out, changed)
        try:
            pack(Set(), out, OPTIONS, workers=1)
        except FastDPSError as error:
            ends["named error"] += "progress.jsonl is damaged" in str(error)
        else:
            assert digests(out) == digests(finished), seed
            ends["the same set"] += 1
    assert sum(ends.values()) == CASES
    assert min(ends.values()) > 5
    assert not (tmp_path / "x").exists()
